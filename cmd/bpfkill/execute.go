package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
	"github.com/bpfkill/bpfkill/internal/window"
)

// kernel joins the two loaded objects that a window needs.
type kernel struct {
	*loader.Executor
	snapshotter *loader.Snapshotter
}

func (k kernel) Processes() ([]waitgraph.Process, error) { return k.snapshotter.Processes() }

// recorded is a kernel whose wakes are recorded from when it is armed: what deaths before
// that bring about is none of the kill's.
type recorded struct {
	kernel
	observer *loader.Observer
}

func (k recorded) Arm(deadline time.Duration) error {
	if err := k.observer.Start(); err != nil {
		return err
	}
	return k.kernel.Arm(deadline)
}

// execute runs the window and fills in the report's result. An error means
// that nothing was signalled, unless it carries an exit status.
func (s *session) execute(ctx context.Context) (status int, err error) {
	known := identified(s.graph.Processes)
	progress := newProgress(s.stderr, s.quiet)
	before, err := readVMCounters()
	if err != nil {
		return 0, err
	}
	if err := s.tools.observer.NoteExits(); err != nil {
		return 0, err
	}
	out, err := window.Run(ctx, recorded{kernel{s.tools.executor, s.tools.snapshotter}, s.tools.observer}, s.members(), window.Options{
		Engine: s.engine, CgroupKill: s.cgroup, Timeout: s.timeout,
		Corral:   s.corral == corralAuto,
		Known:    func(k waitgraph.KernelIdentity) bool { return known[k] },
		Warn:     s.warn,
		Detail:   s.detail,
		Progress: progress.update,
	})
	progress.clear()
	if out == nil {
		return 0, err
	}
	status = exitStatusOf(out)
	if err != nil { // quiet or not: it may be why the status is what it is
		fmt.Fprintln(s.stderr, "bpfkill:", err)
	}
	if err := s.linger(ctx); err != nil {
		s.warn(err.Error())
	}
	status = max(status, s.unseenForks(s.tools.executor.LostForks()))
	err = s.measure(out, before)
	if err != nil || s.quiet || s.output == report.FormatDOT {
		s.nameThoseLeft(out)
	}
	if err != nil {
		return 0, &exitError{status, err}
	}
	return status, nil
}

// identified are the processes that the plan has judged. Of those without a pid the
// snapshot knows only that they sleep somewhere: they are outside the pid namespace, or
// were forked while it was taken.
func identified(processes []waitgraph.Process) map[waitgraph.KernelIdentity]bool {
	known := make(map[waitgraph.KernelIdentity]bool, len(processes))
	for i := range processes {
		if p := &processes[i]; p.PID != 0 {
			known[p.KernelIdentity()] = true
		}
	}
	return known
}

// lingerLimit bounds the wait for wakes that others cause than the killed.
const lingerLimit = 500 * time.Millisecond

