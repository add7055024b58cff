package window

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// pulseVariable makes this binary a process that counts in the file that is its
// descriptor 3, as fast as it can: "cpu priority", -1 for any CPU, 0 for no real-time
// priority.
const pulseVariable = "BPFKILL_WINDOW_PULSE"

// pulseLimit is how long one of a real-time priority runs at most.
const pulseLimit = 10 * time.Second

func pulse(args string) error {
	runtime.LockOSThread()
	var cpu int
	var priority uint32
	if _, err := fmt.Sscan(args, &cpu, &priority); err != nil {
		return err
	}
	mem, err := unix.Mmap(3, 0, 8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if cpu >= 0 {
		only := affinity.Only(cpu)
		if errno := affinity.Apply(0, &only); errno != 0 {
			return errno
		}
	}
	limit := never
	if priority > 0 {
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
		if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
			return err
		}
		limit = clock() + uint64(pulseLimit)
	}
	// The Go scheduler preempts by a signal, and has the thread sleep until another
	// takes its turn: who is to have a CPU would leave it.
	blockSignals()
	for count := (*uint64)(unsafe.Pointer(&mem[0])); clock() < limit; {
		atomic.AddUint64(count, 1)
	}
	return errors.New("that was long enough")
}

// runner is such a process, which lives until the test ends.
type runner struct {
	*exec.Cmd
	count *uint64
}

func startRunner(t *testing.T, cpu int, priority uint32) *runner {
	t.Helper()
	fd, err := unix.MemfdCreate("count", unix.MFD_CLOEXEC)
	must(t, err)
	f := os.NewFile(uintptr(fd), "count")
	defer f.Close()
	must(t, f.Truncate(8))
	mem, err := unix.Mmap(fd, 0, 8, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(mem)) })
	r := &runner{exec.Command("/proc/self/exe"), (*uint64)(unsafe.Pointer(&mem[0]))}
	r.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", pulseVariable, cpu, priority))
	r.ExtraFiles = []*os.File{f}
	r.Stderr = os.Stderr
	must(t, r.Start())
	t.Cleanup(func() {
		r.Process.Kill()
		r.Wait()
	})
	eventually(t, "it counts", func() bool { return r.counted() > 0 })
	return r
}

// threeRunners start anywhere.
func threeRunners(t *testing.T) (runners []*runner, pids []int) {
	t.Helper()
	for range 3 {
		r := startRunner(t, -1, 0)
		runners, pids = append(runners, r), append(pids, r.Process.Pid)
	}
	return runners, pids
}

func (r *runner) counted() uint64 { return atomic.LoadUint64(r.count) }

// held is a corral around processes that nobody signals, in which the killer reaps,
// again and again, what is none.
type held struct {
	*corral
	reaper *reaper
	stance *stance
}

// hold prepares it; close closes it, and free undoes both.
func hold(t *testing.T, pids ...int) *held {
	t.Helper()
	k := newKernel(t)
	all := processes(t, k)
	victims := byPID(all, pids...)
	must(t, k.Doom(victims))
	_, err := k.Inherit(func(waitgraph.KernelIdentity) bool { return true })
	must(t, err)
	g, err := startGuardian()
	must(t, err)
	t.Cleanup(func() { must(t, g.dismiss()) })
	c, err := prepareCorral(t.Context(), k, g)
	must(t, err)
	procs := runtime.GOMAXPROCS(8)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	return &held{c, &reaper{fds: slices.Repeat([]int{-1}, 1<<16), start: -1}, nil}
}

func (h *held) close(t *testing.T, moves bool) {
	t.Helper()
	h.stance = raise(func(s string) { t.Error(s) }, func(string) {})
	if moves {
		must(t, h.reaper.prepareMoves(h.corral, h.priority()))
	}
	must(t, h.awaitTime(t.Context(), h.reaper.mover, fifoLimit))
	if !h.stance.promote(h.priority() + 1) {
		t.Fatal("no SCHED_FIFO")
	}
	if err := h.corral.close(time.Now()); err != nil || !h.closed {
		h.free(t)
		t.Fatalf("not closed: %v", err)
	}
}

