package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/report"
)

// lab has what every measurement needs.
type lab struct {
	*Options
	dir         string // for temporary files
	cgroup      string
	snapshotter *loader.Snapshotter
	stopwatch   *loader.Stopwatch
}

func newLab(o *Options) (l *lab, err error) {
	l = &lab{Options: o, cgroup: os.Getenv(cgroupVariable), dir: os.Getenv(dirVariable)}
	if err := loader.Prepare(); err != nil {
		return nil, err
	}
	if l.snapshotter, err = loader.NewSnapshotter(loader.SnapshotOptions{}); err != nil {
		return nil, errors.Join(err, l.close())
	}
	most := slices.Max(append(slices.Concat(sizes, o.Processes), memoryProcesses))
	if l.stopwatch, err = loader.NewStopwatch(most); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) close() error {
	var errs []error
	if l.stopwatch != nil {
		errs = append(errs, l.stopwatch.Close())
	}
	if l.snapshotter != nil {
		errs = append(errs, l.snapshotter.Close())
	}
	return errors.Join(errs...)
}

// chosen are the strategies of these names that can be run here.
func (l *lab) chosen(names []string) (out []*strategy) {
	for _, name := range names {
		s := find(name)
		if s.cgroup && l.cgroup == "" {
			l.say("%s: left out: no cgroup v2 here", name)
			continue
		}
		if err := loader.HaveBatch(); s.batch && err != nil {
			l.say("%s: left out: %v", name, err)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (l *lab) say(format string, args ...any) { fmt.Fprintf(l.Progress, format+"\n", args...) }

// kills measures every strategy on every size that were asked for.
func (l *lab) kills(add func(Sample) error) error {
	return l.inTurns(PartKill, l.chosen(l.Strategies), l.Processes, add)
}

// sizes are those whose windows are compared, process by process.
var sizes = []int{100, 1000, 10_000}

// growth measures how bpfkill's window grows with the set, and the kernel's own
// loop beside it.
func (l *lab) growth(add func(Sample) error) error {
	return l.inTurns(PartSizes, l.chosen([]string{groupFIFO, ours}), sizes, add)
}

// inTurns measures each strategy on each size again and again: what the machine
// does meanwhile hits all of them.
func (l *lab) inTurns(part string, chosen []*strategy, sizes []int, add func(Sample) error) error {
	for run := range l.Runs {
		for _, n := range sizes {
			l.say("%s: run %d of %d, %d processes", part, run+1, l.Runs, n)
			for i := range chosen {
				// Another one is the first in each turn.
				s := chosen[(i+run)%len(chosen)]
				sample, err := l.kill(s, shape{processes: n})
				if err != nil {
					return fmt.Errorf("%s, %d processes: %w", s.name, n, err)
				}
				sample.Part, sample.Run = part, run
				if err := add(*sample); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// goneTimeout bounds the wait for the last process.
const goneTimeout = 2 * time.Minute

// kill stages a set and kills it.
func (l *lab) kill(s *strategy, sh shape) (_ *Sample, err error) {
	set, err := l.stage(sh)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, set.end()) }()
	if err := l.stopwatch.Reset(set.procs); err != nil {
		return nil, err
	}
	argv := s.argv(set)
	cmd := exec.Command(argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var memory *memoryWatch
	if sh.memMiB > 0 {
		if memory, err = watchMemory(int64(sh.processes) * int64(sh.memMiB) << 20); err != nil {
			return nil, err
		}
		defer memory.end()
	}
	sample := &Sample{Strategy: s.name, Processes: sh.processes}
	began := monotonicNS()
	err = cmd.Run()
	sample.ReturnedNS = monotonicNS() - began
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, &stderr)
	}
	if err := l.awaitGone(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, &stderr)
	}
	if err := sample.time(l.stopwatch, began); err != nil {
		return nil, err
	}
	if sample.Woken, err = set.woken(); err != nil {
		return nil, err
	}
	if s.bpfkill {
		if err := sample.addReport(stdout.Bytes()); err != nil {
			return nil, err
		}
	}
	if memory != nil {
		sample.FreeNS, err = memory.free(began)
	}
	return sample, err
}

func (l *lab) awaitGone() error {
	for deadline := time.Now().Add(goneTimeout); ; time.Sleep(5 * time.Millisecond) {
		gone, err := l.stopwatch.Gone()
		if gone || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not all are gone after %v", goneTimeout)
		}
	}
}

// Sample is one kill, or one reading. Times are nanoseconds; 0 is not measured.
type Sample struct {
	Part      string `json:"part"`
	Strategy  string `json:"strategy"`
	Processes int    `json:"processes"`
	Run       int    `json:"run"`

	WindowNS   uint64 `json:"window_ns,omitempty"`   // first SIGKILL generated to the last
	Ran        int    `json:"ran"`                   // targets that got a CPU inside the window
	Woken      int    `json:"woken"`                 // targets that ran user code
	GoneNS     uint64 `json:"gone_ns,omitempty"`     // first SIGKILL to the last process off the CPU for good
	WholeNS    uint64 `json:"whole_ns,omitempty"`    // start of the program to the same
	ReturnedNS uint64 `json:"returned_ns,omitempty"` // start of the program to its end
	FreeNS     uint64 `json:"free_ns,omitempty"`     // start of the program to the memory free again

	// bpfkill's own figures for the first two.
	ReportedNS       uint64 `json:"reported_window_ns,omitempty"`
	ReportedSwitches uint64 `json:"reported_switches,omitempty"`

	Descriptors int   `json:"descriptors,omitempty"`
	MaxRSSBytes int64 `json:"max_rss_bytes,omitempty"`
}

// time reads the stopwatch of a kill whose program began at began.
func (s *Sample) time(w *loader.Stopwatch, began uint64) error {
	timings, err := w.Timings()
	if err != nil {
		return err
	}
	var first, last, gone uint64
	for _, t := range timings {
		if t.SignalledNS == 0 {
			return fmt.Errorf("process %d is gone without a signal", t.KernelPID)
		}
		if first == 0 || t.SignalledNS < first {
			first = t.SignalledNS
		}
		last, gone = max(last, t.SignalledNS), max(gone, t.GoneNS)
	}
	for _, t := range timings {
		if t.RanNS != 0 && t.RanNS < last {
			s.Ran++
		}
	}
	s.WindowNS, s.GoneNS, s.WholeNS = last-first, gone-first, gone-began
	return nil
}

func (s *Sample) addReport(text []byte) error {
	var r report.Report
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("read bpfkill's report: %w", err)
	}
	if r.Result == nil || r.Result.Gone != s.Processes {
		return fmt.Errorf("bpfkill's report is not of %d killed: %s", s.Processes, text)
	}
	s.ReportedNS, s.ReportedSwitches = r.Result.WindowNS, r.Result.Window.TargetSwitches
	return nil
}

func monotonicNS() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // there has been no such kernel
	}
	return uint64(ts.Nano())
}
