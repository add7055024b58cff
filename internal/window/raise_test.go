package window

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// posture is what the window changes about the killer's thread.
type posture struct {
	policy, priority uint32
	oom, locked      string
	gc               int
	cpus             affinity.Set
	blocked, ignored string // signals
	thp              int
}

func currentPosture(t *testing.T) posture {
	t.Helper()
	attr, err := unix.SchedGetAttr(0, 0)
	must(t, err)
	oom, err := os.ReadFile("/proc/self/oom_score_adj")
	must(t, err)
	status, err := os.ReadFile("/proc/thread-self/status")
	must(t, err)
	s := posture{policy: attr.Policy, priority: attr.Priority, oom: strings.TrimSpace(string(oom))}
	for _, line := range strings.Split(string(status), "\n") {
		if after, ok := strings.CutPrefix(line, "VmLck:"); ok {
			s.locked = strings.TrimSpace(after)
		}
		if after, ok := strings.CutPrefix(line, "SigBlk:"); ok {
			s.blocked = strings.TrimSpace(after)
		}
		if after, ok := strings.CutPrefix(line, "SigIgn:"); ok {
			s.ignored = strings.TrimSpace(after)
		}
	}
	s.cpus, err = affinity.Get(0)
	must(t, err)
	s.thp, err = unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
	must(t, err)
	s.gc = debug.SetGCPercent(-1)
	debug.SetGCPercent(s.gc)
	return s
}

func TestRaiseAndLower(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := currentPosture(t)
	oom := "-1000"
	s := raise(
		func(s string) { t.Errorf("warned: %s", s) },
		// Containers often withhold CAP_SYS_RESOURCE, also from root.
		func(s string) { oom = before.oom; t.Log(s) })
	if !s.promote(fifoPriority) {
		t.Error("not promoted")
	}
	raised := currentPosture(t)
	ignored, err := strconv.ParseUint(raised.ignored, 16, 64)
	must(t, err)
	if ignored&(1<<(unix.SIGTSTP-1)) == 0 {
		t.Error("the terminal can stop it")
	}
	s.lower()
	if raised.policy != unix.SCHED_FIFO || raised.priority != fifoPriority || raised.oom != oom ||
		raised.locked == "0 kB" || raised.gc != -1 || raised.thp != 1 {
		t.Errorf("raised to %+v", raised)
	}
	if after := currentPosture(t); after != before {
		t.Errorf("lowered to %+v, it was %+v", after, before)
	}
	if nstest.InVM() && oom != "-1000" {
		t.Error("a guest's root may lower oom_score_adj, but raise did not")
	}
}

// TestRaiseKeepsIgnored: who started the killer may have had it ignore the terminal.
func TestRaiseKeepsIgnored(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old, err := setAction(unix.SIGTSTP, sigaction{handler: sigIgn})
	must(t, err)
	defer setAction(unix.SIGTSTP, old)
	before := currentPosture(t)
	raise(func(string) {}, func(string) {}).lower()
	if after := currentPosture(t); after != before {
		t.Errorf("lowered to %+v, it was %+v", after, before)
	}
}

// TestRaiseWithoutPrivileges goes as far as it may, says so, and still undoes it.
func TestRaiseWithoutPrivileges(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := currentPosture(t)
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
	s := raise(note, note)
	if s.promote(fifoPriority) {
		t.Error("promoted without CAP_SYS_NICE")
	}
	s.lower()
	if after := currentPosture(t); after != before {
		t.Errorf("lowered to %+v, it was %+v", after, before)
	}
	for _, want := range []string{"CAP_SYS_RESOURCE", "CAP_IPC_LOCK", "CAP_SYS_NICE"} {
		if !strings.Contains(strings.Join(said, "\n"), want) {
			t.Errorf("nothing was said of %s: %q", want, said)
		}
	}
}

// fake is a Kernel of the test's own making. Its batch engine does not exist.
type fake struct {
	procs                       []waitgraph.Process
	threads                     []affinity.Thread
	sharing                     map[waitgraph.KernelIdentity]error
	failArm, failThreads        error
	failLater                   error // of Processes, but the first time
	looks                       int
	left                        time.Duration // of CPULeft
	leftKnown                   bool
	armed, disarmed             int
	opened, delivered, released uint64
}

func (k *fake) Doom([]waitgraph.Process) error { return nil }
func (k *fake) Inherit(func(waitgraph.KernelIdentity) bool) ([]waitgraph.KernelIdentity, error) {
	return nil, nil
}
func (k *fake) Processes() ([]waitgraph.Process, error) {
	k.looks++
	if k.looks > 1 && k.failLater != nil {
		return nil, k.failLater
	}
	return k.procs, nil
}
func (k *fake) Arm(time.Duration) error             { k.armed++; return k.failArm }
func (k *fake) DeliveryErrors() ([]error, error)    { return make([]error, len(k.procs)), nil }
func (k *fake) Disarm() error                       { k.disarmed++; return nil }
func (k *fake) Threads() ([]affinity.Thread, error) { return k.threads, k.failThreads }
func (k *fake) Births() uint64                      { return 0 }
func (k *fake) CPULeft() (time.Duration, bool)      { return k.left, k.leftKnown }
func (k *fake) Switches() (window, reap uint64)     { return 0, 0 }
func (k *fake) SharedMemory(context.Context, []affinity.Thread, []affinity.Thread) (map[waitgraph.KernelIdentity]error, error) {
	return k.sharing, nil
}
func (k *fake) Batch() (unsafe.Pointer, uintptr) { return nil, 0 }
func (k *fake) Clocks() (opened, delivered, released *uint64) {
	return &k.opened, &k.delivered, &k.released
}

