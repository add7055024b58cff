package loader

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Observer measures a kill: when each member was signalled and exited, and
// whom the dying woke. It looks at nobody else.
//
// It is not safe for concurrent use.
type Observer struct {
	coll    *ebpf.Collection
	exec    *Executor
	links   []link.Link
	swapIns bool // counted
}

// NewObserver loads and attaches the measurement of what happens to the
// executor's kill set. It records from [Observer.Start] on. The caller closes
// it before the executor.
func NewObserver(exec *Executor) (*Observer, error) {
	space := 4 * exec.coll.Maps[executeMapDoomed].MaxEntries()
	return newObserver(exec, space, space)
}

// stampers are the programs that write down that something happened, the first
// time: running one twice does no harm.
var stampers = []string{observeProgSignalGenerate, observeProgSignalDeliver, observeProgProcessExit,
	observeProgReturning}

// interruptible is a stamper that an interrupt in the middle of it may need as
// well, on every kernel: software interrupts receive what closes a socket.
const interruptible = observeProgSetSockState

// counters are the programs that have no second: they run with preemption off.
var counters = []string{observeProgWaking, observeProgSwitching, observeProgPacket}

// newObserver has space for so many different wakes, and so many threads that are
// followed at a time.
func newObserver(exec *Executor, wakes, followed uint32) (*Observer, error) {
	spec, err := loadObserve()
	if err != nil {
		return nil, fmt.Errorf("parse observe object: %w", err)
	}
	table, err := landmarkTable()
	if err != nil {
		return nil, err
	}
	if err := setVariables(spec, map[string]any{"landmarks": table, "telling": uint64(tellingMarks())}); err != nil {
		return nil, err
	}
	doomed := exec.coll.Maps[executeMapDoomed]
	spec.Maps[observeMapDoomed].MaxEntries = doomed.MaxEntries()
	for _, m := range []string{observeMapWakes, observeMapReturned, observeMapDragged} {
		spec.Maps[m].MaxEntries = wakes
	}
	spec.Maps[observeMapFollowed].MaxEntries = followed
	spec.Maps[observeMapClosed].MaxEntries = max(wakes, connectionsMin)
	opts := collectionOptions()
	opts.MapReplacements = map[string]*ebpf.Map{observeMapDoomed: doomed}
	addSeconds(spec, stampers...)
	addCopies(spec, 1, interruptible)
	addSpares(spec, interruptible)
	o := &Observer{exec: exec}
	if o.coll, o.swapIns, err = loadObserver(spec, opts); err != nil {
		return nil, fmt.Errorf("load observe programs: %w", err)
	}
	for _, name := range slices.Concat(counters, stampers, []string{interruptible}) {
		links, err := attachTracepoint(o.coll, name)
		o.links = append(o.links, links...)
		if err != nil {
			return nil, errors.Join(err, o.Close())
		}
	}
	if o.swapIns {
		l, err := link.AttachTracing(link.TracingOptions{Program: o.coll.Programs[observeProgSwappedIn]})
		if err != nil {
			o.swapIns = false
		} else {
			o.links = append(o.links, l)
		}
	}
	return o, nil
}

// connectionsMin is the least number of TCP connections that can be told when
// the dying close them.
const connectionsMin = 16 << 10

// loadObserver loads the programs, without the one that counts swap-ins where
// the kernel does not let programs attach to its functions.
func loadObserver(spec *ebpf.CollectionSpec, opts *ebpf.CollectionOptions) (coll *ebpf.Collection, swapIns bool, err error) {
	swapIns = loadsSwappedIn(spec)
	if !swapIns {
		delete(spec.Programs, observeProgSwappedIn)
	}
	coll, err = ebpf.NewCollectionWithOptions(spec, *opts)
	return coll, swapIns, err
}

