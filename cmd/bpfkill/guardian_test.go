package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	rounds := 200
	if emulated {
		rounds = 12
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	// What it takes to confine, kill and let out a storm of this size, and more.
	const span = time.Millisecond
	life := 100 * time.Millisecond // of one that is let live, as far as is known
	hit := 0                       // how often it died while somebody was confined who lived
	for round := range rounds {
		engine := engines()[round/2%len(engines())]
		// Not forkers: a child that is forked by a confined process at the very
		// moment of the killer's death can stay confined, see the man page.
		topology := []string{"sleepers", "smtp"}[round%2]
		s := stage(t, topology, []int{3, 2}[round%2]*stormSize(t))
		var stdout, stderr bytes.Buffer
		cmd := exec.Command(bin, "--target", storm.Target, "--engine", engine, "--timeout", "1m")
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		began := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		confined := false
		if round/2%2 == 0 {
			pause(time.Duration(random.Int64N(int64(life))))
			cmd.Process.Signal(unix.SIGKILL) // it may have ended
		} else {
			delay := time.Duration(random.Int64N(int64(span)))
			confined = killOnceConfined(t, cmd.Process.Pid, s.Processes()[0].PID, everywhere, delay)
		}
		err := cmd.Wait()
		exit := (*exec.ExitError)(nil)
		switch {
		case err == nil:
			life = min(max(life, time.Since(began)), time.Second)
		case !errors.As(err, &exit) || exit.ExitCode() != -1:
			t.Fatalf("round %d: %v, stderr %q", round, err, stderr.String())
		}
		requireNoGuardian(t)
		if requireFree(t, everywhere) > 0 && confined {
			hit++
		}
		if emulated {
			requireNothingLoaded(t)
		}
		if t.Failed() {
			t.Fatalf("round %d: %s, %s engine", round, topology, engine)
		}
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d times the killer died while targets were confined that lived on", hit, rounds/2)
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

// loaded lists the BPF programs that could signal.
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
		if info, err := p.Info(); err == nil && (info.Name == "tripwire" || info.Name == "deliver" || info.Name == "track_fork") {
			names = append(names, info.Name)
		}
		p.Close()
	}
}
