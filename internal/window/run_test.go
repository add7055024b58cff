package window

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

func checkAllGone(t *testing.T, out *Outcome, n int) {
	t.Helper()
	if out.Signalled != n || out.Gone != n || len(out.Survivors)+len(out.Skipped)+len(out.Refused) != 0 {
		t.Errorf("%+v, want %d signalled and gone", out, n)
	}
}

// TestRunKillsInOrder: everybody dies, nobody wakes, and the dead count as gone
// although their parent, this process, does not reap them.
func TestRunKillsInOrder(t *testing.T) {
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			k := newKernel(t)
			s := stage(t, "smtp", 20)
			all := processes(t, k)
			victims := membersOf(t, s, all)
			// Waiters come behind those they wait on: kill from the end.
			for i, j := 0, len(victims)-1; i < j; i, j = i+1, j-1 {
				victims[i], victims[j] = victims[j], victims[i]
			}
			progress := 0
			o := options(engine, all)
			o.Progress = func(gone, total int) {
				if gone < 0 || gone > total {
					t.Errorf("progress %d of %d", gone, total)
				}
				progress = gone
			}
			out, err := Run(t.Context(), k, victims, o)
			must(t, err)
			checkAllGone(t, out, len(victims))
			if out.Rounds != 1 || progress != len(victims) {
				t.Errorf("%d rounds, progress up to %d of %d", out.Rounds, progress, len(victims))
			}
			if woken := s.Woken(); len(woken) != 0 {
				t.Errorf("%d processes ran user code", len(woken))
			}
			if alive, err := s.Alive(); err != nil || len(alive) != 0 {
				t.Errorf("%d are alive, %v", len(alive), err)
			}
		})
	}
}

// TestForkersLeaveNobody: processes that fork as fast as they can.
func TestForkersLeaveNobody(t *testing.T) {
	rounds, size := 5, 6
	if nstest.InVM() {
		rounds, size = 2, 3
	}
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			for range rounds {
				k := newKernel(t)
				s := stage(t, "forker", size)
				all := processes(t, k)
				group := membersOf(t, s, all)[0].PGID
				var victims []waitgraph.Process
				for _, p := range all {
					if p.PGID == group {
						victims = append(victims, p)
					}
				}
				out, err := Run(t.Context(), k, victims, options(engine, all))
				must(t, err)
				if len(out.Survivors)+len(out.Refused) != 0 {
					t.Errorf("%+v", out)
				}
				for _, p := range processes(t, k) {
					if p.PGID == group && p.Alive() {
						t.Errorf("%v outlived its tree", &p)
					}
				}
				must(t, s.Stop())
			}
		})
	}
}

// TestReusedPIDLives: the target exits and is reaped between plan and window, and
// another process gets its pid.
func TestReusedPIDLives(t *testing.T) {
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			k := newKernel(t)
			other := startIdle(t)
			var all, victims []waitgraph.Process
			var decoy *idle
			for decoy == nil {
				target := startIdle(t)
				all, victims = processes(t, k), nil
				for _, p := range all {
					if int(p.PID) == target.Process.Pid || int(p.PID) == other.Process.Pid {
						victims = append(victims, p)
					}
				}
				must(t, target.Process.Kill())
				target.Wait()
				decoy = startAs(t, target.Process.Pid)
			}
			out, err := Run(t.Context(), k, victims, options(engine, all))
			must(t, err)
			if dead(decoy.Process.Pid) {
				t.Fatal("the process that reuses the pid was killed")
			}
			if out.Signalled != 1 || out.Gone != 1 || len(out.Skipped) != 1 || len(out.Survivors) != 0 {
				t.Fatalf("%+v, want one signalled and one skipped", out)
			}
			if f := out.Skipped[0]; int(f.Process.PID) != decoy.Process.Pid || !errors.Is(f.Err, ErrGone) {
				t.Errorf("skipped %v: %v", &f.Process, f.Err)
			}
			if !dead(other.Process.Pid) {
				t.Error("the other target lives")
			}
		})
	}
}

// startAs starts a process with a certain pid, and returns nil where somebody else's
// thread was born with it in the meantime.
func startAs(t *testing.T, pid int) *idle {
	t.Helper()
	const last = "/proc/sys/kernel/ns_last_pid"
	if _, err := os.Stat(last); err != nil {
		return comeRound(t, pid)
	}
	var got *idle
	eventually(t, fmt.Sprintf("a process with pid %d", pid), func() bool {
		got.end()
		if unix.Kill(pid, 0) == nil { // true of threads, too
			got = nil
			return true
		}
		must(t, os.WriteFile(last, []byte(fmt.Sprint(pid-1)), 0))
		got = startIdle(t) // a thread that is born in between takes the pid
		return got.Process.Pid == pid
	})
	return got
}

