package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
	"github.com/bpfkill/bpfkill/internal/window"
)

// trials are what the doctor tries with the kill's own tools, on patients. Each
// may lean on those before it.
type trials struct {
	snapshotter *loader.Snapshotter

	// What the loop engine's trial showed besides.
	corralErr, observedErr error
	swapInsCounted         bool
}

// newTrials know nothing yet.
func newTrials() trials { return trials{corralErr: errUntried, observedErr: errUntried} }

func (t *trials) close() {
	if t.snapshotter != nil {
		t.snapshotter.Close()
	}
}

func (t *trials) iterators(context.Context) (string, error) {
	var err error
	if t.snapshotter, err = loader.NewSnapshotter(loader.SnapshotOptions{}); err != nil {
		return "", err
	}
	begin := time.Now()
	snap, err := t.snapshotter.Take()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d processes and %d descriptors in %v", len(snap.Processes), len(snap.Descriptors),
		time.Since(begin).Round(100*time.Microsecond)), nil
}

// walk looks for a patient in the wait queue on which it sleeps.
func (t *trials) walk(context.Context) (string, error) {
	if t.snapshotter == nil {
		return "", errUntried
	}
	p, err := startPatient()
	if err != nil {
		return "", err
	}
	defer p.end()
	if _, err := t.findAsleep(p); err != nil {
		return "", err
	}
	return "found a process of its own asleep on a pipe", nil
}

// findAsleep returns a patient once it sleeps on its pipe.
func (t *trials) findAsleep(p *patient) (waitgraph.Process, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		snap, err := t.snapshotter.Take()
		if err != nil {
			return waitgraph.Process{}, err
		}
		for _, s := range snap.Sleepers {
			if s.Object >= 0 && snap.Processes[s.Process].PID == p.pid() {
				return snap.Processes[s.Process], nil
			}
		}
	}
	return waitgraph.Process{}, fmt.Errorf("no wait queue shows process %d, which sleeps on a pipe", p.pid())
}

// tripwire wakes a doomed patient.
func (t *trials) tripwire(context.Context) (string, error) {
	if t.snapshotter == nil {
		return "", errUntried
	}
	e, err := loader.NewExecutor(loader.ExecutorOptions{})
	if err != nil {
		return "", err
	}
	defer e.Close()
	p, err := startPatient()
	if err != nil {
		return "", err
	}
	defer p.end()
	proc, err := t.findAsleep(p)
	if err != nil {
		return "", err
	}
	if err := e.Doom([]waitgraph.Process{proc}); err != nil {
		return "", err
	}
	if err := e.Arm(patience); err != nil {
		return "", err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return "", err
	}
	opened, _, _ := e.Clocks()
	atomic.StoreUint64(opened, uint64(now.Nano()))
	p.bed.Close()
	if err := errors.Join(p.diesAsleep(), e.Disarm()); err != nil {
		return "", fmt.Errorf("a process of its own, woken: %w", err)
	}
	return "stopped a process of its own before user mode", nil
}

func (t *trials) loop(ctx context.Context) (string, error) {
	if t.snapshotter == nil {
		return "", errUntried
	}
	return t.kill(ctx, window.EngineLoop)
}

func (t *trials) batch(ctx context.Context) (string, error) {
	if err := loader.HaveBatch(); err != nil {
		return "", err
	}
	if t.snapshotter == nil {
		return "", errUntried
	}
	return t.kill(ctx, window.EngineBatch)
}

// kill kills a patient on whom another one waits.
func (t *trials) kill(ctx context.Context, engine window.Engine) (string, error) {
	e, err := loader.NewExecutor(loader.ExecutorOptions{Batch: engine == window.EngineBatch})
	if err != nil {
		return "", err
	}
	defer e.Close()
	o, err := loader.NewObserver(e)
	if err != nil {
		return "", err
	}
	defer o.Close()
	waiter, err := startPatient()
	if err != nil {
		return "", err
	}
	defer waiter.end()
	victim, err := startPatient(waiter.bed)
	if err != nil {
		return "", err
	}
	defer victim.end()
	waiter.bed.Close()
	asleep, err := t.findAsleep(waiter)
	if err != nil {
		return "", err
	}
	proc, err := t.findAsleep(victim)
	if err != nil {
		return "", err
	}
	if err := o.Start(); err != nil {
		return "", err
	}
	known := func(waitgraph.KernelIdentity) bool { return true }
	var notes []string
	note := func(s string) { notes = append(notes, s) }
	out, err := window.Run(ctx, kernel{e, t.snapshotter}, []waitgraph.Process{proc}, window.Options{
		Engine: engine, Corral: true, Timeout: patience, Known: known, Warn: note, Detail: func(string) {},
	})
	if err != nil {
		return "", err
	}
	if out.Gone != 1 {
		return "", fmt.Errorf("a process of its own was not killed: %+v", *out)
	}
	t.corralErr = corralled(out, notes)
	t.observedErr = t.observe(o, proc, asleep, waiter)
	return "killed a process of its own", nil
}

// corralled says why there was no corral.
func corralled(out *window.Outcome, notes []string) error {
	switch c := out.Window.Corral; {
	case c == nil && len(notes) > 0:
		return errors.New(notes[0])
	case c == nil:
		return errors.New("there was none")
	case !c.Closed || len(c.LeftOut) > 0:
		return fmt.Errorf("%d left out", len(c.LeftOut))
	}
	return nil
}

// observe looks for the wake of who waited on the victim.
func (t *trials) observe(o *loader.Observer, victim, waiter waitgraph.Process, p *patient) error {
	if err := p.hears('!'); err != nil {
		return err
	}
	if err := o.Stop(); err != nil {
		return err
	}
	obs, err := o.Collect()
	if err != nil {
		return err
	}
	t.swapInsCounted = obs.SwapIns
	for _, w := range obs.Wakes {
		if w.Cause == victim.KernelIdentity() && w.Wakee == waiter.KernelIdentity() && w.Channel == waitgraph.ChannelPipe {
			return nil
		}
	}
	return fmt.Errorf("a process that its victim's death woke through a pipe was not seen among %d wakes", len(obs.Wakes))
}

func (t *trials) corral(context.Context) (string, error) {
	return "kept a process of its own from running", t.corralErr
}

func (t *trials) observed(context.Context) (string, error) {
	return "saw whom the victim's death woke", t.observedErr
}

func (t *trials) swapIns(context.Context) (string, error) {
	if t.observedErr != nil {
		return "", errUntried
	}
	if !t.swapInsCounted {
		return "", errors.New("programs may not be attached to kernel functions here")
	}
	return "", nil
}
