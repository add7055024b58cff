package window

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// stance is what raise changes.
type stance struct {
	policy, priority uint32
	oom, locked      string
	gc               int
}

func currentStance(t *testing.T) stance {
	t.Helper()
	attr, err := unix.SchedGetAttr(0, 0)
	must(t, err)
	oom, err := os.ReadFile("/proc/self/oom_score_adj")
	must(t, err)
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	s := stance{policy: attr.Policy, priority: attr.Priority, oom: strings.TrimSpace(string(oom))}
	for _, line := range strings.Split(string(status), "\n") {
		if after, ok := strings.CutPrefix(line, "VmLck:"); ok {
			s.locked = strings.TrimSpace(after)
		}
	}
	s.gc = debug.SetGCPercent(-1)
	debug.SetGCPercent(s.gc)
	return s
}

func TestRaiseAndLower(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := currentStance(t)
	oom := "-1000"
	lower, err := raise(
		func(s string) { t.Errorf("warned: %s", s) },
		// Containers often withhold CAP_SYS_RESOURCE, also from root.
		func(s string) { oom = before.oom; t.Log(s) })
	must(t, err)
	raised := currentStance(t)
	lower()
	if raised.policy != unix.SCHED_FIFO || raised.priority != fifoPriority || raised.oom != oom ||
		raised.locked == "0 kB" || raised.gc != -1 {
		t.Errorf("raised to %+v", raised)
	}
	if after := currentStance(t); after != before {
		t.Errorf("lowered to %+v, it was %+v", after, before)
	}
	if os.Getenv(nstest.VMVariable) == "1" && oom != "-1000" {
		t.Error("a guest's root may lower oom_score_adj, but raise did not")
	}
}

// TestRaiseWithoutPrivileges goes as far as it may, says so, and still undoes it.
func TestRaiseWithoutPrivileges(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := currentStance(t)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	must(t, unix.Capget(&hdr, &caps[0]))
	all := caps
	for _, c := range []int{unix.CAP_SYS_NICE, unix.CAP_IPC_LOCK, unix.CAP_SYS_RESOURCE} {
		caps[c/32].Effective &^= 1 << (c % 32)
	}
	var memlock unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_MEMLOCK, &memlock))
	must(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 0, Max: memlock.Max}))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &memlock)) }()
	must(t, unix.Capset(&hdr, &caps[0]))
	defer func() { must(t, unix.Capset(&hdr, &all[0])) }()

	var said []string
	note := func(s string) { said = append(said, s) }
	lower, err := raise(note, note)
	must(t, err)
	lower()
	if after := currentStance(t); after != before {
		t.Errorf("lowered to %+v, it was %+v", after, before)
	}
	for _, want := range []string{"CAP_SYS_RESOURCE", "CAP_IPC_LOCK", "CAP_SYS_NICE"} {
		if !strings.Contains(strings.Join(said, "\n"), want) {
			t.Errorf("nothing was said of %s: %q", want, said)
		}
	}
}

// fake is a Kernel of the test's own making.
type fake struct {
	procs                    []waitgraph.Process
	failArm, failOpen, failD error
	armed, opened, disarmed  int
}

func (k *fake) Doom([]waitgraph.Process) error { return nil }
func (k *fake) Inherit(func(waitgraph.KernelIdentity) bool) ([]waitgraph.KernelIdentity, error) {
	return nil, nil
}
func (k *fake) Processes() ([]waitgraph.Process, error) { return k.procs, nil }
func (k *fake) Arm(time.Duration) error                 { k.armed++; return k.failArm }
func (k *fake) Open() error                             { k.opened++; return k.failOpen }
func (k *fake) Deliver() error                          { k.opened++; return k.failD }
func (k *fake) DeliveryErrors() ([]error, error)        { return make([]error, len(k.procs)), nil }
func (k *fake) Disarm() error                           { k.disarmed++; return nil }

