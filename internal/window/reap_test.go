package window

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// startGlibc starts processes of a program that uses the C library, which registers
// a robust futex list for every thread, and returns when they sleep.
func startGlibc(t *testing.T, n int) (pids []int) {
	t.Helper()
	for range n {
		cmd := exec.Command("sleep", "100000")
		must(t, cmd.Start())
		t.Cleanup(func() {
			cmd.Process.Kill() // it may be dead
			cmd.Wait()
		})
		pids = append(pids, cmd.Process.Pid)
	}
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d sleeps", pid), func() bool {
			call, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/syscall")
			return err == nil && (bytes.HasPrefix(call, fmt.Appendf(nil, "%d ", unix.SYS_CLOCK_NANOSLEEP)) ||
				bytes.HasPrefix(call, fmt.Appendf(nil, "%d ", unix.SYS_NANOSLEEP)))
		})
	}
	return pids
}

// swapIns is how many pages the machine has read from swap.
func swapIns(t *testing.T) (n uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/vmstat")
	must(t, err)
	_, after, ok := bytes.Cut(b, []byte("\npswpin "))
	if !ok {
		t.Fatal("no pswpin in /proc/vmstat")
	}
	_, err = fmt.Sscan(string(after), &n)
	must(t, err)
	return n
}

// swappedOut stages sleeping processes without a resident page of their own.
func swappedOut(t *testing.T, n int) []int {
	t.Helper()
	pids := startGlibc(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := storm.SwapOut(ctx, pids)
	must(t, err)
	if got.SwapBytes < int64(n)*int64(os.Getpagesize()) {
		t.Fatalf("%+v: not all have memory on swap", got)
	}
	return pids
}

// onSwap counts those with memory on swap: of a few that were busy when they were
// to be swapped out the kernel may have kept every page.
func onSwap(t *testing.T, all []waitgraph.Process, pids []int) int {
	t.Helper()
	n := 0
	for _, p := range byPID(all, pids...) {
		if p.SwapBytes > 0 {
			n++
		}
	}
	if n < len(pids)*9/10 {
		t.Fatalf("only %d of %d processes are swapped out", n, len(pids))
	}
	return n
}

// TestDyingReadsNothingFromSwap: 200 swapped-out processes die without a page being
// read back; each of them would read its own robust list.
func TestDyingReadsNothingFromSwap(t *testing.T) {
	nstest.Require(t)
	nstest.SwapSpace(t)
	allCPUs(t)
	if err := loader.HaveReap(); err != nil {
		t.Skip(err)
	}
	// A huge page would be brought back as a whole, or not at all.
	if err := os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("never"), 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	const n = 200
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			k := newKernel(t)
			pids := swappedOut(t, n)
			all := processes(t, k)
			want := onSwap(t, all, pids)
			before := swapIns(t)
			out, err := Run(t.Context(), k, byPID(all, pids...), options(engine, all))
			must(t, err)
			requireQuiet(t, out)
			checkAllGone(t, out, n)
			if r := out.Window.Reap; r.Swapped != want || r.Reaped != want || len(r.LeftOut) != 0 {
				t.Errorf("%+v, want %d reaped", r, want)
			}
			if read := swapIns(t) - before; read != 0 {
				t.Errorf("%d pages were read from swap", read)
			}
			t.Logf("%+v", out.Window)
		})
	}
	// The same without it, to see that there is something to be seen.
	t.Run("no corral", func(t *testing.T) {
		k := newKernel(t)
		pids := swappedOut(t, n)
		all := processes(t, k)
		before := swapIns(t)
		o := options(EngineLoop, all)
		o.Corral = false
		out, err := Run(t.Context(), k, byPID(all, pids...), o)
		must(t, err)
		checkAllGone(t, out, n)
		if read := swapIns(t) - before; read == 0 {
			t.Error("no page was read from swap without an early reap either: the test is blind")
		} else {
			t.Logf("%d pages were read from swap without the corral", read)
		}
		if r := out.Window.Reap; r.Swapped != onSwap(t, all, pids) || r.Reaped != 0 {
			t.Errorf("%+v: nobody can be reaped early without a corral", r)
		}
	})
}

