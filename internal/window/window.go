// Package window carries out a plan: it raises the killer above everybody
// else, opens the window, delivers the signals, and waits for the exits.
//
// The steps, in the order of [Run]:
//
//	check     may we signal them? (kill(2) itself is asked)
//	doom      write the kill set into the kernel: inheritance begins
//	identify  pidfds first, then a look at who still is who he was
//	arm       attach the tripwire, set the deadline
//	raise     memory locked, GC off, last in line for the OOM killer, SCHED_FIFO
//	corral    (every target thread on the killer's CPU: its place is here)
//	open      one store
//	deliver   the engine, in plan order
//	reap      (process_mrelease before the corral opens: its place is here)
//	lower     give the processor back
//	await     exits by pidfd, sweeping what forked, until the timeout
//	disarm
package window

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Engine is how signals are delivered.
type Engine uint8

const (
	// EngineLoop is pidfd_send_signal in plan order (Linux 5.10).
	EngineLoop Engine = iota
	// EngineBatch is one BPF program run that walks the plan (Linux 6.13).
	EngineBatch
	// EngineCgroup is one write to cgroup.kill (Linux 5.14, cgroup v2), for a
	// kill set that is exactly the population of one subtree.
	EngineCgroup
)

func (e Engine) String() string {
	return [...]string{"loop", "batch", "cgroup"}[e]
}

// Kernel is the BPF half of a kill.
type Kernel interface {
	// Doom writes down the kill set in plan order; inheritance begins.
	Doom([]waitgraph.Process) error
	// Inherit returns the children of the kill set that no snapshot shows;
	// known says which processes the snapshot did show.
	Inherit(known func(waitgraph.KernelIdentity) bool) ([]waitgraph.KernelIdentity, error)
	// Processes lists who is alive now, as the caller's pid namespace sees it.
	Processes() ([]waitgraph.Process, error)
	// Arm attaches the tripwire; no program signals after the deadline.
	Arm(deadline time.Duration) error
	// Open opens the window with one store; Deliver opens it and runs the
	// batch engine. Neither allocates.
	Open() error
	Deliver() error
	// DeliveryErrors is what became of each process of Doom under Deliver.
	DeliveryErrors() ([]error, error)
	// Disarm ends tripwire and inheritance.
	Disarm() error
}

// Options steer [Run].
type Options struct {
	Engine Engine
	// CgroupKill is the cgroup.kill file of the cgroup engine.
	CgroupKill string
	// Timeout is how long exits are awaited after the window.
	Timeout time.Duration
	// Known says which processes were in the snapshot.
	Known func(waitgraph.KernelIdentity) bool
	// Warn is told, one line each, what makes the window longer or the wait
	// less sure; Detail, what only matters on a machine in distress.
	Warn, Detail func(string)
	// Progress, when set, is told how many have exited while it waits.
	Progress func(gone, total int)
}

// Outcome says what became of the kill set.
type Outcome struct {
	// Signalled counts those of the kill set that got their signal from the
	// engine, Gone those of them that are dead. A zombie is dead. Children
	// forked in the race are not counted: the observer knows which of them
	// were signalled.
	Signalled, Gone int
	// Survivors are alive at the end, children forked in the race included.
	Survivors []waitgraph.Process
	// Skipped were not signalled because they were gone already.
	Skipped []Failure
	// Refused could not be signalled.
	Refused []Failure
	// Rounds counts the passes until nobody was left to signal.
	Rounds int
}

// Failure is a process that was not signalled, and why.
type Failure struct {
	Process waitgraph.Process
	Err     error
}

// ErrGone says that a process exited before the window.
var ErrGone = errors.New("exited before the window")

// run is one kill in progress.
type run struct {
	Options
	kernel  Kernel
	victims []waitgraph.Process // in plan order
	pidfds  *pidfdSet
	out     Outcome
}

