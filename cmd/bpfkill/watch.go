package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/cgroup2"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/target"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// watchEvery is the length of an interval.
const watchEvery = time.Second

// watchRun is one run of "bpfkill watch".
type watchRun struct {
	*watchOptions
	snapshotter *loader.Snapshotter
	watcher     *loader.Watcher
	out         watchWriter

	pids     map[waitgraph.KernelIdentity]int32 // of those there are now
	before   map[waitgraph.KernelIdentity]int32 // of those there were an interval ago
	complete bool                               // every process of the machine is visible
	cmdlines map[image]string
	counted  map[pair]uint64
	begin    time.Time
	last     time.Time
}

// image is what a process runs, as far as its name tells.
type image struct {
	waitgraph.Identity
	comm string
}

// pair is whose wakes are counted together.
type pair struct {
	waker, wakee waitgraph.KernelIdentity
	channel      waitgraph.Channel
}

func watch(ctx context.Context, o *watchOptions, stdout, stderr io.Writer) error {
	ctx, stop := endOnSignals(ctx)
	defer stop()
	// A second signal ends a watch whose reader has stalled: nothing is to be undone.
	context.AfterFunc(ctx, stop)
	for _, w := range o.selector.Warnings() {
		fmt.Fprintln(stderr, "bpfkill: warning:", w)
	}
	r := &watchRun{watchOptions: o, out: newWatchWriter(stdout, o), counted: map[pair]uint64{}}
	err := r.run(ctx)
	if log := loader.VerifierLog(err); o.verbose && log != "" {
		fmt.Fprintln(stderr, log)
	}
	return err
}

func (r *watchRun) run(ctx context.Context) (err error) {
	if err := requirements(); err != nil {
		return err
	}
	if r.snapshotter, err = loader.NewSnapshotter(loader.SnapshotOptions{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.snapshotter.Close()) }()
	if r.watcher, err = loader.NewWatcher(loader.WatcherOptions{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.watcher.Close()) }()
	n, err := r.selectProcesses()
	if err != nil {
		return err
	}
	if n == 0 {
		return &exitError{exitNoMatch, errors.New("no process matched")}
	}
	r.begin = time.Now()
	r.last = r.begin
	for over := false; !over; {
		over = r.wait(ctx)
		if _, err := r.selectProcesses(); err != nil {
			return err
		}
		w, err := r.interval()
		if err != nil {
			return err
		}
		switch err := r.out.write(w, over); {
		case errors.Is(err, unix.EPIPE):
			return nil // who read it has seen enough: as if it were interrupted
		case err != nil:
			return fmt.Errorf("write the watch: %w", err)
		}
	}
	return nil
}

// wait sleeps to the end of the interval, and reports whether it is the last.
func (r *watchRun) wait(ctx context.Context) (over bool) {
	elapsed := time.Since(r.begin)
	next := elapsed.Truncate(watchEvery) + watchEvery
	if r.duration > 0 && next >= r.duration {
		next, over = r.duration, true
	}
	timer := time.NewTimer(next - elapsed)
	defer timer.Stop()
	select {
	case <-timer.C:
		return over
	case <-ctx.Done():
		return true
	}
}

// selectProcesses selects anew: processes come and go.
func (r *watchRun) selectProcesses() (int, error) {
	procs, err := r.snapshotter.Processes()
	if err != nil {
		return 0, err
	}
	r.before, r.pids = r.pids, make(map[waitgraph.KernelIdentity]int32, len(procs))
	self := int32(os.Getpid())
	for i := range procs {
		r.pids[procs[i].KernelIdentity()] = procs[i].PID
		if procs[i].PID == self {
			r.complete = procs[i].PID == procs[i].KernelPID
		}
	}
	targets, excluded, err := r.selector.Select(procs, target.Self{
		PID: self, NowNS: bootTimeNS(), Cmdline: r.cmdline(procs), Cgroups: r.cgroupIDs,
	})
	if err != nil {
		return 0, err
	}
	// Whom a kill would leave out may well be watched.
	for _, e := range excluded {
		if e.Reason != target.ReasonSelf && e.Reason != target.ReasonKernelThread && e.Reason != target.ReasonDead {
			targets = append(targets, e.Process)
		}
	}
	selected := make([]waitgraph.KernelIdentity, 0, len(targets))
	for _, i := range targets {
		selected = append(selected, procs[i].KernelIdentity())
	}
	return len(selected), r.watcher.Watch(selected)
}

// cgroupIDs are none while a cgroup that was there at the beginning is gone, as it is
// while its service restarts.
func (r *watchRun) cgroupIDs(path string) ([]uint64, error) {
	ids, err := cgroup2.IDs(path)
	if errors.Is(err, fs.ErrNotExist) && !r.begin.IsZero() {
		return nil, nil
	}
	return ids, err
}

// pid is the number of a process, dead or alive, 0 where that cannot be told.
func (r *watchRun) pid(k waitgraph.KernelIdentity) int32 {
	for _, pids := range []map[waitgraph.KernelIdentity]int32{r.pids, r.before} {
		if pid, ok := pids[k]; ok {
			return pid
		}
	}
	if r.complete {
		return k.KernelPID
	}
	return 0
}

// cmdline reads each command line once: it pages its process in. An exec shows by another
// name.
func (r *watchRun) cmdline(procs []waitgraph.Process) func(pid int32) string {
	known := make(map[image]string, len(r.cmdlines))
	ids := make(map[int32]image, len(procs))
	for i := range procs {
		id := image{procs[i].Identity, procs[i].Comm}
		ids[id.PID] = id
		if line, ok := r.cmdlines[id]; ok {
			known[id] = line
		}
	}
	r.cmdlines = known
	return func(pid int32) string {
		id := ids[pid]
		if _, ok := known[id]; !ok {
			known[id] = target.Cmdline(pid)
		}
		return known[id]
	}
}

// interval reads what was counted since the last time.
func (r *watchRun) interval() (*report.Watch, error) {
	contacts, lost, err := r.watcher.Contacts()
	if err != nil {
		return nil, err
	}
	selected, met, err := r.watcher.Watched()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	w := &report.Watch{
		Time: now, ElapsedNS: int64(now.Sub(r.begin)), IntervalNS: int64(now.Sub(r.last)),
		Selected: selected, Met: met, LostEvents: lost,
	}
	counted := make(map[pair]uint64, len(contacts))
	for _, c := range contacts {
		p := pair{c.Waker, c.Wakee, c.Channel}
		if !c.Gone {
			counted[p] = c.Count
		}
		w.Wakes = append(w.Wakes, report.Contact{
			Cause: r.pid(c.Waker), CauseComm: c.WakerComm, PID: r.pid(c.Wakee), Comm: c.WakeeComm,
			Channel: c.Channel.String(), Count: c.Count - r.counted[p], Total: c.Count,
		})
	}
	r.counted, r.last = counted, now
	return w, nil
}