// TestReaperIsPrepared: those asleep first, smallest first, and nobody who must not be reaped.
func TestReaperIsPrepared(t *testing.T) {
	nstest.Require(t)
	if err := loader.HaveReap(); err != nil {
		t.Skip(err)
	}
	shared := errors.New("shares its memory")
	var victims []waitgraph.Process
	for i := range 5 {
		p := startIdle(t)
		victims = append(victims, waitgraph.Process{Identity: waitgraph.Identity{PID: int32(p.Process.Pid), StartNS: uint64(i)}, KernelPID: int32(p.Process.Pid)})
	}
	id := func(i int) waitgraph.KernelIdentity { return victims[i].KernelIdentity() }
	k := &fake{sharing: map[waitgraph.KernelIdentity]error{id(3): shared}}
	for i := range victims {
		k.threads = append(k.threads, affinity.Thread{Process: id(i), Asleep: true})
	}
	k.threads = append(k.threads, affinity.Thread{Process: id(4)}) // a second thread, which runs
	r := &run{
		kernel: k, victims: victims, pidfds: newPidfdSet(10), guardian: &guardian{},
		swapped: map[waitgraph.KernelIdentity]uint64{id(0): 1 << 12, id(1): 0, id(2): 1 << 20, id(3): 1 << 30, id(4): 1 << 25},
	}
	defer r.pidfds.Close()
	for i := range victims {
		r.pidfds.open(&victims[i])
	}
	p, err := r.prepareReap(t.Context())
	must(t, err)
	fd := func(i int) int { n, _ := r.pidfds.get(&victims[i]); return n }
	if want := []int{fd(0), fd(2), fd(4)}; !slices.Equal(p.fds, want) || p.asleep != 2 {
		t.Errorf("to be reaped: %v, %d of them asleep; want %v, 2 of them asleep", p.fds, p.asleep, want)
	}
	if p.out.Swapped != 4 || len(p.out.LeftOut) != 1 || p.out.LeftOut[0].Err != shared {
		t.Errorf("%+v, want four swapped and one left out", p.out)
	}
	r.guardian = nil
	if p, err := r.prepareReap(t.Context()); err != nil || len(p.fds) != 0 || p.out.Swapped != 4 {
		t.Errorf("%+v, %v: nobody can be reaped early without a corral", p, err)
	}
}

// TestReaperKeepsTime: the killer does not wait for those who cannot be reaped in
// time, nor for helpers that do not come.
func TestReaperKeepsTime(t *testing.T) {
	nstest.Require(t)
	p := &reaper{fds: []int{-1, -1, -1}, helpers: []int{-1}, start: -1} // nobody answers
	deadline := clock() + uint64(20*time.Millisecond)
	p.run(deadline)
	if now := clock(); now < deadline || p.reaped != 0 {
		t.Errorf("back %d ns before the deadline, %d reaped", deadline-now, p.reaped)
	}
	p = &reaper{fds: []int{-1}, start: -1} // alone
	p.run(clock())
	if p.next != 0 {
		t.Error("it began after the deadline")
	}
	p = &reaper{fds: []int{-1}, start: -1}
	p.run(clock() + uint64(time.Minute))
	if p.done != 1 || p.reaped != 0 {
		t.Errorf("%d done, %d reaped of one descriptor that is none", p.done, p.reaped)
	}
}

// TestHelpersGiveWay: helpers let everybody run until the killer waits for them.
func TestHelpersGiveWay(t *testing.T) {
	nstest.Require(t)
	allCPUs(t)
	own, err := affinity.Get(0)
	must(t, err)
	cpu, err := affinity.CPU()
	must(t, err)
	p := &reaper{fds: []int{-1, -1, -1}, start: -1}
	must(t, p.ready(own, cpu))
	defer p.end()
	if want := min(own.Count()-1, len(p.fds)); len(p.helpers) != want {
		t.Fatalf("%d helpers on %d CPUs, want %d", len(p.helpers), own.Count(), want)
	}
	check := func(policy uint32, nice int32) {
		t.Helper()
		for _, tid := range p.helpers {
			attr, err := unix.SchedGetAttr(tid, 0)
			must(t, err)
			if attr.Policy != policy || attr.Nice != nice {
				t.Errorf("helper %d has policy %d and nice %d, want %d and %d", tid, attr.Policy, attr.Nice, policy, nice)
			}
			if where, err := affinity.Get(tid); err != nil || where.Has(cpu) {
				t.Errorf("helper %d may run where the killer does: %v", tid, err)
			}
		}
	}
	check(unix.SCHED_IDLE, 0)
	p.early = len(p.helpers) // nobody is woken: who is done is gone
	p.favour()
	check(unix.SCHED_NORMAL, -20)
}