// TestFailuresLeaveNothingRaised: whatever fails, the killer is as it was before
// and nothing stays armed once the window was open.
func TestFailuresLeaveNothingRaised(t *testing.T) {
	nstest.Require(t)
	broken := errors.New("broken")
	for _, test := range []struct {
		name    string
		engine  Engine
		kernel  fake
		want    error
		outcome bool
		dead    bool
	}{
		{"arm", EngineLoop, fake{failArm: broken}, broken, false, false},
		{"deliver", EngineBatch, fake{}, unix.EINVAL, true, false},
		{"no corral", EngineLoop, fake{failThreads: broken}, nil, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := currentPosture(t)
			p := startIdle(t)
			self := waitgraph.Process{Identity: waitgraph.Identity{PID: int32(p.Process.Pid)},
				KernelPID: int32(p.Process.Pid), Comm: "idle", State: 'S', Threads: 1}
			test.kernel.procs = []waitgraph.Process{self}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			o := options(test.engine, nil)
			o.Timeout = time.Millisecond
			var warned []string
			o.Warn = func(s string) { warned = append(warned, s) }
			out, err := Run(ctx, &test.kernel, test.kernel.procs, o)
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if (out != nil) != test.outcome {
				t.Errorf("outcome %+v", out)
			}
			if test.want != nil && out != nil && (out.Signalled != 0 || len(out.Refused) != 1) {
				t.Errorf("%+v, want an outcome that refuses one", out)
			}
			if test.want == nil && !strings.Contains(strings.Join(warned, "\n"), "no corral: broken") {
				t.Errorf("warned %q, not of the corral that could not be", warned)
			}
			if after := currentPosture(t); after != before {
				t.Errorf("left at %+v, it was %+v", after, before)
			}
			if test.outcome && test.kernel.disarmed == 0 {
				t.Error("it stays armed")
			}
			eventually(t, "the process is dead, or lives as it should", func() bool { return dead(p.Process.Pid) == test.dead })
		})
	}
}

// TestUnknownIsNotGone: where nobody can be looked at any more, of those who were not
// seen dead before nobody is said to be gone.
func TestUnknownIsNotGone(t *testing.T) {
	nstest.Require(t)
	broken := errors.New("broken")
	p, dead := startIdle(t), startIdle(t)
	must(t, dead.Process.Kill())
	dead.Wait()
	k := &fake{failLater: broken}
	for i, pid := range []int{p.Process.Pid, dead.Process.Pid} {
		k.procs = append(k.procs, waitgraph.Process{Identity: waitgraph.Identity{PID: int32(pid), StartNS: uint64(i)},
			KernelPID: int32(pid), Comm: "idle", State: 'S', Threads: 1})
	}
	victims := k.procs
	k.procs = victims[:1]
	o := options(EngineLoop, nil)
	o.Timeout = 10 * tick
	o.Warn = func(s string) { t.Log(s) }
	out, err := Run(t.Context(), k, victims, o)
	if !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
	if out == nil || out.Signalled != 1 || out.Gone != 0 || len(out.Skipped) != 1 || len(out.Survivors) != 1 ||
		out.Survivors[0].PID != victims[0].PID || out.Survivors[0].State != stateUnknown {
		t.Errorf("%+v, want one of whom nothing is known", out)
	}
	if k.looks < 3 {
		t.Errorf("it gave up after %d looks", k.looks)
	}
	if k.disarmed == 0 {
		t.Error("it stays armed")
	}
}

// TestShotDoesNotAllocate inside the window.
func TestShotDoesNotAllocate(t *testing.T) {
	nstest.Require(t)
	p := startIdle(t)
	must(t, p.Process.Kill())
	eventually(t, "a zombie to signal again and again", func() bool { return dead(p.Process.Pid) })
	k := newKernel(t)
	for _, engine := range engines() {
		r := &run{kernel: k, pidfds: newPidfdSet(100), Options: Options{Engine: engine}}
		defer r.pidfds.Close()
		for i := range 50 {
			r.victims = append(r.victims, waitgraph.Process{
				Identity: waitgraph.Identity{PID: int32(p.Process.Pid), StartNS: uint64(i)}, KernelPID: int32(p.Process.Pid)})
			if !r.pidfds.open(&r.victims[i]) {
				t.Fatal("no descriptor")
			}
		}
		must(t, k.Doom(r.victims))
		e, err := r.newEngine()
		must(t, err)
		defer e.close()
		shot := r.newShot()
		e.load(shot)
		if n := testing.AllocsPerRun(100, shot.fire); n != 0 || shot.failed != 0 {
			t.Errorf("%v: the shot allocates %v times, error %d", engine, n, shot.failed)
		}
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
