package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// TestKilledAtRandomMoments kills bpfkill itself, over and over: half of the time
// at any moment of its life, half soon after it has confined the first target.
// Whoever lives then is as free as before, and nothing stays armed.
func TestKilledAtRandomMoments(t *testing.T) {
	nstest.Require(t)
	everywhere, err := affinity.Get(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if everywhere.Count() < 2 {
		t.Skip("the machine has one CPU: everybody is always on it")
	}
	// Forkers take the machine for themselves: they are few.
	for _, storms := range []struct {
		topology     string
		size, rounds int
	}{{"sleepers", 3, 120}, {"smtp", 2, 60}, {"forker", 1, 20}} {
		t.Run(storms.topology, func(t *testing.T) {
			r := roulette{
				everywhere: everywhere, random: rand.New(rand.NewPCG(1, 2)), life: 100 * time.Millisecond,
				stage: func() *storm.Storm { return stage(t, storms.topology, storms.size*stormSize(t)) },
			}
			if emulated {
				storms.rounds /= 20
			}
			for n := 0; n < storms.rounds && !t.Failed(); n++ {
				r.round(t, n)
			}
			t.Logf("%d of %d times the killer died while targets were confined that lived on", r.hits, storms.rounds)
		})
	}
}

// roulette is what the rounds share.
type roulette struct {
	everywhere affinity.Set
	random     *rand.Rand
	stage      func() *storm.Storm
	storm      *storm.Storm  // nil: somebody of the last one has died
	life       time.Duration // of a bpfkill that is let live, as far as is known
	hits       int           // how often it died while somebody was confined who lived
}

func (r *roulette) round(t *testing.T, n int) {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if r.storm == nil {
		r.storm = r.stage()
	}
	engine := engines()[n%len(engines())]
	var stderr bytes.Buffer
	cmd := exec.Command(bin, "--target", storm.Target, "--engine", engine, "--timeout", "1m")
	cmd.Stderr = &stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	confined := r.shoot(t, cmd, n/2%2 == 0)
	err = cmd.Wait()
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		r.life = min(max(r.life, time.Since(began)), time.Second)
	case !errors.As(err, &exit) || exit.ExitCode() != -1:
		t.Fatalf("round %d: %v, stderr %q", n, err, stderr.String())
	}
	requireNoGuardian(t)
	if requireFree(t, r.everywhere) > 0 && confined {
		r.hits++
	}
	if emulated {
		requireNothingLoaded(t)
	}
	if t.Failed() {
		t.Fatalf("round %d, %s engine", n, engine)
	}
	r.endUnlessWhole(t)
}

// shoot kills a bpfkill, at any moment or soon after it has confined the first
// target. It reports whether one was seen to be.
func (r *roulette) shoot(t *testing.T, cmd *exec.Cmd, anyMoment bool) (confined bool) {
	t.Helper()
	if anyMoment {
		pause(time.Duration(r.random.Int64N(int64(r.life))))
		cmd.Process.Signal(unix.SIGKILL) // it may have ended
		return false
	}
	// What it takes to confine and kill a storm of this size, and more.
	const span = 500 * time.Microsecond
	delay := time.Duration(r.random.Int64N(int64(span)))
	return killOnceConfined(t, cmd.Process.Pid, r.storm.Processes()[0].PID, r.everywhere, delay)
}

// endUnlessWhole ends a storm that was hurt. One that rests can be used again.
func (r *roulette) endUnlessWhole(t *testing.T) {
	t.Helper()
	alive, err := r.storm.Alive()
	if err != nil {
		t.Fatal(err)
	}
	if len(alive) == len(r.storm.Processes()) && len(r.storm.Woken()) == 0 && !r.storm.Topology().Restless {
		return
	}
	if err := r.storm.Stop(); err != nil {
		t.Fatal(err)
	}
	r.storm = nil
}

// killOnceConfined kills a killer soon after it has confined the first target, and
// reports whether it saw that: the target may die first.
func killOnceConfined(t *testing.T, killer, target int, before affinity.Set, delay time.Duration) (confined bool) {
	t.Helper()
	// Above the killer: it has a processor to itself, maybe this one's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	policy := func(policy, priority uint32) {
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}
		if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
			t.Fatal(err)
		}
	}
	policy(unix.SCHED_FIFO, 2)
	defer policy(unix.SCHED_NORMAL, 0)
	for deadline := time.Now().Add(time.Minute); ; pause(20 * time.Microsecond) {
		if now, err := affinity.Get(target); err != nil || now != before {
			confined = err == nil
			break
		}
		if time.Now().After(deadline) || ended(killer) {
			return false // the caller sees how
		}
	}
	pause(delay)
	unix.Kill(killer, unix.SIGKILL) // it may have ended
	return confined
}

// ended reports whether a child has ended, and leaves it to be waited for.
func ended(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo != 0
}

// pause sleeps on the thread that it is called on, precisely: what it is for is
// over in less than a tick.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Nanosleep(&ts, nil)
}

// requireNoGuardian waits until the guardian has done its work.
func requireNoGuardian(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(named(t, "corral-guard")) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the guardian does not end")
		}
	}
}

// requireFree fails for each thread of a storm that is confined or has a real-time
// policy, and returns how many there are.
func requireFree(t *testing.T, everywhere affinity.Set) (living int) {
	t.Helper()
	for _, comm := range []string{storm.Target, "router", "delivery"} {
		for _, pid := range named(t, comm) {
			tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/[0-9]*")
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range tasks {
				tid, err := strconv.Atoi(filepath.Base(task))
				if err != nil {
					t.Fatal(err)
				}
				living++
				if cpus, err := affinity.Get(tid); err == nil && cpus != everywhere {
					t.Errorf("%s[%d] is confined to CPUs %x", comm, tid, cpus[0])
				}
				if attr, err := unix.SchedGetAttr(tid, 0); err == nil && attr.Policy != unix.SCHED_NORMAL {
					t.Errorf("%s[%d] has scheduling policy %d", comm, tid, attr.Policy)
				}
			}
		}
	}
	return living
}

// requireNothingLoaded fails when there is a BPF program of bpfkill's on the
// machine. Only in a virtual machine is nobody else's there.
func requireNothingLoaded(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		left := loaded(t)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still loaded: %s", strings.Join(left, " "))
		}
	}
}

// attached are the programs that bpfkill attaches, or with which it signals.
var attached = []string{
	"track_fork", "track_attach", "forget_fork", "tripwire", "deliver", "count_switch",
	"waking", "signal_generate", "signal_deliver", "process_exit", "segment", "set_sock_state", "switching", "returning", "swapped_in",
	"watch_waking", "watch_exit",
}

// loaded lists those that are loaded.
func loaded(t *testing.T) (names []string) {
	t.Helper()
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		if info, err := p.Info(); err == nil && slices.Contains(attached, info.Name) {
			names = append(names, info.Name)
		}
		p.Close()
	}
}
