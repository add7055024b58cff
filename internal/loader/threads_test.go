package loader

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestThreadsOfTheDoomed: all of them and nobody else's, with what the kernel
// itself says of each.
func TestThreadsOfTheDoomed(t *testing.T) {
	e := newExecutor(t)
	idle, other := start(t, "idle", nil).PID, start(t, "idle", nil).PID
	self, err := unix.Getpgid(0)
	must(t, err)
	snap := take(t)
	must(t, e.Doom([]waitgraph.Process{snap.process(t, idle), snap.process(t, os.Getpid())}))
	threads, err := e.Threads()
	must(t, err)
	own := 0
	for i := range threads {
		th := &threads[i]
		switch int(th.PID) {
		case other:
			t.Error("a thread of a process that is not doomed")
		case os.Getpid():
			own++
			fallthrough
		case idle:
			allowed, err := affinity.Get(int(th.TID))
			if err == nil && allowed != th.Allowed {
				t.Errorf("thread %d: allowed %x, the kernel says %x", th.TID, th.Allowed[0], allowed[0])
			}
			if int(th.PGID) != self || th.Policy != unix.SCHED_NORMAL || th.RTPriority != 0 {
				t.Errorf("%+v, want group %d and no real-time policy", th, self)
			}
		}
	}
	if tasks, err := os.ReadDir("/proc/self/task"); err != nil || own == 0 || own > len(tasks) {
		t.Errorf("%d threads of this process, it has %d (%v)", own, len(tasks), err)
	}
	if !slices.ContainsFunc(threads, func(th affinity.Thread) bool { return int(th.TID) == idle && int(th.PID) == idle }) {
		t.Errorf("no thread of process %d", idle)
	}
}

// TestWantedRestores: what a thread is given back is what it had, the wish of
// somebody who never asked included.
func TestWantedRestores(t *testing.T) {
	e := newExecutor(t)
	asked, never := start(t, "idle", nil).PID, start(t, "idle", nil).PID
	everywhere, err := affinity.Get(never)
	must(t, err)
	one := affinity.Set{}
	everywhere.Each(func(cpu int) { one = affinity.Only(cpu) })
	if errno := affinity.Apply(int32(asked), &one); errno != 0 {
		t.Fatal(errno)
	}
	snap := take(t)
	must(t, e.Doom([]waitgraph.Process{snap.process(t, asked), snap.process(t, never)}))
	threads, err := e.Threads()
	must(t, err)
	elsewhere := affinity.Only(0)
	leaders := 0
	for i := range threads {
		th := &threads[i]
		if th.TID != th.PID {
			continue // a Go program has several
		}
		leaders++
		want := map[int]affinity.Set{asked: one, never: everywhere}[int(th.PID)]
		for _, s := range []*affinity.Set{&elsewhere, &th.Wanted} {
			if errno := affinity.Apply(th.TID, s); errno != 0 {
				t.Fatal(errno)
			}
		}
		if got, err := affinity.Get(int(th.TID)); err != nil || got != want || th.Allowed != want {
			t.Errorf("thread %d: %x, read as %x, restored to %x (%v)", th.TID, want[0], th.Allowed[0], got[0], err)
		}
	}
	if leaders != 2 {
		t.Errorf("%d processes, want 2", leaders)
	}
}

// TestBirthsOfTheDoomed counts their threads and children, nobody else's.
func TestBirthsOfTheDoomed(t *testing.T) {
	e := newExecutor(t)
	must(t, exec.Command("/proc/self/exe", "-test.run=^$").Run())
	if n := e.Births(); n != 0 {
		t.Errorf("%d births although nobody is doomed", n)
	}
	must(t, e.Doom([]waitgraph.Process{take(t).process(t, os.Getpid())}))
	if _, err := e.Inherit(func(waitgraph.KernelIdentity) bool { return true }); err != nil {
		t.Fatal(err)
	}
	must(t, exec.Command("/proc/self/exe", "-test.run=^$").Run())
	// The child, and its own threads: a Go program has several.
	if n := e.Births(); n < 2 {
		t.Errorf("%d births, want a child and its threads", n)
	}
}

// TestSwitchesToTheDoomed counts them while the window is open, and by phase.
func TestSwitchesToTheDoomed(t *testing.T) {
	e := newExecutor(t)
	p := start(t, "echo", nil)
	must(t, e.Doom([]waitgraph.Process{take(t).process(t, p.PID)}))
	must(t, e.attach(executeProgCountSwitch))
	opened, delivered, released := e.Clocks()
	for _, phase := range []struct {
		name         string
		store        *uint64
		window, reap bool
	}{
		{"before the opening", new(uint64), false, false},
		{"while signals are sent", opened, true, false},
		{"while the corral is closed", delivered, false, true},
		{"after the release", released, false, false},
	} {
		eventually(t, "it sleeps until the next line", func() bool { return someThreadIn(p.PID, unix.SYS_READ) })
		*phase.store = 1
		window, reap := e.Switches()
		if _, err := p.in.Write([]byte("run\n")); err != nil {
			t.Fatal(err)
		}
		p.says(t)
		w, r := e.Switches()
		if (w > window) != phase.window || (r > reap) != phase.reap {
			t.Errorf("%s: %d switches in the window and %d in the reap", phase.name, w-window, r-reap)
		}
	}
}

// TestCPULeft: it is known from Linux 5.14 on, less than a second, and begins anew for who
// is ordinary.
func TestCPULeft(t *testing.T) {
	e := newExecutor(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	left, ok := e.CPULeft()
	if known := nstest.KernelAtLeast(t, 5, 14); ok != known {
		t.Fatalf("known is %v, want %v", ok, known)
	} else if !known {
		return
	}
	// Real-time threads of other tests may have had the CPU.
	for begin := time.Now(); left < 900*time.Millisecond && time.Since(begin) < 5*time.Second; {
		left, ok = e.CPULeft()
	}
	if !ok || left < 900*time.Millisecond || left > 950*time.Millisecond {
		t.Errorf("%v are left, %v", left, ok)
	}
}
