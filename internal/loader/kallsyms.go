package loader

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// errHiddenSymbols says that the kernel shows addresses as zero.
var errHiddenSymbols = errors.New("kernel symbol addresses are hidden: bpfkill needs CAP_SYSLOG and kernel.kptr_restrict below 2")

// textRange is where a function, or the part of one that a compiler split off,
// lies: from its symbol to the next one. end is 0 for the last.
type textRange struct {
	start, end uint64
	name       string // without the compiler's suffix
}

// functionRanges returns the functions whose names, without .isra.0, .cold and
// the like, are wanted, ascending by address: several where there are several
// of one name, none where it was inlined everywhere. It reads /proc/kallsyms, a
// hundred thousand lines, which takes tens of milliseconds. The kernel's data
// and the modules come last: they are left out where enough was found before.
func functionRanges(wanted func(name []byte) bool, enough func([]textRange) bool) ([]textRange, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, fmt.Errorf("read kernel symbols: %w", err)
	}
	defer f.Close()
	return findRanges(f, wanted, enough)
}

// endOfText comes after the kernel's own functions.
const endOfText = "_etext"

func findRanges(r io.Reader, wanted func(name []byte) bool, enough func([]textRange) bool) ([]textRange, error) {
	var found []textRange
	open := 0 // the kernel's own symbols ascend: found[open:] wait for the next
	// A module's do not, and a module is short.
	var module []byte
	var addrs []uint64
	closeModule := func() {
		slices.Sort(addrs)
		for i := open; i < len(found); i++ {
			if next, _ := slices.BinarySearch(addrs, found[i].start+1); next < len(addrs) {
				found[i].end = addrs[next]
			}
		}
		open, addrs = len(found), addrs[:0]
	}
	hidden := false
	err := eachSymbol(r, func(s *symbol) bool {
		if !bytes.Equal(s.module, module) {
			closeModule()
			module = append(module[:0], s.module...)
		}
		if len(module) > 0 {
			addrs = append(addrs, s.addr)
		}
		for len(module) == 0 && open < len(found) && found[open].start < s.addr {
			found[open].end = s.addr
			open++
		}
		name := s.name
		if dot := bytes.IndexByte(name, '.'); dot > 0 {
			name = name[:dot]
		}
		if wanted(name) {
			hidden = hidden || s.addr == 0
			found = append(found, textRange{start: s.addr, name: string(name)})
		}
		return !hidden && (string(s.name) != endOfText || !enough(found))
	})
	closeModule()
	switch {
	case err != nil:
		return nil, err
	case hidden:
		return nil, errHiddenSymbols
	}
	slices.SortStableFunc(found, func(a, b textRange) int { return cmp.Compare(a.start, b.start) })
	return found, nil
}

// symbol is one line of /proc/kallsyms. Its bytes are valid until the next.
type symbol struct {
	addr         uint64
	name, module []byte // module is empty for the kernel's own
}

// eachSymbol calls f for each line "address type name [module]" until f
// returns false.
func eachSymbol(r io.Reader, f func(*symbol) bool) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 64<<10)
	for s.Scan() {
		line := s.Bytes()
		sp := bytes.IndexByte(line, ' ')
		if sp < 0 || len(line) < sp+4 {
			continue
		}
		name, module, _ := bytes.Cut(line[sp+3:], []byte{'\t'})
		addr, ok := parseHex(line[:sp])
		if !ok {
			return fmt.Errorf("read kernel symbols: %q is no address", line[:sp])
		}
		if !f(&symbol{addr, name, module}) {
			return nil
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read kernel symbols: %w", err)
	}
	return nil
}

// parseHex is strconv.ParseUint for a hundred thousand lines: no allocation.
func parseHex(digits []byte) (n uint64, ok bool) {
	for _, c := range digits {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint64(c)
	}
	return n, len(digits) > 0 && len(digits) <= 16
}
