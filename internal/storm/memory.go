package storm

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptRanges are enough for this program's text and constants, the page of
// handlerSlot, what a storm maps, and the kernel's own (the vdso: arm64 returns
// from signal handlers through it).
const keptRanges = 8

// Scratch memory: every process has a private copy of it.
const (
	scratchArea = 4096 // what scripts use: scratchPipe and the others
	// signalStackSize has room for the largest frame that a signal takes on any
	// processor. A second thread has the rest of its own stack for that.
	signalStackSize = 64 << 10
	ownStackSize    = 16 << 10
	scratchSize     = scratchArea + signalStackSize + ownStackSize
)

// Where a storm maps memory, if nothing is there: within the same GiB as a program that
// is linked statically, so that its processes have fewer page tables.
const (
	scriptsPlace = 0x20000000
	scratchPlace = scriptsPlace + arenaSize
	marksPlace   = scratchPlace + 1<<20
)

// mapNear maps size bytes that can be read and written at a place, or anywhere else.
func mapNear(place uintptr, fd, size, flags int) ([]byte, error) {
	p, err := unix.MmapPtr(fd, 0, pointer(place), uintptr(size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), size), nil
}

func unmapNear(mem []byte) error { return unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))) }

// mapping is a line of /proc/PID/maps.
type mapping struct {
	addressRange
	permissions string
	file        string // device and inode; empty for none
	name        string
}

func (m *mapping) writable() bool   { return m.permissions[1] == 'w' }
func (m *mapping) executable() bool { return m.permissions[2] == 'x' }
func (m *mapping) private() bool    { return m.permissions[3] == 'p' }

func parseMaps(maps []byte) ([]mapping, error) {
	var out []mapping
	for line := range bytes.Lines(maps) {
		f := bytes.Fields(line)
		if len(f) < 5 || len(f[1]) < 4 {
			continue
		}
		low, high, _ := bytes.Cut(f[0], []byte{'-'})
		start, err1 := strconv.ParseUint(string(low), 16, 64)
		end, err2 := strconv.ParseUint(string(high), 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("parse maps: %w", err)
		}
		m := mapping{addressRange: addressRange{uintptr(start), uintptr(end)}, permissions: string(f[1])}
		if string(f[4]) != "0" {
			m.file = string(f[3]) + " " + string(f[4])
		}
		if len(f) > 5 {
			m.name = string(f[5])
		}
		out = append(out, m)
	}
	return out, nil
}

// birth is what all processes are born with, as far as it is constants.
func (b *builder) birth() birth {
	var stack []byte // stack_t
	for _, word := range [3]uintptr{b.scratch + scratchArea, 0, signalStackSize} {
		stack = binary.NativeEndian.AppendUint64(stack, uint64(word))
	}
	return birth{
		zero:        b.constant(make([]byte, 32)),
		signalStack: b.constant(stack),
		stack:       b.scratch + scratchSize,
		local:       b.scratch + scratchArea,
	}
}

// keepOnly has a process unmap everything but this program's text and constants and
// the ranges given, and returns what of the rest it need not get in the first place. A
// program that was linked with others, libc for one, keeps all: these have the kernel
// write to memory of their own (rseq).
func (b *birth) keepOnly(ranges ...addressRange) (unwanted []addressRange, err error) {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	maps, err := parseMaps(text)
	if err != nil {
		return nil, err
	}
	program := ""
	for _, m := range maps {
		if m.start <= handlerAddress && handlerAddress < m.end {
			program = m.file
		}
	}
	top := uintptr(0)
	for _, m := range maps {
		switch {
		case int(m.start) < 0: // the kernel's half: vsyscall
			continue
		// Those of the kernel, which it may have sealed: [vdso], [vvar] and its like.
		case strings.HasPrefix(m.name, "[v"), m.file == program && !m.writable():
			ranges = append(ranges, m.addressRange)
		case m.file != "" && m.executable():
			return nil, nil
		}
		top = max(top, m.end)
	}
	page := uintptr(unix.Getpagesize())
	slot := uintptr(unsafe.Pointer(&handlerSlot)) &^ (page - 1)
	ranges = append(ranges, addressRange{slot, slot + page})
	slices.SortFunc(ranges, func(x, y addressRange) int { return cmp.Compare(x.start, y.start) })
	n := 0
	for _, r := range ranges {
		r.start, r.end = r.start&^(page-1), (r.end+page-1)&^(page-1)
		if n > 0 && r.start <= b.memory[n-1].end {
			b.memory[n-1].end = max(r.end, b.memory[n-1].end)
			continue
		}
		if n == keptRanges {
			return nil, fmt.Errorf("more than %d ranges of memory to keep: %v", keptRanges, ranges)
		}
		b.memory[n] = r
		n++
	}
	b.top = top
	kept := b.memory[:n]
	for _, m := range maps {
		overlaps := func(r addressRange) bool { return r.start < m.end && m.start < r.end }
		if m.file == "" && m.writable() && m.private() && !slices.ContainsFunc(kept, overlaps) {
			unwanted = append(unwanted, m.addressRange)
		}
	}
	return unwanted, nil
}

// advise tells the kernel something about memory, as far as that is still mapped.
func advise(ranges []addressRange, advice int) error {
	for _, r := range ranges {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, uintptr(advice)); errno != 0 && errno != unix.ENOMEM {
			return fmt.Errorf("madvise(%#x, %#x, %d): %w", r.start, r.end-r.start, advice, errno)
		}
	}
	return nil
}

// rangeOf is where mem lies.
func rangeOf(mem []byte) addressRange {
	start := uintptr(unsafe.Pointer(&mem[0]))
	return addressRange{start, start + uintptr(len(mem))}
}