// wait is what the killer does for some time. It returns how far each of some was
// counted meanwhile. Between the two looks at the counts is no call but of functions
// without stack checks: it leaves the Go scheduler out, as a window does.
func (h *held) wait(d time.Duration, runners ...*runner) []uint64 {
	counts, ran := make([]*uint64, len(runners)), make([]uint64, len(runners))
	for i, r := range runners {
		counts[i] = r.count
	}
	blocked := blockSignals()
	end := clock() + uint64(d)
	for i, count := range counts {
		ran[i] -= *count
	}
	h.reaper.mover.begin(clock())
	for clock() < end {
		h.reaper.next, h.reaper.done, h.reaper.stop = 0, 0, 0
		h.reaper.run(end)
	}
	for i, count := range counts {
		ran[i] += *count
	}
	setSignals(&blocked, nil)
	return ran
}

func (h *held) free(t *testing.T) {
	t.Helper()
	h.reaper.mover.settle()
	h.leave()
	h.stance.demote()
	must(t, h.open())
	h.reaper.end()
	h.stance.lower()
	requireOwnTrace(t)
}

// requireOwnTrace fails where a thread of this process has kept a policy or a CPU.
func requireOwnTrace(t *testing.T) {
	t.Helper()
	everywhere := allCPUs(t)
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		var tid int
		_, err := fmt.Sscan(task.Name(), &tid)
		must(t, err)
		attr, err := unix.SchedGetAttr(tid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		must(t, err)
		if cpus, err := affinity.Get(tid); err == nil && (attr.Policy != unix.SCHED_NORMAL || cpus != everywhere) {
			t.Errorf("thread %d of the killer has kept policy %d, CPUs %x", tid, attr.Policy, cpus[0])
		}
	}
}

// TestNobodyRunsOnIdleCPUs: nor where nobody else wants a CPU. The kernel takes a CPU
// from a real-time thread for ordinary ones that have waited long enough, and reckons
// that in its own way where they had not wanted it for a while (dl_server, Linux 6.12).
func TestNobodyRunsOnIdleCPUs(t *testing.T) {
	allCPUs(t)
	targets, pids := threeRunners(t)
	moves := 0
	for _, pause := range []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, 700 * time.Millisecond} {
		h := hold(t, pids...)
		for _, r := range targets {
			must(t, unix.Kill(r.Process.Pid, unix.SIGSTOP))
		}
		time.Sleep(pause)
		for _, r := range targets {
			must(t, unix.Kill(r.Process.Pid, unix.SIGCONT))
		}
		h.close(t, true)
		ran := h.wait(fifoLimit/2, targets...)
		moves += h.reaper.mover.moves
		h.free(t)
		if slices.Max(ran) != 0 {
			t.Errorf("after a pause of %v the targets counted %v in the corral", pause, ran)
		}
	}
	if moves == 0 {
		t.Error("the corral did not move")
	}
}

// TestCorralMoves: those who wait for the corral's CPU get it, and still no target
// runs. Where it stays, they wait in vain.
func TestCorralMoves(t *testing.T) {
	for _, moves := range []bool{true, false} {
		t.Run(fmt.Sprint(moves), func(t *testing.T) {
			allCPUs(t)
			targets, pids := threeRunners(t)
			for range 10 {
				pids = append(pids, startIdle(t).Process.Pid)
			}
			h := hold(t, pids...)
			beside := []*runner{startRunner(t, h.cpu, 0), startRunner(t, h.other, 0)}
			h.close(t, moves)
			ran := h.wait(fifoLimit/2, append(targets, beside...)...)
			h.free(t)
			if ran[0] != 0 || ran[1] != 0 || ran[2] != 0 {
				t.Errorf("the targets counted %v in the corral", ran[:3])
			}
			if moves != (ran[3] > 0) || ran[4] == 0 {
				t.Errorf("beside it were counted %v", ran[3:])
			}
			if out := h.outcome(nil); (out.Moves > 0) != moves {
				t.Errorf("%d moves", out.Moves)
			} else {
				t.Logf("%d moves, counted on the two CPUs: %v", out.Moves, ran[3:])
			}
			for _, r := range targets {
				was := r.counted()
				eventually(t, "it runs again", func() bool { return r.counted() > was })
				if got, err := affinity.Get(r.Process.Pid); err != nil || got != allCPUs(t) {
					t.Errorf("a target may run on %x now, %v", got[0], err)
				}
			}
		})
	}
}

