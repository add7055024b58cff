package loader

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// errHiddenSymbols says that the kernel shows addresses as zero.
var errHiddenSymbols = errors.New("kernel symbol addresses are hidden: bpfkill needs CAP_SYSLOG and kernel.kptr_restrict below 2")

// symbol is the range of addresses from a kernel symbol to the next one; end is
// 0 for the last.
type symbol struct{ start, end uint64 }

// kernelSymbols returns the named kernel symbols, reading /proc/kallsyms only
// as far as the last of them: the file has a hundred thousand lines and takes
// tens of milliseconds. A name that is not there is missing from the result.
func kernelSymbols(names ...string) (map[string]symbol, error) {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, fmt.Errorf("read kernel symbols: %w", err)
	}
	defer f.Close()
	return findSymbols(f, names)
}

func findSymbols(r io.Reader, names []string) (map[string]symbol, error) {
	found := make(map[string]symbol, len(names))
	open := "" // the symbol whose end is still to come
	hidden := false
	err := eachSymbol(r, func(addr uint64, name []byte) bool {
		if s := found[open]; open != "" && addr > s.start {
			s.end = addr
			found[open] = s
			open = ""
		}
		i := slices.IndexFunc(names, func(n string) bool { return string(name) == n })
		if i < 0 {
			return open != "" || len(found) < len(names)
		}
		if addr == 0 {
			hidden = true
			return false
		}
		if _, dup := found[names[i]]; !dup {
			open = names[i]
			found[open] = symbol{start: addr}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if hidden {
		return nil, errHiddenSymbols
	}
	return found, nil
}

// eachSymbol calls f for each line "address type name [module]" until f
// returns false. name is valid during the call only.
func eachSymbol(r io.Reader, f func(addr uint64, name []byte) bool) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 64<<10)
	for s.Scan() {
		line := s.Bytes()
		sp := bytes.IndexByte(line, ' ')
		if sp < 0 || len(line) < sp+4 {
			continue
		}
		name := line[sp+3:]
		if tab := bytes.IndexByte(name, '\t'); tab >= 0 {
			name = name[:tab]
		}
		addr, ok := parseHex(line[:sp])
		if !ok {
			return fmt.Errorf("read kernel symbols: %q is no address", line[:sp])
		}
		if !f(addr, name) {
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

// symbolize returns, for each kernel text address, the name of the function
// that contains it. Addresses that no symbol precedes map to nothing.
func symbolize(addrs []uint64) (map[uint64]string, error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil, fmt.Errorf("read kernel symbols: %w", err)
	}
	defer f.Close()
	return nearestSymbols(f, addrs)
}

func nearestSymbols(r io.Reader, addrs []uint64) (map[uint64]string, error) {
	addrs = slices.Clone(addrs)
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	best := make([]uint64, len(addrs)) // start of the nearest symbol so far
	names := make([]string, len(addrs))
	visible := false
	err := eachSymbol(r, func(start uint64, name []byte) bool {
		visible = visible || start != 0
		// Only the addresses between this symbol and the next one gain from
		// it; the first address at or above start is the only candidate when
		// symbols come in order, and later ones are settled as they come.
		i, _ := slices.BinarySearch(addrs, start)
		for ; i < len(addrs) && best[i] < start; i++ {
			best[i], names[i] = start, string(name)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	if !visible {
		return nil, errHiddenSymbols
	}
	out := make(map[uint64]string, len(addrs))
	for i, a := range addrs {
		if names[i] != "" {
			out[a] = names[i]
		}
	}
	return out, nil
}