// comeRound forks until the pids start over, on kernels without
// CONFIG_CHECKPOINT_RESTORE.
func comeRound(t *testing.T, pid int) *idle {
	t.Helper()
	var got *idle
	eventually(t, fmt.Sprintf("pid %d comes round", pid), func() bool {
		got.end()
		for range 500 {
			attr := &os.ProcAttr{}
			p, err := os.StartProcess("/proc/self/exe", []string{"x"}, attr)
			must(t, err)
			must(t, p.Kill())
			p.Wait()
			if p.Pid < pid && p.Pid > pid-20 {
				break
			}
		}
		got = startIdle(t)
		return got.Process.Pid == pid
	})
	return got
}

// TestFewDescriptors: pidfds for all do not fit, and the limit cannot be raised.
// A limit once lowered stays, so it is another process that lives with it.
func TestFewDescriptors(t *testing.T) {
	nstest.Require(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestWithFewDescriptors$", "-test.v")
	cmd.Env = append(os.Environ(), fewVariable+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if n := strings.Count(string(out), "--- PASS: TestWithFewDescriptors/"); n != len(engines()) {
		t.Errorf("%d engines passed, want %d\n%s", n, len(engines()), out)
	}
}

// fewVariable makes TestWithFewDescriptors a test of its own.
const fewVariable = "BPFKILL_WINDOW_FEW"

func TestWithFewDescriptors(t *testing.T) {
	if os.Getenv(fewVariable) == "" {
		t.Skip("runs only below TestFewDescriptors")
	}
	const n, limit = 400, 150
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			k := newKernel(t)
			s := stage(t, "sleepers", n)
			bystander := startIdle(t)
			all := processes(t, k)
			dropResourceCapability(t)
			must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}))
			if got := raiseFileLimit(n); got >= limit {
				t.Fatalf("%d pidfds may be open in spite of the limit", got)
			}
			out, err := Run(t.Context(), k, membersOf(t, s, all), options(engine, all))
			must(t, err)
			checkAllGone(t, out, n)
			if alive, err := s.Alive(); err != nil || len(alive) != 0 {
				t.Errorf("%d are alive, %v", len(alive), err)
			}
			if dead(bystander.Process.Pid) {
				t.Error("a process that was not to die is dead")
			}
			if woken := s.Woken(); len(woken) != 0 {
				t.Errorf("%d ran user code", len(woken))
			}
		})
	}
}

// dropResourceCapability takes the right to raise hard limits from the calling
// goroutine's thread, for good: the thread ends with the goroutine.
func dropResourceCapability(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	must(t, unix.Capget(&hdr, &caps[0]))
	caps[unix.CAP_SYS_RESOURCE/32].Effective &^= 1 << (unix.CAP_SYS_RESOURCE % 32)
	must(t, unix.Capset(&hdr, &caps[0]))
}

func TestSoftLimitIsRaised(t *testing.T) {
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	if old.Max < 1000 {
		t.Skipf("the hard limit is only %d", old.Max)
	}
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }()
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: old.Max}))
	if got, want := raiseFileLimit(500), 500; got < want {
		t.Errorf("%d pidfds may be open, want %d", got, want)
	}
}

// TestCancelledBeforeTheWindow: nothing is signalled.
func TestCancelledBeforeTheWindow(t *testing.T) {
	k := newKernel(t)
	s := stage(t, "smtp", 2)
	all := processes(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out, err := Run(ctx, k, membersOf(t, s, all), options(EngineLoop, all))
	if out != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v; want no outcome and %v", out, err, context.Canceled)
	}
	if alive, err := s.Alive(); err != nil || len(alive) != len(s.Processes()) {
		t.Errorf("%d of %d are alive, %v", len(alive), len(s.Processes()), err)
	}
}

