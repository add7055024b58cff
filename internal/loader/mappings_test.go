package loader

import (
	"context"
	"errors"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// mapShared is a staged process that maps the file it inherits, shared and
// writable, as often as it is told.
func mapShared(protection int) func() error {
	return func() error {
		for range 2 { // the kernel counts mappings, not processes
			if _, err := unix.Mmap(3, 0, os.Getpagesize(), protection, unix.MAP_SHARED); err != nil {
				return err
			}
		}
		return untilEOF()
	}
}

// memory is a file in memory, of one page.
func memory(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "shared")
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(int64(os.Getpagesize())))
	return f
}

// reapable asks which of the candidates may not be reaped, all of the doomed given.
func reapable(t *testing.T, ctx context.Context, e *Executor, doomed []int, candidates int) map[int]error {
	t.Helper()
	v := take(t)
	var procs []waitgraph.Process
	pids := map[waitgraph.KernelIdentity]int{}
	for _, pid := range doomed {
		p := v.process(t, pid)
		procs = append(procs, p)
		pids[p.KernelIdentity()] = pid
	}
	must(t, e.Doom(procs))
	threads, err := e.Threads()
	must(t, err)
	first := map[int]affinity.Thread{}
	for _, th := range threads {
		first[int(th.PID)] = th
	}
	var in, rest []affinity.Thread
	for i, pid := range doomed {
		if i < candidates {
			in = append(in, first[pid])
		} else {
			rest = append(rest, first[pid])
		}
	}
	sharing, err := e.SharedMemory(ctx, in, rest)
	must(t, err)
	out := map[int]error{}
	for k, why := range sharing {
		out[pids[k]] = why
	}
	return out
}

// TestSharedMemory: who shares writable memory with somebody who lives on must not
// be reaped early, and nobody else is left out.
func TestSharedMemory(t *testing.T) {
	newExecutor(t)
	if err := HaveReap(); err != nil {
		t.Skip(err)
	}
	staged := func(role string, f *os.File) int {
		p := start(t, role, nil, f)
		p.says(t)
		return p.PID
	}
	for _, test := range []struct {
		name string
		// doomed, of whom the first are candidates, and who of them is left out
		stage func() (doomed []int, candidates int, out []int)
	}{
		{"private memory alone", func() ([]int, int, []int) {
			return []int{start(t, "idle", nil).PID}, 1, nil
		}},
		{"with one that lives", func() ([]int, int, []int) {
			f := memory(t)
			doomed, other := staged("map", f), start(t, "idle", nil).PID
			staged("map", f)
			return []int{doomed, other}, 2, []int{doomed}
		}},
		{"among candidates", func() ([]int, int, []int) {
			f := memory(t)
			return []int{staged("map", f), staged("map", f)}, 2, nil
		}},
		{"with one of the kill set that is no candidate", func() ([]int, int, []int) {
			f := memory(t)
			return []int{staged("map", f), staged("map", f)}, 1, nil
		}},
		{"with readers only", func() ([]int, int, []int) {
			// A mapping that may become writable is one.
			f := memory(t)
			doomed := staged("map", f)
			staged("map-read", f)
			return []int{doomed}, 1, []int{doomed}
		}},
		{"of a file that others only read", func() ([]int, int, []int) {
			f := memory(t)
			doomed := staged("map", f)
			ro, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
			must(t, err)
			defer ro.Close()
			staged("map-read", ro)
			return []int{doomed}, 1, nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			doomed, candidates, want := test.stage()
			got := reapable(t, t.Context(), newExecutor(t), doomed, candidates)
			for _, pid := range want {
				if !errors.Is(got[pid], ErrSharesMemory) {
					t.Errorf("process %d: %v, want %v", pid, got[pid], ErrSharesMemory)
				}
			}
			if len(got) != len(want) {
				t.Errorf("left out: %v, want %v", got, want)
			}
		})
	}
}

// TestSharedMemoryInTime: what could not be read in time is not reaped.
func TestSharedMemoryInTime(t *testing.T) {
	e := newExecutor(t)
	if err := HaveReap(); err != nil {
		t.Skip(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	pid := start(t, "idle", nil).PID
	if got := reapable(t, over, e, []int{pid}, 1); !errors.Is(got[pid], ErrMapLocked) {
		t.Errorf("%v, want %v", got[pid], ErrMapLocked)
	}
}

// TestGetOn: one that hangs holds nobody up, slow is not stuck, and where nobody gets
// on there is an end.
func TestGetOn(t *testing.T) {
	const stall = 100 * time.Millisecond
	hang := func() { time.Sleep(time.Hour) }
	failed := errors.New("failed")
	for _, tc := range []struct {
		name string
		n    int
		do   func(i int, alive func()) error
		done int
		err  error
	}{
		{"nothing to do", 0, nil, 0, nil},
		{"one hangs", 40, func(i int, _ func()) error {
			if i == 3 {
				hang()
			}
			return nil
		}, 39, nil},
		{"all hang", 6, func(int, func()) error {
			hang()
			return nil
		}, 0, nil},
		{"slow", 4 * mappingReaders, func(int, func()) error {
			time.Sleep(stall / 2)
			return nil
		}, 4 * mappingReaders, nil},
		{"long, and alive", 1, func(_ int, alive func()) error {
			for range 8 {
				time.Sleep(stall / 4)
				alive()
			}
			return nil
		}, 1, nil},
		{"one fails", 3, func(i int, _ func()) error {
			if i == 1 {
				return failed
			}
			return nil
		}, 0, failed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(2 * time.Hour) // until those that hang are done
				done, err := getOn(t.Context(), tc.n, stall, tc.do)
				n := 0
				for _, d := range done {
					if d {
						n++
					}
				}
				if n != tc.done || !errors.Is(err, tc.err) {
					t.Errorf("%d done, %v; want %d, %v", n, err, tc.done, tc.err)
				}
			})
		})
	}
}
