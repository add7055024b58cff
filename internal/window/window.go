// Package window carries out a plan: it raises the killer above everybody
// else, opens the window, delivers the signals, and waits for the exits.
//
// The steps, in the order of [Run]:
//
//	check     may we signal them? (kill(2) itself is asked)
//	doom      write the kill set into the kernel: inheritance begins
//	identify  pidfds first, then a look at who still is who he was
//	raise     memory locked, GC off, last in line for the OOM killer
//	arm       attach the tripwire, set the deadline
//	corral    SCHED_FIFO, and every target thread on the killer's CPU
//	open      one store
//	deliver   the engine, in plan order
//	reap      process_mrelease(2), before the corral opens
//	release   every thread gets its CPUs back, and the killer its policy
//	await     exits by pidfd, sweeping what forked, until the timeout
//	disarm
package window

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
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
	// Clocks are where the times of the window are stored, on CLOCK_MONOTONIC:
	// the first opens it, the second says that the last signal was sent, the third
	// that the targets may run again.
	Clocks() (opened, delivered, released *uint64)
	// Batch is what bpf(BPF_PROG_TEST_RUN) takes to run the batch engine, which
	// stores the first two times itself.
	Batch() (attr unsafe.Pointer, size uintptr)
	// DeliveryErrors is what became of each process of Doom under the batch
	// engine.
	DeliveryErrors() ([]error, error)
	// Threads lists the threads of the kill set that have not exited. Births
	// counts those and the children that it has started: where the count has not
	// changed since before Threads, no thread is missing.
	Threads() ([]affinity.Thread, error)
	Births() uint64
	// SharedMemory says which of the candidates must not be reaped early, and
	// why: those that share writable memory with somebody whom rest, the others
	// of the kill set, does not account for, or that could not be looked at until
	// ctx ended. Each process is named by one thread.
	SharedMemory(ctx context.Context, candidates, rest []affinity.Thread) (map[waitgraph.KernelIdentity]error, error)
	// CPULeft is how long a real-time thread may have the CPU that the calling thread
	// is on, an ordinary one, before the kernel takes it away; false where that is not
	// known.
	CPULeft() (left time.Duration, ok bool)
	// Switches counts context switches to the kill set from the opening to the
	// last signal, and from there to the release.
	Switches() (window, reap uint64)
	// Disarm ends the tripwire: no program signals after it.
	Disarm() error
}

// Options steer [Run].
type Options struct {
	Engine Engine
	// CgroupKill is the cgroup.kill file of the cgroup engine.
	CgroupKill string
	// Corral confines the kill set to the killer's CPU for the time of the
	// window. The program must have called [IsGuardian].
	Corral bool
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

// run is one kill in progress.
type run struct {
	Options
	kernel   Kernel
	victims  []waitgraph.Process // in plan order
	pidfds   *pidfdSet
	swapped  map[waitgraph.KernelIdentity]uint64 // bytes on swap
	guardian *guardian
	corral   *corral
	out      Outcome
}

// Run kills procs in order. An error without an outcome means that nothing was
// signalled; an error with one, that something went wrong after that.
//
// Cancelling ctx ends the kill up to the moment in which the window opens; after
// that it only ends the wait for exits.
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
	r.startGuardian()
	defer r.dismissGuardian()
	limit := raiseFileLimit(len(r.victims))
	growTable(min(len(r.victims), limit) + spareFDs)
	r.pidfds = newPidfdSet(limit)
	defer r.pidfds.Close()
	if err := r.identify(); err != nil {
		return nil, err
	}
	opened, err := r.window(ctx)
	if !opened {
		return nil, err
	}
	err = errors.Join(err, r.await(ctx), k.Disarm())
	if r.corral != nil {
		err = errors.Join(err, r.corral.stragglers())
	}
	return &r.out, err
}

// startGuardian begins early: it gets ready while the killer prepares.
func (r *run) startGuardian() {
	if !r.Corral {
		return
	}
	var err error
	if r.guardian, err = startGuardian(); err != nil {
		r.warn(fmt.Sprintf("no corral: %v", err))
	}
}

