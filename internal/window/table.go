package window

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
)

// table is what killer and guardian share: whose affinity the killer is about to
// change, and what it was. It lies in a memfd, so that it outlives the killer.
// Entries are written before the change that they describe, and never altered.
type table struct {
	memory  []byte
	head    *tableHead
	entries []tableEntry
	masks   []uint64 // head.words for each entry
}

type tableHead struct {
	count    uint32 // of valid entries
	capacity uint32
	words    uint32 // of a mask
	cpu      uint32 // where they are put
	other    int32  // where they may be taken from there, -1: nowhere
	beganNS  uint64 // CLOCK_BOOTTIME
	done     uint32 // nothing is left to restore
	_        uint32
}

type tableEntry struct {
	tid, pid, pgid, sid int32
	seenNS              uint64 // CLOCK_BOOTTIME at which the thread was alive
}

func tableBytes(capacity, words uint32) int {
	return int(unsafe.Sizeof(tableHead{})) + int(capacity)*(int(unsafe.Sizeof(tableEntry{}))+8*int(words))
}

// newTable makes room for so many threads in an empty memfd. beganNS is from before
// the first of them was looked for: whoever is younger was born since, to be recorded or
// not. The caller unmaps it.
func newTable(memfd *os.File, capacity int, cpu, other int, beganNS uint64) (*table, error) {
	words := maskWords()
	size := tableBytes(uint32(capacity), words)
	if err := memfd.Truncate(int64(size)); err != nil {
		return nil, fmt.Errorf("make room for %d threads: %w", capacity, err)
	}
	t, err := mapTable(memfd, size)
	if err != nil {
		return nil, err
	}
	*t.head = tableHead{capacity: uint32(capacity), words: words, cpu: uint32(cpu), other: int32(other), beganNS: beganNS}
	t.layOut()
	return t, nil
}

// openTable maps the table that another process has made, or returns nil where
// none was made.
func openTable(memfd *os.File) (*table, error) {
	info, err := memfd.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	t, err := mapTable(memfd, int(info.Size()))
	if err != nil {
		return nil, err
	}
	if tableBytes(t.head.capacity, t.head.words) > len(t.memory) || t.head.words > uint32(len(affinity.Set{})) {
		return nil, nil // its making was cut short: nothing was changed yet
	}
	t.layOut()
	return t, nil
}

func mapTable(memfd *os.File, size int) (*table, error) {
	memory, err := unix.Mmap(int(memfd.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the table of threads: %w", err)
	}
	return &table{memory: memory, head: (*tableHead)(unsafe.Pointer(&memory[0]))}, nil
}

func (t *table) layOut() {
	capacity, words := t.head.capacity, t.head.words
	if capacity == 0 {
		return
	}
	at := unsafe.Sizeof(tableHead{})
	t.entries = unsafe.Slice((*tableEntry)(unsafe.Pointer(&t.memory[at])), capacity)
	at += uintptr(capacity) * unsafe.Sizeof(tableEntry{})
	t.masks = unsafe.Slice((*uint64)(unsafe.Pointer(&t.memory[at])), capacity*words)
}

func (t *table) unmap() error { return unix.Munmap(t.memory) }

func (t *table) len() int { return int(atomic.LoadUint32(&t.head.count)) }

// add records a thread, and reports false when there is no room left.
func (t *table) add(thread *affinity.Thread, wanted *affinity.Set, seenNS uint64) bool {
	i, w := t.head.count, t.head.words
	if i >= t.head.capacity {
		return false
	}
	t.entries[i] = tableEntry{tid: thread.TID, pid: thread.PID, pgid: thread.PGID, sid: thread.SID, seenNS: seenNS}
	copy(t.masks[i*w:(i+1)*w], wanted[:])
	atomic.StoreUint32(&t.head.count, i+1)
	return true
}

func (t *table) wanted(i int) (s affinity.Set) {
	w := int(t.head.words)
	copy(s[:], t.masks[i*w:(i+1)*w])
	return s
}

func (t *table) finish()        { atomic.StoreUint32(&t.head.done, 1) }
func (t *table) finished() bool { return atomic.LoadUint32(&t.head.done) != 0 }

// maskWords is how many words hold a bit for each CPU of this machine: what the
// kernel says when it is asked for a mask.
func maskWords() uint32 {
	var s affinity.Set
	n, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(s), uintptr(unsafe.Pointer(&s)))
	if errno != 0 {
		return uint32(len(s))
	}
	return uint32(n+7) / 8
}

// bootTimeNS is the clock of process start times.
func bootTimeNS() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}
