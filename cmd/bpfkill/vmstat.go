package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// vmCounters are the whole machine's, before and after a kill.
type vmCounters struct {
	swapIns     uint64 // pages, pswpin of /proc/vmstat
	majorFaults uint64 // pgmajfault
	available   uint64 // bytes, MemAvailable of /proc/meminfo
}

func readVMCounters() (vmCounters, error) {
	vmstat, err := readCounters("/proc/vmstat", "pswpin", "pgmajfault")
	if err != nil {
		return vmCounters{}, err
	}
	meminfo, err := readCounters("/proc/meminfo", "MemAvailable:")
	if err != nil {
		return vmCounters{}, err
	}
	return vmCounters{vmstat["pswpin"], vmstat["pgmajfault"], meminfo["MemAvailable:"] << 10}, nil
}

// readCounters reads "name value" lines. A kernel without swap has no pswpin:
// a name that is not there counts as 0.
func readCounters(path string, names ...string) (map[string]uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read memory counters: %w", err)
	}
	defer f.Close()
	out := make(map[string]uint64, len(names))
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		for _, n := range names {
			if len(fields) < 2 || fields[0] != n {
				continue
			}
			if out[n], err = strconv.ParseUint(fields[1], 10, 64); err != nil {
				return nil, fmt.Errorf("read memory counters: %s: %w", path, err)
			}
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("read memory counters: %w", err)
	}
	return out, nil
}
