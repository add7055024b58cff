package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/cgroup2"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/procfs"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/target"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
	"github.com/bpfkill/bpfkill/internal/window"
)

// session is one run of the tool, from the snapshot to the report.
type session struct {
	*options
	stderr io.Writer
	tools  tools

	snap   *waitgraph.Snapshot
	graph  *waitgraph.Graph
	plan   *plan.Plan
	report report.Report
	engine window.Engine
	cgroup string // cgroup.kill file of the cgroup engine
}

func kill(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	ctx, stop := endOnSignals(ctx)
	defer stop()
	s := &session{options: o, stderr: stderr}
	err := s.run(ctx, stdout)
	if log := loader.VerifierLog(err); o.verbose && log != "" {
		fmt.Fprintln(stderr, log)
	}
	return err
}

func (s *session) run(ctx context.Context, stdout io.Writer) (err error) {
	if err := requirements(); err != nil {
		return err
	}
	// Memory is what a machine in distress has least of: a tenth of what a kill of 2,000
	// takes is worth the more frequent collections.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if !s.dryRun {
		loader.ReadAhead()
	}
	batch := loader.HaveBatch()
	if s.options.engine == engineBatch && batch != nil {
		return fmt.Errorf("--engine batch: %w", batch)
	}
	if batch, err = s.open(batch); err != nil {
		return errors.Join(err, s.tools.close())
	}
	defer func() {
		if cerr := s.tools.close(); cerr != nil && err == nil {
			fmt.Fprintln(s.stderr, "bpfkill: warning: unload:", cerr)
		}
	}()
	if err := interrupted(ctx); err != nil {
		return err
	}
	if err := s.makePlan(); err != nil {
		return err
	}
	if err := interrupted(ctx); err != nil {
		return err
	}
	if err := s.chooseEngine(batch == nil); err != nil {
		return err
	}
	if err := s.newReport(); err != nil {
		return err
	}
	if s.dryRun {
		if err := s.write(stdout); err != nil {
			return err
		}
		return s.checkMax()
	}
	if err := s.checkMax(); err != nil {
		return err
	}
	status, err := s.execute(ctx)
	if err != nil {
		return err
	}
	if err := s.write(stdout); err != nil {
		return &exitError{status, err}
	}
	if status != exitGone {
		return &exitError{status, nil}
	}
	return nil
}

func interrupted(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("interrupted, nothing was signalled")
	}
	return nil
}

// checkMax refuses a kill set that is larger than the user allows.
func (s *session) checkMax() error {
	if s.max > 0 && len(s.plan.Order) > s.max {
		return fmt.Errorf("the kill set has %d processes, more than --max %d: nothing was signalled", len(s.plan.Order), s.max)
	}
	return nil
}

// requirements says what kernel and privileges lack, before anything is
// touched.
func requirements() error {
	if err := surroundings(); err != nil {
		return err
	}
	if err := window.RaiseFileLimit(); err != nil {
		return err
	}
	return loader.Prepare()
}

