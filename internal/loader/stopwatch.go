package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Stopwatch times the killing of a set of processes on the kernel's clock,
// whoever kills them. It signals nobody. Nothing but benchmarks and tests needs it.
//
// It is not safe for concurrent use.
type Stopwatch struct {
	coll  *ebpf.Collection
	links []link.Link
	procs []waitgraph.KernelIdentity
	gone  int // procs[:gone] are known to be gone
}

// NewStopwatch loads and attaches a stopwatch for up to so many processes at a
// time. The caller closes it.
func NewStopwatch(processes int) (*Stopwatch, error) {
	spec, err := loadStopwatch()
	if err != nil {
		return nil, fmt.Errorf("parse stopwatch object: %w", err)
	}
	spec.Maps[stopwatchMapTimed].MaxEntries = uint32(processes)
	addSeconds(spec, stopwatchProgTimeSignal)
	coll, err := ebpf.NewCollectionWithOptions(spec, *collectionOptions())
	if err != nil {
		return nil, fmt.Errorf("load stopwatch programs: %w", err)
	}
	w := &Stopwatch{coll: coll}
	for _, program := range []string{stopwatchProgTimeSignal, stopwatchProgTimeSwitch} {
		links, err := attachTracepoint(coll, program)
		w.links = append(w.links, links...)
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// Close detaches and unloads the stopwatch, and reports every error.
func (w *Stopwatch) Close() error { return unload(w.coll, w.links) }

// Reset forgets the processes that were timed, and times these from now on.
func (w *Stopwatch) Reset(procs []waitgraph.KernelIdentity) error {
	m := w.coll.Maps[stopwatchMapTimed]
	for _, p := range w.procs {
		if err := m.Delete(p.KernelPID); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget process %d: %w", p.KernelPID, err)
		}
	}
	w.procs, w.gone = procs, 0
	for _, p := range procs {
		if err := m.Update(p.KernelPID, stopwatchTimed{StartNs: p.StartNS}, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("time process %d: %w", p.KernelPID, err)
		}
	}
	if err := w.coll.Variables[stopwatchVarBegunNs].Set(uint64(0)); err != nil {
		return fmt.Errorf("reset the stopwatch: %w", err)
	}
	return nil
}

// Gone reports whether all are gone. It is cheap to ask again and again.
func (w *Stopwatch) Gone() (bool, error) {
	for ; w.gone < len(w.procs); w.gone++ {
		var t stopwatchTimed
		if err := w.coll.Maps[stopwatchMapTimed].Lookup(w.procs[w.gone].KernelPID, &t); err != nil {
			return false, fmt.Errorf("read the stopwatch: %w", err)
		}
		if t.GoneNs == 0 {
			return false, nil
		}
	}
	return true, nil
}

// Timing is what happened to one process. Times are nanoseconds on
// CLOCK_MONOTONIC, 0 where the event did not happen.
type Timing struct {
	waitgraph.KernelIdentity

	SignalledNS uint64 // the first SIGKILL generated
	RanNS       uint64 // first got a CPU after the first signal to any of the set
	GoneNS      uint64 // its last thread left the CPU for good, its memory released
}

// Timings returns what happened since [Stopwatch.Reset], in its order.
func (w *Stopwatch) Timings() ([]Timing, error) {
	timed, err := readMap[int32, stopwatchTimed](w.coll.Maps[stopwatchMapTimed])
	if err != nil {
		return nil, fmt.Errorf("read the stopwatch: %w", err)
	}
	out := make([]Timing, len(w.procs))
	for i, p := range w.procs {
		t := timed[p.KernelPID]
		out[i] = Timing{p, t.SignalledNs, t.RanNs, t.GoneNs}
	}
	return out, nil
}
