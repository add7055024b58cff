package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// readMap copies a whole hash map. Entries that others add meanwhile may be
// missing.
func readMap[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	const chunk = 4096
	keys := make([]K, chunk)
	values := make([]V, chunk)
	out := make(map[K]V)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range keys[:n] {
			out[keys[i]] = values[i]
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return out, nil
		case errors.Is(err, unix.ENOSPC):
			return readMapSlowly[K, V](m)
		case err != nil:
			return nil, err
		}
	}
}

// readMapSlowly serves a map with a bucket longer than a chunk.
func readMapSlowly[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	out := make(map[K]V)
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		out[k] = v
	}
	return out, it.Err()
}

// monotonicNS is the clock of bpf_ktime_get_ns().
func monotonicNS() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// taskCount returns the number of tasks on the machine, threads included, or
// a generous guess where /proc does not say.
func taskCount() int {
	const guess = 32768
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return guess
	}
	var load [3]float64
	var running, tasks int
	if _, err := fmt.Sscanf(string(b), "%f %f %f %d/%d", &load[0], &load[1], &load[2], &running, &tasks); err != nil {
		return guess
	}
	return tasks
}