// loadsSwappedIn tries that program alone: loading all of them to find out takes
// as long as everything else that a kill prepares.
func loadsSwappedIn(spec *ebpf.CollectionSpec) bool {
	alone := spec.Copy()
	alone.Maps[observeMapFollowed].MaxEntries = 1
	var objs struct {
		Program *ebpf.Program `ebpf:"swapped_in"`
	}
	if err := alone.LoadAndAssign(&objs, collectionOptions()); err != nil {
		return false
	}
	return objs.Program.Close() == nil
}

// Close detaches and unloads the observer, and reports every error.
func (o *Observer) Close() error { return unload(o.coll, o.links) }

// What is recorded, OBSERVE_* of observe.bpf.c.
const (
	observeNothing uint64 = iota
	observeExits
	observeWakes
)

// NoteExits begins to write down when the doomed are signalled and end: those who end
// before the window do as well.
func (o *Observer) NoteExits() error { return o.observe(observeExits) }

// Start begins to record wakes as well. Call it before the window opens.
func (o *Observer) Start() error { return o.observe(observeWakes) }

func (o *Observer) observe(what uint64) error { return o.coll.Variables["observing"].Set(what) }

// Stop ends the recording.
func (o *Observer) Stop() error { return o.observe(observeNothing) }

// Fate is what happened to one member of the kill set. Times are on the
// kernel's monotonic clock in nanoseconds, 0 where the event did not happen.
type Fate struct {
	waitgraph.KernelIdentity

	SignalledNS uint64 // SIGKILL generated
	DeliveredNS uint64 // SIGKILL delivered
	ExitNS      uint64 // its last thread began to exit; until v6.15 it had let go of its memory by then
	GoneNS      uint64 // its last thread left its CPU for good, its memory and files released
	EarlyNS     uint64 // last woken by another's death before its own signal
	Waker       int32  // by whom: KernelPID

	Inherited bool // a child forked in the race
	Tripped   bool // killed by the tripwire
	Returned  bool // slept at the opening and came back to user mode
}

// Wake counts the wakes of one process by one dying process through one
// channel, and what came of them until the woken threads slept again.
type Wake struct {
	Cause     waitgraph.KernelIdentity
	Wakee     waitgraph.KernelIdentity
	WakeeComm string
	Channel   waitgraph.Channel
	Count     uint64
	// Again is how many of Count woke a thread that an earlier wake had sent back to
	// user mode: it went to sleep anew, on what it chose itself by then.
	Again uint64

	// Ended is how many of Count were followed until the thread slept until
	// its next event, or exited. The figures below are about those alone.
	Ended       uint64
	Returned    uint64        // went back to user mode; since Linux 7.0 at least
	MajorFaults uint64        // pages read from a disk, a swapped-out one's among them
	SwapIns     uint64        // faults on swapped-out pages, 0 unless Observation.SwapIns
	CPU         time.Duration // used by the threads, in the kernel and outside
}

// Observation is everything that an [Observer] measured.
type Observation struct {
	Fates []Fate
	Wakes []Wake
	Lost  Lost
	// SwapIns says that the wakes' swap-ins could be counted: the kernel lets
	// programs attach to its functions (CONFIG_FUNCTION_TRACER).
	SwapIns bool
}

// Lost counts what there was no space for, and what the kernel did not let the
// programs see. Whether each exit was seen its ExitNS tells.
type Lost struct {
	Wakes     uint64 // without space, or without a stack that could be read
	Costs     uint64 // of wakes whose threads there was no space for to follow
	Forks     uint64 // without space or not seen, at most
	Signals   uint64 // that killed, and were not seen
	TCPStates uint64 // changes that were not seen, at most
}

// Sum is how many were lost in all.
func (l *Lost) Sum() uint64 { return l.Wakes + l.Costs + l.Forks + l.Signals + l.TCPStates }