// surroundings says what nothing can be tried without.
func surroundings() error {
	for _, check := range []func() error{loader.CheckKernel, procfs.CheckOwn, procfs.CheckClocks, loader.CheckCapabilities} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// open loads the tools. batch is why the batch engine cannot work, nil if it can
// as far as is known; open returns what is known afterwards. Where the engine
// is free, a batch program that this kernel refuses is no reason not to kill.
func (s *session) open(batch error) (error, error) {
	wanted := s.options.engine == engineAuto || s.options.engine == engineBatch
	err := s.tools.open(s.dryRun, wanted && batch == nil)
	if err == nil || batch != nil || s.dryRun || s.options.engine != engineAuto {
		return batch, err
	}
	closed := s.tools.close()
	s.tools = tools{newExecutor: s.tools.newExecutor}
	if again := s.tools.open(s.dryRun, false); again != nil || closed != nil {
		return batch, errors.Join(err, closed) // it was not for the batch program
	}
	s.warn(fmt.Sprintf("no batch engine: %v", err))
	return err, nil
}

// tools are the loaded BPF objects. A dry run loads nothing that can signal.
type tools struct {
	newExecutor func(loader.ExecutorOptions) (*loader.Executor, error) // nil: loader's
	snapshotter *loader.Snapshotter
	executor    *loader.Executor
	observer    *loader.Observer
}

// open attaches fork tracker and observer before any snapshot is taken, so
// that every process is in the snapshot or was seen by the tracker. The iterators,
// which attach nothing, are loaded beside them: most of the time goes into loading.
func (t *tools) open(dryRun, batch bool) error {
	snapshotter := make(chan error, 1)
	go func() {
		var err error
		t.snapshotter, err = loader.NewSnapshotter(loader.SnapshotOptions{})
		snapshotter <- err
	}()
	var err error
	if !dryRun {
		err = t.openKill(batch)
	}
	return errors.Join(err, <-snapshotter)
}

func (t *tools) openKill(batch bool) (err error) {
	newExecutor := t.newExecutor
	if newExecutor == nil {
		newExecutor = loader.NewExecutor
	}
	if t.executor, err = newExecutor(loader.ExecutorOptions{Batch: batch}); err != nil {
		return err
	}
	t.observer, err = loader.NewObserver(t.executor)
	return err
}

func (t *tools) close() error {
	var errs []error
	if t.snapshotter != nil {
		errs = append(errs, t.snapshotter.Close())
	}
	if t.observer != nil {
		errs = append(errs, t.observer.Close())
	}
	if t.executor != nil {
		errs = append(errs, t.executor.Close())
	}
	return errors.Join(errs...)
}

// makePlan takes the snapshot, selects, and plans.
func (s *session) makePlan() (err error) {
	if s.tools.executor != nil {
		if err := s.tools.executor.ForgiveForks(); err != nil {
			return err
		}
	}
	if s.snap, err = s.tools.snapshotter.Take(); err != nil {
		return err
	}
	self := target.Self{
		PID: int32(os.Getpid()), NowNS: bootTimeNS(),
		Cmdline: target.Cmdline, Cgroups: cgroup2.IDs,
	}
	targets, excluded, err := s.selector.Select(s.snap.Processes, self)
	if err != nil {
		return err
	}
	if !s.quiet {
		for _, n := range target.Notes(s.snap.Processes, excluded) {
			fmt.Fprintln(s.stderr, "bpfkill:", n)
		}
	}
	if len(targets) == 0 {
		return &exitError{exitNoMatch, errors.New("no process matched")}
	}
	protected, err := s.selector.Protected(s.snap.Processes, self)
	if err != nil {
		return err
	}
	s.graph = waitgraph.New(s.snap)
	s.plan = plan.Make(s.graph, targets, plan.Options{Dependents: s.dependents, Protected: protected})
	return nil
}

// chooseEngine settles on the engine. auto never takes cgroup.kill, which signals in
// the kernel's order: whoever waits may come after whom it waits for.
func (s *session) chooseEngine(batch bool) (err error) {
	switch s.options.engine {
	case engineBatch:
		s.engine = window.EngineBatch
	case engineLoop:
		s.engine = window.EngineLoop
	case engineCgroup:
		s.engine = window.EngineCgroup
		if s.cgroup, err = window.CgroupOf(s.members()); err != nil {
			return fmt.Errorf("--engine cgroup: %w", err)
		}
	default:
		s.engine = window.EngineLoop
		if batch {
			s.engine = window.EngineBatch
		}
	}
	return nil
}

// members returns the kill set in plan order.
func (s *session) members() []waitgraph.Process {
	procs := make([]waitgraph.Process, len(s.plan.Order))
	for i, m := range s.plan.Order {
		procs[i] = s.graph.Processes[m.Process]
	}
	return procs
}

func (s *session) newReport() error {
	kernel, err := loader.Kernel()
	if err != nil {
		return err
	}
	s.report = report.Report{
		Version: report.SchemaVersion, Kernel: kernel, Engine: s.engine.String(), DryRun: s.dryRun,
		Plan: report.NewPlan(s.graph, s.plan, s.bystanders),
	}
	s.report.Plan.Incomplete = report.Incomplete(s.snap.Incomplete)
	return nil
}

// write prints the report: JSON and DOT were asked for, so --quiet leaves them.
func (s *session) write(stdout io.Writer) error {
	if s.quiet && s.output == report.FormatText {
		return nil
	}
	if err := report.Write(stdout, &s.report, s.output, s.verbose); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// bootTimeNS is the clock of process start times.
func bootTimeNS() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}