// TestCorralStays where a cpuset forbids somebody the other CPU: all are where they
// were, and no move is tried again.
func TestCorralStays(t *testing.T) {
	allCPUs(t)
	targets, pids := threeRunners(t)
	bound := targets[1]
	cpu := -1
	cpus := allCPUs(t)
	cpus.Each(func(c int) { cpu = c })
	moveInto(t, cpusetOf(t, cpu), bound.Process.Pid)
	h := hold(t, pids...)
	if h.cpu != cpu {
		t.Fatalf("a corral on CPU %d, want %d, where all may run", h.cpu, cpu)
	}
	h.close(t, true)
	ran := h.wait(5*turn, targets...)
	next, moves := h.reaper.mover.next, h.reaper.mover.moves
	where, err := affinity.Get(0)
	must(t, err)
	for _, r := range targets {
		if got, err := affinity.Get(r.Process.Pid); err != nil || got != affinity.Only(cpu) {
			t.Errorf("a target may run on %x, %v", got[0], err)
		}
	}
	h.free(t)
	if moves != 0 || next != never || where != affinity.Only(cpu) {
		t.Errorf("%d moves, the next at %d, the killer may run on %x", moves, next, where[0])
	}
	if slices.Max(ran) != 0 {
		t.Errorf("targets counted %d in a corral that stayed", ran)
	}
	bound.Process.Kill()
	bound.Wait() // a zombie stays in its cgroup
}

// holdHere prepares a corral around one who runs, and keeps this thread on its CPU: on the
// other one it would have to wait for who is going to have that.
func holdHere(t *testing.T) (*runner, *held) {
	t.Helper()
	target := startRunner(t, -1, 0)
	h := hold(t, target.Process.Pid)
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	here := affinity.Only(h.cpu)
	must(t, errnoError(affinity.Apply(0, &here)))
	t.Cleanup(func() { affinity.Apply(0, &h.own) })
	return target, h
}

// TestCorralWaitsForTheCPU: somebody of a higher priority has the other CPU. The
// corral stays, and moves when it can.
func TestCorralWaitsForTheCPU(t *testing.T) {
	allCPUs(t)
	target, h := holdHere(t)
	busy := startRunner(t, h.other, 50)
	must(t, unix.Kill(busy.Process.Pid, unix.SIGSTOP))
	time.Sleep(leftPatience) // until the kernel has forgotten what it had
	h.close(t, true)
	unix.Kill(busy.Process.Pid, unix.SIGCONT)
	ran := h.wait(3*turn, target)
	stayed := h.reaper.mover.moves
	unix.Kill(busy.Process.Pid, unix.SIGKILL)
	ran = append(ran, h.wait(500*time.Millisecond, target)...)
	moved := h.reaper.mover.moves
	h.free(t)
	if stayed != 0 || moved == 0 || slices.Max(ran) != 0 {
		t.Errorf("%d moves while the CPU was taken, %d after that, the target counted %d", stayed, moved, ran)
	}
}