// TestInterruptedAtTheLastMoment: nothing is signalled, nobody wakes, and everybody
// has the CPUs that it had, children that are born meanwhile too.
func TestInterruptedAtTheLastMoment(t *testing.T) {
	mine := allCPUs(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	k := newKernel(t)
	s, forkers := stage(t, "smtp", 4), stage(t, "forker", 2)
	all := processes(t, k)
	sleepers := membersOf(t, s, all)
	group := membersOf(t, forkers, all)[0].PGID
	before := currentPosture(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, err := Run(ctx, disturbed{k, cancel}, append(sleepers, membersOf(t, forkers, all)...), options(EngineLoop, all))
	if out != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v; want no outcome and %v", out, err, context.Canceled)
	}
	if after := currentPosture(t); after != before {
		t.Errorf("left at %+v, it was %+v", after, before)
	}
	if alive, err := s.Alive(); err != nil || len(alive) != len(sleepers) {
		t.Errorf("%d of %d are alive, %v", len(alive), len(sleepers), err)
	}
	if woken := s.Woken(); len(woken) != 0 {
		t.Errorf("%d ran user code", len(woken))
	}
	looked := 0
	for _, p := range processes(t, k) {
		if p.PGID != group && p.PGID != sleepers[0].PGID {
			continue
		}
		cpus, err := affinity.Get(int(p.PID))
		if errors.Is(err, unix.ESRCH) {
			continue // the short-lived child of a forker
		}
		must(t, err)
		if looked++; cpus != mine && !dead(int(p.PID)) { // a zombie has the CPUs that it died with
			t.Errorf("%v is left on %v", &p, cpus)
		}
	}
	if looked <= len(sleepers) {
		t.Errorf("looked at %d processes", looked)
	}
}

// listing is a kernel on which something happens while threads are listed, and listing
// takes its time.
type listing struct {
	bpf
	happens func()
}

func (k listing) Threads() ([]affinity.Thread, error) {
	time.Sleep(5 * clockTick)
	k.happens()
	threads, err := k.bpf.Threads()
	time.Sleep(5 * clockTick)
	return threads, err
}

// clockTick is what start times in /proc are counted in.
const clockTick = 10 * time.Millisecond

// TestBornWhileThreadsAreListed: who is in the list, and was not there when the listing
// began, has its CPUs back all the same.
func TestBornWhileThreadsAreListed(t *testing.T) {
	mine := allCPUs(t)
	k := newKernel(t)
	shell, in := startShell(t, "read line; sleep 1000 & wait")
	eventually(t, "the shell reads", func() bool {
		st, err := readStat(shell)
		return err == nil && st.state == 'S'
	})
	all := processes(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	family := func() (pids []int) {
		for _, p := range processes(t, k) {
			st, err := readStat(int(p.PID))
			if err == nil && p.Alive() && (int(p.PID) == shell || int(st.ppid) == shell) {
				pids = append(pids, int(p.PID))
			}
		}
		return pids
	}
	out, err := Run(ctx, listing{k, func() {
		if ctx.Err() != nil {
			return // the corral lists them again before it is closed
		}
		_, err := in.Write([]byte("\n"))
		must(t, err)
		eventually(t, "the child is there", func() bool { return len(family()) == 2 })
		cancel()
	}}, byPID(all, shell), options(EngineLoop, all))
	if out != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v; want no outcome and %v", out, err, context.Canceled)
	}
	pids := family()
	t.Cleanup(func() {
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	if len(pids) != 2 {
		t.Errorf("%d are alive, want the shell and its child", len(pids))
	}
	for _, pid := range pids {
		cpus, err := affinity.Get(pid)
		must(t, err)
		if cpus != mine {
			t.Errorf("process %d is left on %v", pid, cpus)
		}
	}
}

// undying is a kernel on which the dead are said to hang in the kernel.
type undying struct {
	bpf
	hangs waitgraph.Process
}

func (k undying) Processes() ([]waitgraph.Process, error) {
	all, err := k.bpf.Processes()
	for i := range all {
		if all[i].KernelIdentity() == k.hangs.KernelIdentity() {
			all[i].State = 'D'
		}
	}
	return all, err
}

// TestSurvivorsAreNamed: who has not died when the timeout is over.
func TestSurvivorsAreNamed(t *testing.T) {
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			k := newKernel(t)
			s := stage(t, "sleepers", 3)
			all := processes(t, k)
			victims := membersOf(t, s, all)
			o := options(engine, all)
			o.Timeout = 300 * time.Millisecond
			began := time.Now()
			out, err := Run(t.Context(), undying{k, victims[1]}, victims, o)
			must(t, err)
			if out.Signalled != 3 || out.Gone != 2 || len(out.Survivors) != 1 ||
				out.Survivors[0].PID != victims[1].PID || out.Survivors[0].State != 'D' {
				t.Errorf("%+v, want one survivor, %v", out, &victims[1])
			}
			if took := time.Since(began); took < o.Timeout {
				t.Errorf("gave up after %v", took)
			}
		})
	}
}