func (r *run) dismissGuardian() {
	if r.guardian == nil {
		return
	}
	if err := r.guardian.dismiss(); err != nil {
		r.detail(err.Error())
	}
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
	if err := r.pidfds.refused(); err != nil {
		return fmt.Errorf("nothing was signalled: %w", err)
	}
	alive, err := r.alive()
	if err != nil {
		return err
	}
	r.swapped = make(map[waitgraph.KernelIdentity]uint64, len(r.victims))
	for i := range r.victims {
		p, ok := alive[r.victims[i].KernelIdentity()]
		if !ok {
			r.pidfds.forget(r.victims[i].KernelIdentity())
		}
		r.swapped[r.victims[i].KernelIdentity()] = p.SwapBytes
	}
	if r.Engine == EngineCgroup {
		return r.checkPopulation()
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
func (r *run) window(ctx context.Context) (opened bool, err error) {
	e, err := r.newEngine()
	if err != nil {
		return false, err
	}
	defer e.close()
	shot := r.newShot()
	e.load(shot)
	// What there is to say waits: writing may fail, and may take a while.
	var late notes
	defer late.tell(r)
	reaper, err := r.prepareReap(ctx)
	if err != nil {
		late.detail(fmt.Sprintf("no early reap: %v", err))
	}
	stance := raise(late.warn, late.detail)
	defer stance.lower()
	defer func() { r.out.Window.Reap = reaper.end() }()
	if r.guardian != nil {
		_ = r.guardian.awaitReady(ctx, guardianPatience) // prepareCorral says what it says
	}
	if err := interrupted(ctx); err != nil {
		return false, err
	}
	// Raising may take its time on a machine in distress, and so may the guardian:
	// the deadline comes after them.
	if err := r.kernel.Arm(r.Timeout + armGrace); err != nil {
		return false, err
	}
	began := r.confine(ctx, stance, reaper)
	if err := r.lastLook(ctx); err != nil {
		return false, errors.Join(err, r.callOff(stance), r.kernel.Disarm())
	}

	blocked := blockSignals()
	shot.fire()
	if r.corral.holds() && shot.failed == 0 {
		reaper.run(began + uint64(r.corral.limit))
	}
	reaper.mover.settle()
	atomic.StoreUint64(shot.released, clock())
	setSignals(&blocked, nil)

	err = r.settle(e, shot)
	released := clock()
	r.out.Window.Corral = r.corral.outcome(r.victims)
	switch {
	case r.corral != nil && shot.failed != 0: // who was not killed lives on
		err = errors.Join(err, r.callOff(stance))
	case r.corral != nil:
		// Wherever it goes there are others, and opening takes time.
		r.corral.leave()
		stance.demote()
		stance.note("open the corral", r.corral.open())
	}
	r.measured(shot, began, released, clock())
	return true, err
}

// lastLook says why the window must not be opened after all: what came before may have
// taken seconds, on the machine that bpfkill is for.
func (r *run) lastLook(ctx context.Context) error {
	if r.Engine == EngineCgroup {
		if err := r.checkPopulation(); err != nil {
			return err
		}
	}
	return interrupted(ctx)
}

func interrupted(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("interrupted, nothing was signalled: %w", err)
	}
	return nil
}

// callOff leaves the corral to the guardian, as if the killer had died: it finds the
// children that are being forked, too. Nobody was signalled, all of them live on.
func (r *run) callOff(s *stance) error {
	if r.corral == nil {
		return nil
	}
	r.corral.leave()
	s.demote()
	err := r.guardian.takeOver()
	if err != nil {
		err = errors.Join(err, r.corral.open(), r.corral.stragglers())
	}
	affinity.Apply(0, &r.corral.own)
	return err
}

// settle records what became of each signal. The loop engine's late pieces are
// sent here, too: they need the processor.
func (r *run) settle(e engine, s *shot) error {
	if s.failed == 0 {
		return e.settle()
	}
	// The engine failed as a whole. Who died all the same, by the tripwire or by
	// itself, is gone, and the rest could not be signalled.
	err := fmt.Errorf("the %v engine: %w", r.Engine, s.failed)
	alive, lerr := r.alive()
	for i := range r.victims {
		if _, ok := alive[r.victims[i].KernelIdentity()]; !ok && lerr == nil {
			r.record(i, unix.ESRCH)
			continue
		}
		r.record(i, err)
	}
	return errors.Join(err, lerr)
}

// notes are what there is to say of the window, after it.
type notes struct{ warnings, details []string }

func (n *notes) warn(s string)   { n.warnings = append(n.warnings, s) }
func (n *notes) detail(s string) { n.details = append(n.details, s) }

func (n *notes) tell(r *run) {
	for _, s := range n.warnings {
		r.warn(s)
	}
	for _, s := range n.details {
		r.detail(s)
	}
}

func (r *run) newShot() *shot {
	s := &shot{engine: r.Engine}
	s.opened, s.delivered, s.released = r.kernel.Clocks()
	return s
}

// confine makes the killer SCHED_FIFO and closes the corral, where there is one.
// It returns when it began, on CLOCK_MONOTONIC.
func (r *run) confine(ctx context.Context, s *stance, reaper *reaper) (began uint64) {
	c, priority := (*corral)(nil), uint32(fifoPriority)
	if r.guardian != nil {
		var err error
		if c, err = prepareCorral(ctx, r.kernel, r.guardian); err != nil {
			s.note("no corral", err)
		} else {
			priority = c.priority()
			s.note("early reap by one thread only", reaper.ready(c.own, c.cpu))
			s.note("the corral stays on one CPU", reaper.prepareMoves(c, priority))
			if reaper.mover != nil {
				priority++
			}
		}
	}
	if c != nil {
		s.note("the corral is shorter", c.awaitTime(ctx, reaper.mover, reaper.wants()))
		if reaper.mover != nil {
			_ = lockMemory() // what was allocated since; raise has told whether that can be
		}
	}
	began = clock()
	reaper.mover.begin(began)
	if !s.promote(priority) {
		if c != nil {
			affinity.Apply(0, &c.own)
		}
		return began
	}
	if c == nil {
		return began
	}
	r.corral = c // its stragglers are looked after, whatever becomes of it
	if c.failed = c.close(time.Now()); c.failed != nil {
		s.note("no corral", c.failed)
		s.note("open the corral", c.open())
	}
	return began
}

func (r *run) measured(s *shot, began, released, open uint64) {
	m := &r.out.Window
	m.OpenedNS = s.beganNS
	m.ArmNS, m.DeliverNS = s.beganNS-began, s.endedNS-s.beganNS
	m.ReapNS, m.OpenNS = released-s.endedNS, open-released
	m.MinorFaults = s.after.Minflt - s.before.Minflt
	m.MajorFaults = s.after.Majflt - s.before.Majflt
	m.VoluntarySwitches = s.after.Nvcsw - s.before.Nvcsw
	m.InvoluntarySwitches = s.after.Nivcsw - s.before.Nivcsw
	m.TargetSwitches, m.ReapSwitches = r.kernel.Switches()
}

// armGrace keeps the tripwire armed beyond the wait for exits, until Disarm: it is armed
// before the killer waits for its CPU.
const armGrace = leftPatience + 2*time.Second