// TestGuardianKnowsBoth CPUs of a corral that moves.
func TestGuardianKnowsBoth(t *testing.T) {
	everywhere := allCPUs(t)
	var cpus []int
	everywhere.Each(func(cpu int) { cpus = append(cpus, cpu) })
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	must(t, err)
	memfd := os.NewFile(uintptr(fd), "test")
	defer memfd.Close()
	table, err := newTable(memfd, 2, cpus[0], cpus[1], bootTimeNS())
	must(t, err)
	defer table.unmap()
	procs := []*idle{startIdle(t), startIdle(t)}
	for i, p := range procs {
		pid := int32(p.Process.Pid)
		if !table.add(&affinity.Thread{TID: pid, PID: pid}, &everywhere, bootTimeNS()) {
			t.Fatal("no room")
		}
		confined := affinity.Only(cpus[i])
		if errno := affinity.Apply(pid, &confined); errno != 0 {
			t.Fatal(errno)
		}
	}
	newRestorer(table).recorded()
	for i, p := range procs {
		if got, err := affinity.Get(p.Process.Pid); err != nil || got != everywhere {
			t.Errorf("process %d may run on %x, %v", i, got[0], err)
		}
	}
}

// TestNobodyRunsAfterRealTime: somebody of a real-time priority had a CPU of the corral's
// for himself until just now, and the kernel has reckoned with that (see awaitTime).
func TestNobodyRunsAfterRealTime(t *testing.T) {
	everywhere := allCPUs(t)
	everywhere.Each(func(cpu int) {
		t.Run(fmt.Sprint("CPU ", cpu), func(t *testing.T) {
			targets, pids := threeRunners(t)
			h := hold(t, pids...)
			hog := startRunner(t, cpu, 50)
			time.Sleep(920 * time.Millisecond)
			must(t, hog.Process.Kill())
			hog.Wait()
			h.close(t, true)
			ran := h.wait(fifoLimit*9/10, targets...)
			moves := h.reaper.mover.moves
			h.free(t)
			if slices.Max(ran) != 0 {
				t.Errorf("the targets counted %v in the corral on CPU %d, which moved %d times", ran, h.cpu, moves)
			}
		})
	})
}

// TestShortCorral: real-time threads go on having the CPU. The killer keeps to what the
// kernel leaves of it.
func TestShortCorral(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := affinity.Get(0)
	must(t, err)
	defer affinity.Apply(0, &own)
	cpu, err := affinity.CPU()
	must(t, err)
	full := realTimeLimit(fifoLimit)
	for _, test := range []struct {
		left  time.Duration
		known bool
		limit time.Duration
		other bool // whether it may move
	}{
		{0, false, full, true},
		{full + leftMargin, true, full, true},
		{full, true, full - leftMargin, false},
		{leftMargin / 2, true, 0, false},
	} {
		k := &fake{left: test.left, leftKnown: test.known}
		c, m := &corral{kernel: k, cpu: cpu, sets: setsOf(cpu, -1), own: own}, &mover{}
		err := c.awaitTime(t.Context(), m, fifoLimit)
		if c.limit != test.limit || (err != nil) != (test.limit < full) || (m.next != never) != test.other {
			t.Errorf("%v left, %v: %v for the killer, moves at %d, %v", test.left, test.known, c.limit, m.next, err)
		}
	}
	// Without time nobody is confined.
	c := &corral{kernel: &fake{leftKnown: true}, cpu: cpu, sets: setsOf(cpu, -1), own: own}
	c.threads = []corralled{{}}
	if err := c.close(time.Now().Add(-time.Millisecond)); err == nil {
		t.Error("a corral was closed that the killer has no time for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	if err := c.awaitTime(ctx, nil, fifoLimit); err == nil || time.Since(began) > leftPatience/2 {
		t.Errorf("interrupted, it waited %v, and said %v", time.Since(began), err)
	}
}

// TestOtherCPUHasNoTime: who has the other CPU of the corral for himself keeps nobody
// waiting. The corral stays.
func TestOtherCPUHasNoTime(t *testing.T) {
	allCPUs(t)
	target, h := holdHere(t)
	startRunner(t, h.other, 50)
	h.close(t, true)
	ran := h.wait(5*turn, target)
	moves := h.reaper.mover.moves
	h.free(t)
	if moves != 0 || ran[0] != 0 {
		t.Errorf("%d moves, the target counted %d", moves, ran[0])
	}
}
