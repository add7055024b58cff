package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Observer measures a kill: when each member was signalled and exited, and
// whom the dying woke. It looks at nobody else.
//
// It is not safe for concurrent use.
type Observer struct {
	coll  *ebpf.Collection
	exec  *Executor
	links []link.Link
}

// NewObserver loads and attaches the measurement of what happens to the
// executor's kill set. It records from [Observer.Start] on. The caller closes
// it before the executor.
func NewObserver(exec *Executor) (*Observer, error) {
	return newObserver(exec, 4*exec.coll.Maps[executeMapDoomed].MaxEntries())
}

// stampers are the programs that write down when something happened, the first
// time: running one twice does no harm. waking counts, and has no second.
var stampers = []string{observeProgSignalGenerate, observeProgSignalDeliver, observeProgProcessExit}

// newObserver has space for so many different wakes.
func newObserver(exec *Executor, wakes uint32) (*Observer, error) {
	spec, err := loadObserve()
	if err != nil {
		return nil, fmt.Errorf("parse observe object: %w", err)
	}
	text, err := exitText()
	if err != nil {
		return nil, err
	}
	if err := setVariables(spec, text); err != nil {
		return nil, err
	}
	doomed := exec.coll.Maps[executeMapDoomed]
	spec.Maps[observeMapDoomed].MaxEntries = doomed.MaxEntries()
	spec.Maps[observeMapWakes].MaxEntries = wakes
	opts := collectionOptions()
	opts.MapReplacements = map[string]*ebpf.Map{observeMapDoomed: doomed}
	addSeconds(spec, stampers...)
	coll, err := ebpf.NewCollectionWithOptions(spec, *opts)
	if err != nil {
		return nil, fmt.Errorf("load observe programs: %w", err)
	}
	o := &Observer{coll: coll, exec: exec}
	for _, name := range append([]string{observeProgWaking}, stampers...) {
		links, err := attachTracepoint(coll, name)
		o.links = append(o.links, links...)
		if err != nil {
			return nil, errors.Join(err, o.Close())
		}
	}
	return o, nil
}

// exitText returns the constants by which the kernel side tells wakes by the
// dying from those by interrupts that hit them.
func exitText() (map[string]any, error) {
	const start, end, exit = "__irqentry_text_start", "__irqentry_text_end", "do_exit"
	ranges, err := kernelSymbols(start, end, exit)
	if err != nil {
		return nil, err
	}
	if ranges[exit].end == 0 {
		return nil, errors.New("kernel symbol do_exit not found: the kernel must be built with CONFIG_KALLSYMS")
	}
	return map[string]any{
		"irqentry_text_start": ranges[start].start,
		"irqentry_text_end":   ranges[end].start,
		"do_exit_start":       ranges[exit].start,
		"do_exit_end":         ranges[exit].end,
	}, nil
}

// Close detaches and unloads the observer, and reports every error.
func (o *Observer) Close() error {
	var errs []error
	for _, l := range o.links {
		errs = append(errs, l.Close())
	}
	o.coll.Close()
	return errors.Join(errs...)
}

// Start begins to record. Call it before the window opens.
func (o *Observer) Start() error {
	return o.coll.Variables["observing"].Set(uint64(1))
}

// Stop ends the recording.
func (o *Observer) Stop() error {
	return o.coll.Variables["observing"].Set(uint64(0))
}

// Fate is what happened to one member of the kill set. Times are on the
// kernel's monotonic clock in nanoseconds, 0 where the event did not happen.
type Fate struct {
	waitgraph.KernelIdentity

	SignalledNS uint64 // SIGKILL generated
	DeliveredNS uint64 // SIGKILL delivered
	ExitNS      uint64 // its last thread began to exit
	EarlyNS     uint64 // woken by another's death before its own signal
	Waker       int32  // by whom: KernelPID

	Inherited bool // a child forked in the race
	Tripped   bool // killed by the tripwire
	Returned  bool // slept at the opening and came back to user mode
}

// Wake counts the wakes of one process by one dying process through one
// channel.
type Wake struct {
	Cause     int32 // KernelPID
	Wakee     waitgraph.KernelIdentity
	WakeeComm string
	Channel   waitgraph.Channel
	Count     uint64
}

// Observation is everything that an [Observer] measured.
type Observation struct {
	Fates []Fate
	Wakes []Wake
	// Lost counts wakes and forks that found no space, and forks, signals and
	// exits that the kernel did not let the programs see.
	Lost uint64
}