// TestFailuresLeaveNothingRaised: whatever fails, the killer is as it was before
// and nothing stays armed once the window was open.
func TestFailuresLeaveNothingRaised(t *testing.T) {
	nstest.Require(t)
	broken := errors.New("broken")
	for _, test := range []struct {
		name    string
		engine  Engine
		kernel  fake
		outcome bool
	}{
		{"arm", EngineLoop, fake{failArm: broken}, false},
		{"open", EngineLoop, fake{failOpen: broken}, true},
		{"deliver", EngineBatch, fake{failD: broken}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := currentStance(t)
			p := startIdle(t)
			test.kernel.procs = []waitgraph.Process{{Identity: waitgraph.Identity{PID: int32(p.Process.Pid)},
				KernelPID: int32(p.Process.Pid), Comm: "idle", State: 'S', Threads: 1}}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			o := options(test.engine, nil)
			o.Timeout = time.Millisecond
			out, err := Run(ctx, &test.kernel, test.kernel.procs, o)
			if !errors.Is(err, broken) {
				t.Errorf("%v, want %v", err, broken)
			}
			if test.outcome && (out == nil || out.Signalled != 0 || len(out.Refused) != 1) {
				t.Errorf("%+v, want an outcome that refuses one", out)
			}
			if after := currentStance(t); after != before {
				t.Errorf("left at %+v, it was %+v", after, before)
			}
			if test.outcome && test.kernel.disarmed == 0 {
				t.Error("it stays armed")
			}
			if dead(p.Process.Pid) {
				t.Error("a process was killed although the engine failed")
			}
		})
	}
}

// TestLoopDoesNotAllocate inside the window.
func TestLoopDoesNotAllocate(t *testing.T) {
	nstest.Require(t)
	p := startIdle(t)
	must(t, p.Process.Kill())
	eventually(t, "a zombie to signal again and again", func() bool { return dead(p.Process.Pid) })
	r := &run{kernel: &fake{}, pidfds: newPidfdSet(100)}
	defer r.pidfds.Close()
	for i := range 50 {
		r.victims = append(r.victims, waitgraph.Process{
			Identity: waitgraph.Identity{PID: int32(p.Process.Pid), StartNS: uint64(i)}, KernelPID: int32(p.Process.Pid)})
		if !r.pidfds.open(&r.victims[i]) {
			t.Fatal("no descriptor")
		}
	}
	e, err := r.newEngine()
	must(t, err)
	defer e.close()
	if n := testing.AllocsPerRun(100, func() { must(t, e.deliver()) }); n != 0 {
		t.Errorf("deliver allocates %v times", n)
	}
}

// TestPidfdSet: what is gone takes no descriptor, and nothing leaks.
func TestPidfdSet(t *testing.T) {
	nstest.Require(t)
	at := func(pid int, start uint64) *waitgraph.Process {
		return &waitgraph.Process{Identity: waitgraph.Identity{PID: int32(pid), StartNS: start}, KernelPID: int32(pid)}
	}
	open := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(d)
	}
	before := open()
	a, b, gone := startIdle(t), startIdle(t), startIdle(t)
	before += open() - before // their standard input
	must(t, gone.Process.Kill())
	gone.Wait()
	s := newPidfdSet(2)
	for i, test := range []struct {
		p  *waitgraph.Process
		ok bool
	}{
		{at(gone.Process.Pid, 1), true}, {at(a.Process.Pid, 1), true}, {at(a.Process.Pid, 1), true},
		{at(b.Process.Pid, 1), true}, {at(b.Process.Pid, 2), false},
	} {
		if ok := s.open(test.p); ok != test.ok {
			t.Errorf("%d: open says %v", i, ok)
		}
	}
	if fd, ok := s.get(at(gone.Process.Pid, 1)); fd != -1 || !ok {
		t.Errorf("gone: %d, %v", fd, ok)
	}
	s.forget(at(a.Process.Pid, 1).KernelIdentity())
	if !s.open(at(b.Process.Pid, 2)) {
		t.Error("no room after forget")
	}
	s.drop(at(b.Process.Pid, 2).KernelIdentity())
	if _, ok := s.get(at(b.Process.Pid, 2)); ok {
		t.Error("still there after drop")
	}
	must(t, s.Close())
	if after := open(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	if errno := pidfdKill(-1); errno != unix.ESRCH {
		t.Error(fmt.Sprint(errno))
	}
}