// Collect reads what was measured.
func (o *Observer) Collect() (*Observation, error) {
	doomed, err := o.exec.doomed()
	if err != nil {
		return nil, err
	}
	obs := &Observation{SwapIns: o.swapIns}
	for tgid, d := range doomed {
		obs.Fates = append(obs.Fates, Fate{
			KernelIdentity: waitgraph.KernelIdentity{KernelPID: tgid, StartNS: d.StartNs},
			SignalledNS:    d.GeneratedNs, DeliveredNS: d.DeliveredNs, ExitNS: d.ExitNs, GoneNS: d.GoneNs,
			EarlyNS: d.EarlyNs, Waker: d.Waker,
			Inherited: d.Inherited != 0, Tripped: d.Tripped != 0, Returned: d.Returned != 0,
		})
	}
	if obs.Wakes, err = o.wakes(); err != nil {
		return nil, err
	}
	if obs.Lost, err = o.lost(obs.Fates); err != nil {
		return nil, err
	}
	return obs, nil
}

func (o *Observer) lost(fates []Fate) (l Lost, err error) {
	if err := o.coll.Variables["lost_events"].Get(&l.Wakes); err != nil {
		return l, fmt.Errorf("read lost events: %w", err)
	}
	if err := o.coll.Variables["lost_costs"].Get(&l.Costs); err != nil {
		return l, fmt.Errorf("read lost costs: %w", err)
	}
	if l.Forks, err = o.exec.LostForks(); err != nil {
		return l, fmt.Errorf("read lost forks: %w", err)
	}
	// Of the programs that the kernel passed over, only what shows: a process that
	// dies of a signal that nobody saw. And of TCP states, which nothing else tells.
	// Waking misses what an interrupt in the middle of it wakes, and would not count
	// that anyway.
	for i := range fates {
		if f := &fates[i]; f.DeliveredNS != 0 && f.SignalledNS == 0 {
			l.Signals++
		}
	}
	// At most, where there are seconds: what one copy missed the other has
	// nearly always seen.
	l.TCPStates, err = missedRuns(o.coll, interruptible)
	return l, err
}

// Woken says who has been woken so far, while the observer records.
func (o *Observer) Woken() (map[waitgraph.KernelIdentity]bool, error) {
	counted, err := readMap[observeWakeKey, observeWake](o.coll.Maps[observeMapWakes])
	if err != nil {
		return nil, fmt.Errorf("read wakes: %w", err)
	}
	woken := make(map[waitgraph.KernelIdentity]bool, len(counted))
	for k := range counted {
		woken[waitgraph.KernelIdentity{KernelPID: k.Wakee, StartNS: k.WakeeStartNs}] = true
	}
	return woken, nil
}

// wakes names the channels and merges the trails that lead to the same one.
func (o *Observer) wakes() ([]Wake, error) {
	counted, err := readMap[observeWakeKey, observeWake](o.coll.Maps[observeMapWakes])
	if err != nil {
		return nil, fmt.Errorf("read wakes: %w", err)
	}
	type key struct {
		cause, wakee waitgraph.KernelIdentity
		channel      waitgraph.Channel
	}
	merged := make(map[key]*Wake)
	for k, w := range counted {
		mk := key{
			cause:   waitgraph.KernelIdentity{KernelPID: k.Cause, StartNS: k.CauseStartNs},
			wakee:   waitgraph.KernelIdentity{KernelPID: k.Wakee, StartNS: k.WakeeStartNs},
			channel: trail(k.Trail).channel(),
		}
		if merged[mk] == nil {
			merged[mk] = &Wake{Cause: mk.cause, Wakee: mk.wakee, WakeeComm: comm(w.Comm[:]), Channel: mk.channel}
		}
		merged[mk].add(&w)
	}
	out := make([]Wake, 0, len(merged))
	for _, w := range merged {
		out = append(out, *w)
	}
	return out, nil
}

func (w *Wake) add(more *observeWake) {
	w.Count += more.Count
	w.Again += more.Again
	w.Ended += more.Ended
	w.Returned += more.Returned
	w.MajorFaults += more.MajorFaults
	w.SwapIns += more.SwapIns
	w.CPU += time.Duration(more.CpuNs)
}