// Collect reads what was measured.
func (o *Observer) Collect() (*Observation, error) {
	doomed, err := o.exec.doomed()
	if err != nil {
		return nil, err
	}
	obs := &Observation{}
	for tgid, d := range doomed {
		obs.Fates = append(obs.Fates, Fate{
			KernelIdentity: waitgraph.KernelIdentity{KernelPID: tgid, StartNS: d.StartNs},
			SignalledNS:    d.GeneratedNs, DeliveredNS: d.DeliveredNs, ExitNS: d.ExitNs,
			EarlyNS: d.EarlyNs, Waker: d.Waker,
			Inherited: d.Inherited != 0, Tripped: d.Tripped != 0, Returned: d.Returned != 0,
		})
	}
	if obs.Wakes, err = o.wakes(); err != nil {
		return nil, err
	}
	var lost uint64
	if err := o.coll.Variables["lost_events"].Get(&lost); err != nil {
		return nil, fmt.Errorf("read lost events: %w", err)
	}
	forks, err := o.exec.LostForks()
	if err != nil {
		return nil, fmt.Errorf("read lost forks: %w", err)
	}
	// Not the misses of waking: an interrupt in the middle of it wakes as well,
	// and would not be counted anyway.
	missed, err := missedRuns(o.coll, stampers...)
	if err != nil {
		return nil, err
	}
	// At most, where there are seconds: what one copy missed the other has
	// nearly always seen.
	missedForks, err := missedRuns(o.exec.coll, executeProgTrackFork)
	if err != nil {
		return nil, err
	}
	obs.Lost = lost + forks + missed + missedForks
	return obs, nil
}

// wakes names the channels and merges the stacks that lead to the same one.
func (o *Observer) wakes() ([]Wake, error) {
	counted, err := readMap[observeWakeKey, observeWake](o.coll.Maps[observeMapWakes])
	if err != nil {
		return nil, fmt.Errorf("read wakes: %w", err)
	}
	channels, err := o.channels(counted)
	if err != nil {
		return nil, err
	}
	type key struct {
		cause, wakee int32
		channel      waitgraph.Channel
	}
	merged := make(map[key]*Wake)
	for k, w := range counted {
		ch, ok := channels[k.Stack]
		if !ok && k.Stack >= 0 {
			continue // the kernel's own
		}
		mk := key{k.Cause, k.Wakee, ch} // ChannelOther without a stack
		if merged[mk] == nil {
			merged[mk] = &Wake{
				Cause:     k.Cause,
				Wakee:     waitgraph.KernelIdentity{KernelPID: k.Wakee, StartNS: w.WakeeStartNs},
				WakeeComm: comm(w.Comm[:]), Channel: mk.channel,
			}
		}
		merged[mk].Count += w.Count
	}
	out := make([]Wake, 0, len(merged))
	for _, w := range merged {
		out = append(out, *w)
	}
	return out, nil
}

func (o *Observer) channels(counted map[observeWakeKey]observeWake) (map[int32]waitgraph.Channel, error) {
	stacks := make(map[int32][]uint64)
	var addrs []uint64
	for k := range counted {
		if _, ok := stacks[k.Stack]; ok || k.Stack < 0 {
			continue
		}
		var ips [32]uint64
		if err := o.coll.Maps[observeMapStacks].Lookup(uint32(k.Stack), &ips); err != nil {
			return nil, fmt.Errorf("read a kernel stack: %w", err)
		}
		stacks[k.Stack] = ips[:]
		addrs = append(addrs, ips[:]...)
	}
	names, err := symbolize(addrs)
	if err != nil {
		return nil, err
	}
	out := make(map[int32]waitgraph.Channel, len(stacks))
	for id, ips := range stacks {
		frames := make([]string, 0, len(ips))
		for _, ip := range ips {
			if ip == 0 {
				break
			}
			frames = append(frames, names[ip])
		}
		if ch, ok := classify(frames); ok {
			out[id] = ch
		}
	}
	return out, nil
}

// wakers names the functions through which a death wakes, innermost first on
// a stack. Compilers append .isra, .part and .constprop to some.
var wakers = map[string]waitgraph.Channel{
	"pipe_release":           waitgraph.ChannelPipe, // fifo_open shares it: FIFOs count as pipes
	"do_notify_parent":       waitgraph.ChannelChild,
	"exit_notify":            waitgraph.ChannelChild,
	"mm_release":             waitgraph.ChannelChild, // a vfork parent gets its child's memory back
	"exit_mm_release":        waitgraph.ChannelChild,
	"futex_wake":             waitgraph.ChannelFutex,
	"forget_original_parent": waitgraph.ChannelParentDeath,
}

// kernelLocks are the functions that hand a lock or a page of the kernel's own
// to its next user, who would run on in any case.
var kernelLocks = map[string]bool{
	"rwsem_wake": true, "up_read": true, "up_write": true, "mutex_unlock": true,
	"__mutex_unlock_slowpath": true, "up": true, "folio_unlock": true, "unlock_page": true,
	"wake_page_function": true, "percpu_up_write": true, "bit_wake_function": true, "var_wake_function": true,
}

// classify names the channel of a wake from the functions on the waker's kernel
// stack, innermost first. It reports false for a wake that is the kernel's own.
func classify(frames []string) (ch waitgraph.Channel, ok bool) {
	for _, f := range frames {
		name, _, _ := strings.Cut(f, ".")
		if kernelLocks[name] {
			return waitgraph.ChannelOther, false
		}
		if ch, ok := wakers[name]; ok {
			return ch, true
		}
	}
	return waitgraph.ChannelOther, true
}