// Run kills procs in order. An error without an outcome means that nothing was
// signalled; an error with one, that something went wrong after that.
//
// Cancelling ctx ends the kill before the window opens; after that it only
// ends the wait for exits.
func Run(ctx context.Context, k Kernel, procs []waitgraph.Process, o Options) (*Outcome, error) {
	r := &run{Options: o, kernel: k}
	if err := r.check(procs); err != nil {
		return nil, err
	}
	if err := k.Doom(r.victims); err != nil {
		return nil, err
	}
	if _, err := k.Inherit(o.Known); err != nil {
		return nil, err
	}
	limit := raiseFileLimit(len(r.victims))
	r.pidfds = newPidfdSet(limit)
	defer r.pidfds.Close()
	if err := r.identify(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("interrupted, nothing was signalled: %w", err)
	}
	opened, err := r.window()
	if !opened {
		return nil, err
	}
	return &r.out, errors.Join(err, r.await(ctx), k.Disarm())
}

// check asks kill(2) whether each process may be signalled. Those that may not
// are left out before anything is armed. A process that has exited stays in: it
// is doomed for the sake of its children.
func (r *run) check(procs []waitgraph.Process) error {
	var alive map[waitgraph.KernelIdentity]waitgraph.Process
	for i := range procs {
		err := unix.Kill(int(procs[i].PID), 0)
		if err == nil || errors.Is(err, unix.ESRCH) {
			r.victims = append(r.victims, procs[i])
			continue
		}
		if alive == nil {
			var aerr error
			if alive, aerr = r.alive(); aerr != nil {
				return aerr
			}
		}
		// A refusal may be about a stranger who got the pid since.
		if _, ok := alive[procs[i].KernelIdentity()]; ok {
			r.out.Refused = append(r.out.Refused, Failure{procs[i], err})
		} else {
			r.victims = append(r.victims, procs[i])
		}
	}
	return nil
}

func (r *run) skip(p *waitgraph.Process, why error) {
	r.out.Skipped = append(r.out.Skipped, Failure{*p, why})
}

// identify opens pidfds, as many as there are descriptors for, and then looks
// whether each process is still the one that was planned. In this order: a
// process that is alive after its pidfd was opened is the one that the pidfd
// stands for.
func (r *run) identify() error {
	for i := range r.victims {
		if !r.pidfds.open(&r.victims[i]) {
			break
		}
	}
	alive, err := r.alive()
	if err != nil {
		return err
	}
	for i := range r.victims {
		if _, ok := alive[r.victims[i].KernelIdentity()]; !ok {
			r.pidfds.forget(r.victims[i].KernelIdentity())
		}
	}
	if r.Engine == EngineCgroup {
		return checkPopulation(r.CgroupKill, r.victims, alive)
	}
	return nil
}

// alive returns the visible processes that are not dead, by identity.
func (r *run) alive() (map[waitgraph.KernelIdentity]waitgraph.Process, error) {
	procs, err := r.kernel.Processes()
	if err != nil {
		return nil, err
	}
	m := make(map[waitgraph.KernelIdentity]waitgraph.Process, len(procs))
	for i := range procs {
		if procs[i].Alive() {
			m[procs[i].KernelIdentity()] = procs[i]
		}
	}
	return m, nil
}

// window is the part that must be short: from raising the killer to lowering
// it again. Everything in it was allocated before. It reports whether the
// window was opened: if not, nothing was signalled.
func (r *run) window() (opened bool, err error) {
	e, err := r.newEngine()
	if err != nil {
		return false, err
	}
	defer e.close()
	if err := r.kernel.Arm(r.Timeout + armGrace); err != nil {
		return false, err
	}
	// What raise has to say waits: writing may fail, and may take a while.
	var warnings, details []string
	lower, err := raise(func(s string) { warnings = append(warnings, s) }, func(s string) { details = append(details, s) })
	defer func() {
		for _, s := range warnings {
			r.warn(s)
		}
		for _, s := range details {
			r.detail(s)
		}
	}()
	if err != nil {
		return false, err
	}
	// A corral would gather the targets' threads here, and let them go after
	// an early reap that follows the delivery.
	err = e.deliver()
	if err == nil {
		err = e.settle() // the loop engine's late pieces need the processor, too
		lower()
		return true, err
	}
	lower()
	// The engine failed as a whole. Each victim is told to have failed; those
	// that the tripwire caught all the same are found dead.
	for i := range r.victims {
		r.record(i, err)
	}
	return true, err
}

// armGrace keeps the tripwire armed beyond the wait for exits, until Disarm.
const armGrace = 2 * time.Second