// linger waits for wakes that come later than the last exit: those whom the kill
// wakes may wake others before they sleep again, or die of it, and on a busy
// machine they take their time. Where the plan names nobody of that kind there is
// nothing to wait for.
func (s *session) linger(ctx context.Context) error {
	awaited := make(map[waitgraph.KernelIdentity]bool)
	for _, b := range s.plan.Bystanders {
		if b.Indirect {
			awaited[s.graph.Processes[b.Waiter].KernelIdentity()] = true
		}
	}
	for deadline := time.Now().Add(lingerLimit); len(awaited) > 0 && time.Now().Before(deadline) && ctx.Err() == nil; {
		woken, err := s.tools.observer.Woken()
		if err != nil {
			return err
		}
		maps.DeleteFunc(awaited, func(k waitgraph.KernelIdentity, _ bool) bool { return woken[k] })
		if len(awaited) > 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}

// mostNamed is how many of those left are named where no report does.
const mostNamed = 20

// nameThoseLeft says, where no report does, who survived or was refused.
func (s *session) nameThoseLeft(out *window.Outcome) {
	for i := range first(out.Survivors, mostNamed) {
		p := &out.Survivors[i]
		fmt.Fprintf(s.stderr, "bpfkill: %q, process %d, survived, in state %c\n", p.Comm, p.PID, p.State)
	}
	if n := len(out.Survivors) - mostNamed; n > 0 {
		fmt.Fprintf(s.stderr, "bpfkill: %d more survived; --output json names them\n", n)
	}
	for _, f := range first(out.Refused, mostNamed) {
		fmt.Fprintf(s.stderr, "bpfkill: %q, process %d, could not be signalled: %v\n", f.Process.Comm, f.Process.PID, f.Err)
	}
	if n := len(out.Refused) - mostNamed; n > 0 {
		fmt.Fprintf(s.stderr, "bpfkill: %d more could not be signalled; --output json names them\n", n)
	}
}

// first returns the first n of list, or all of a shorter one.
func first[T any](list []T, n int) []T { return list[:min(n, len(list))] }

// unseenForks says, quiet or not, that children may have escaped, where that cannot
// be ruled out: then not every process of the kill set is known to be gone.
func (s *session) unseenForks(lost uint64, err error) int {
	switch {
	case err != nil:
		fmt.Fprintf(s.stderr, "bpfkill: whether forks on this machine were not seen is not known: children of the killed may live on; look again with --dry-run: %v\n", err)
		return exitSurvivors
	case lost == 0:
		return exitGone
	}
	fmt.Fprintf(s.stderr, "bpfkill: %d forks on this machine were not seen: children of the killed may live on; look again with --dry-run\n", lost)
	return exitSurvivors
}

func (s *session) warn(note string) {
	if !s.quiet {
		fmt.Fprintln(s.stderr, "bpfkill: warning:", note)
	}
}

func (s *session) detail(note string) {
	if s.verbose {
		fmt.Fprintln(s.stderr, "bpfkill: note:", note)
	}
}

func exitStatusOf(out *window.Outcome) int {
	switch {
	case len(out.Refused) > 0:
		return exitPartial
	case len(out.Survivors) > 0:
		return exitSurvivors
	}
	return exitGone
}

// measure collects what the observer saw into the report's result.
func (s *session) measure(out *window.Outcome, before vmCounters) error {
	if err := s.tools.observer.Stop(); err != nil {
		return err
	}
	obs, err := s.tools.observer.Collect()
	if err != nil {
		return err
	}
	after, err := readVMCounters()
	if err != nil {
		return err
	}
	m := newMeasurement(s.graph, s.plan, obs, out.Window.OpenedNS)
	m.outcome(out)
	m.window(&out.Window)
	m.fates()
	m.wakes(int32(unix.Getpid()))
	m.result.SwapInPages = after.swapIns - before.swapIns
	m.result.MajorFaults = after.majorFaults - before.majorFaults
	if after.available > before.available {
		m.result.FreedBytes = after.available - before.available
	}
	s.report.Result = &m.result
	return nil
}

// outcome copies what the window knows itself. Of the children forked in the
// race, the observer knows who was signalled.
func (m *measurement) outcome(out *window.Outcome) {
	m.result.Signalled, m.result.Gone, m.result.Rounds = out.Signalled, out.Gone, out.Rounds
	alive := make(map[waitgraph.KernelIdentity]bool, len(out.Survivors))
	for _, p := range out.Survivors {
		alive[p.KernelIdentity()] = true
		m.result.Survivors = append(m.result.Survivors, report.Survivor{PID: p.PID, Comm: p.Comm, State: string(p.State)})
	}
	for k, f := range m.fate {
		if f.SignalledNS != 0 && f.ExitNS == 0 && !alive[k] {
			m.result.LostEvents++ // it died, and nobody saw it
			m.result.Lost.Exits++
		}
		if f.Inherited && f.SignalledNS != 0 {
			m.result.Signalled++
			if !alive[k] {
				m.result.Gone++
			}
		}
	}
	for _, f := range append(out.Skipped, out.Refused...) {
		// The tripwire was faster than the engine: that is no skip.
		if errors.Is(f.Err, window.ErrGone) && m.fate[f.Process.KernelIdentity()].SignalledNS != 0 {
			m.result.Signalled++
			m.result.Gone++
			continue
		}
		m.result.Skipped = append(m.result.Skipped, report.Skipped{PID: f.Process.PID, Why: f.Err.Error()})
	}
}
