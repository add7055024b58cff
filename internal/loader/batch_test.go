package loader

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

func TestBatchIsThereSince613(t *testing.T) {
	nstest.Require(t)
	err := HaveBatch()
	switch since := nstest.KernelAtLeast(t, 6, 13); {
	case since && err != nil:
		t.Errorf("this kernel should have the batch engine: %v", err)
	case !since && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), BatchSince)):
		t.Errorf("%v, want an error that wraps %v and names %s", err, ErrUnsupported, BatchSince)
	}
}

// requireBatch skips where the kernel has no batch engine, which the test above
// makes sure of.
func requireBatch(t *testing.T) {
	t.Helper()
	nstest.Require(t)
	if !nstest.KernelAtLeast(t, 6, 13) {
		t.Skip("the batch engine needs Linux " + BatchSince)
	}
}

// TestBatchDeliversInOrder: signals are generated in the order of Doom, and each
// process's times in the order of life.
func TestBatchDeliversInOrder(t *testing.T) {
	requireBatch(t)
	e := newExecutor(t)
	o := observe(t, e)
	s := stage(t, storm.Options{Topology: "sleepers", Processes: 60})
	procs := members(t, s)["sleeper"]
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(procs), func(i, j int) { procs[i], procs[j] = procs[j], procs[i] })
	must(t, e.Doom(procs))
	must(t, e.Arm(patience))
	must(t, e.Deliver())
	errs, err := e.DeliveryErrors()
	must(t, err)
	for i, err := range errs {
		if err != nil {
			t.Errorf("%v: %v", &procs[i], err)
		}
	}
	for _, p := range procs {
		eventually(t, p.String()+" is dead", func() bool { return dead(int(p.PID)) })
	}
	obs, err := o.Collect()
	must(t, err)
	last, noExit := uint64(0), uint64(0)
	for i := range procs {
		f := obs.fateOf(t, procs[i])
		if f.SignalledNS < last || f.SignalledNS == 0 {
			t.Errorf("%d. %v was signalled at %d, the one before at %d", i, &procs[i], f.SignalledNS, last)
		}
		last = f.SignalledNS
		if f.ExitNS == 0 {
			noExit++
		} else if f.DeliveredNS < f.SignalledNS || f.ExitNS < f.DeliveredNS {
			t.Errorf("%v: signalled %d, delivered %d, exit %d", &procs[i], f.SignalledNS, f.DeliveredNS, f.ExitNS)
		}
		if f.Tripped || f.EarlyNS != 0 {
			t.Errorf("%v: %+v", &procs[i], f)
		}
	}
	if noExit > 0 {
		t.Errorf("%d exits were not seen", noExit)
	}
	if n := len(s.Woken()); n != 0 {
		t.Errorf("%d ran user code", n)
	}
}

// TestBatchRefuses whom it must not signal, and goes on with the others.
func TestBatchRefuses(t *testing.T) {
	requireBatch(t)
	e := newExecutor(t)
	s := stage(t, storm.Options{Topology: "sleepers", Processes: 3})
	nested := startNested(t, "idle")
	nested.says(t)
	v := take(t)
	procs := []waitgraph.Process{v.process(t, s.Processes()[0].PID)}
	want := []error{nil}
	add := func(p waitgraph.Process, err error) { procs, want = append(procs, p), append(want, err) }

	reused := v.process(t, s.Processes()[1].PID)
	reused.StartNS--
	add(reused, unix.ESRCH)
	add(v.process(t, nested.PID), unix.EPERM)
	gone := start(t, "idle", nil)
	gone.says(t)
	corpse := take(t).process(t, gone.PID)
	must(t, gone.Process.Kill())
	gone.Wait()
	add(corpse, unix.ESRCH)
	if nstest.InVM() {
		add(v.process(t, 2), unix.EPERM) // kthreadd
		add(v.process(t, 1), unix.EPERM)
	}
	add(v.process(t, s.Processes()[2].PID), nil)

	must(t, e.Doom(procs))
	must(t, e.Deliver()) // not armed: only the batch itself signals
	errs, err := e.DeliveryErrors()
	must(t, err)
	for i := range want {
		if !errors.Is(errs[i], want[i]) {
			t.Errorf("%v: %v, want %v", &procs[i], errs[i], want[i])
		}
	}
	for i, lives := range []bool{false, true, false} {
		pid := s.Processes()[i].PID
		if !lives {
			eventually(t, "a victim is dead", func() bool { return dead(pid) })
		} else if dead(pid) {
			t.Errorf("process %d was killed although its start time was another", pid)
		}
	}
	if dead(nested.PID) {
		t.Error("a namespace's init was killed")
	}
}

// TestBatchStaysInItsNamespace: a process that the caller cannot see is not
// signalled, though pid and start time are right.
func TestBatchStaysInItsNamespace(t *testing.T) {
	requireBatch(t)
	outside := start(t, "idle", nil)
	outside.says(t)
	p := take(t).process(t, outside.PID)
	t.Setenv("VICTIM", fmt.Sprintf("%d %d", p.KernelPID, p.StartNS))
	inner := startNested(t, "batch")
	if got := inner.says(t); got != "["+unix.ESRCH.Error()+"]" {
		t.Errorf("inside: %s, want %v", got, unix.ESRCH)
	}
	if dead(outside.PID) {
		t.Error("a process outside the namespace was killed")
	}
}

// batchInside tries to kill the process that the test names.
func batchInside() error {
	if err := Prepare(); err != nil {
		return err
	}
	e, err := NewExecutor(ExecutorOptions{Processes: 100, Batch: true})
	if err != nil {
		return err
	}
	defer e.Close()
	if err := errors.Join(e.Doom([]waitgraph.Process{victim()}), e.Deliver()); err != nil {
		return err
	}
	errs, err := e.DeliveryErrors()
	fmt.Println(errs)
	return err
}

// TestBatchAsksWhatKillAsks: see kill(2) and TestTripwireAsksWhatKillAsks.
func TestBatchAsksWhatKillAsks(t *testing.T) {
	requireBatch(t)
	other := start(t, "idle", func(c *exec.Cmd) { c.SysProcAttr.Credential = nobody })
	other.says(t)
	restore := lockedWithout(t, unix.CAP_KILL)
	e := newExecutor(t)
	restore()
	must(t, e.Doom([]waitgraph.Process{take(t).process(t, other.PID)}))
	must(t, e.Deliver())
	errs, err := e.DeliveryErrors()
	must(t, err)
	if !errors.Is(errs[0], unix.EPERM) || dead(other.PID) {
		t.Errorf("%v, dead: %v; want %v", errs[0], dead(other.PID), unix.EPERM)
	}
}
