package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Watcher counts who wakes whom: the wakes by the processes selected with
// [Watcher.Watch], and those that the woken pass on to each other and back. It
// signals nobody. Wakes within a process, of the kernel's threads, by timers
// and other interrupts are not counted.
//
// It is not safe for concurrent use.
type Watcher struct {
	coll     *ebpf.Collection
	links    []link.Link
	selected map[waitgraph.KernelIdentity]bool
}

// WatcherOptions size a [Watcher]. The zero value is the default.
type WatcherOptions struct {
	// Processes is how many processes may be watched, those that are woken
	// included. 0 takes four times the number of tasks on the machine, but no
	// less than 16384.
	Processes int
	// Contacts is how many pairs of processes are counted, by channel. 0 takes
	// four times Processes.
	Contacts int
}

// NewWatcher loads and attaches the watch. Nobody is watched before
// [Watcher.Watch]. The caller closes it.
func NewWatcher(o WatcherOptions) (*Watcher, error) {
	if o.Processes == 0 {
		o.Processes = max(4*taskCount(), 16<<10)
	}
	if o.Contacts == 0 {
		o.Contacts = 4 * o.Processes
	}
	spec, err := loadWatch()
	if err != nil {
		return nil, fmt.Errorf("parse watch object: %w", err)
	}
	table, err := landmarkTable()
	if err != nil {
		return nil, err
	}
	if err := setVariables(spec, map[string]any{"landmarks": table}); err != nil {
		return nil, err
	}
	spec.Maps[watchMapWatched].MaxEntries = uint32(o.Processes)
	spec.Maps[watchMapContacts].MaxEntries = uint32(o.Contacts)
	coll, err := ebpf.NewCollectionWithOptions(spec, *collectionOptions())
	if err != nil {
		return nil, fmt.Errorf("load watch programs: %w", err)
	}
	w := &Watcher{coll: coll, selected: map[waitgraph.KernelIdentity]bool{}}
	if w.links, err = attachTracepoint(coll, watchProgWatchWaking); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close detaches and unloads the watch, and reports every error.
func (w *Watcher) Close() error { return unload(w.coll, w.links) }

// watchBuckets is BUCKETS of watch.bpf.c.
const watchBuckets = 1 << 16

// Watch selects exactly these processes. Those that were woken before stay
// watched.
func (w *Watcher) Watch(procs []waitgraph.KernelIdentity) error {
	m := w.coll.Maps[watchMapWatched]
	buckets := make([]byte, watchBuckets)
	selected := make(map[waitgraph.KernelIdentity]bool, len(procs))
	for _, p := range procs {
		selected[p] = true
		buckets[uint32(p.KernelPID)%watchBuckets] = 1
		if w.selected[p] {
			continue
		}
		if err := m.Update(p.KernelPID, watchWatched{StartNs: p.StartNS, Selected: 1}, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("watch process %d: %w", p.KernelPID, err)
		}
	}
	for p := range w.selected {
		if selected[p] {
			continue
		}
		var now watchWatched
		if err := m.Lookup(p.KernelPID, &now); err == nil && now.StartNs == p.StartNS {
			err = m.Delete(p.KernelPID)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("stop watching process %d: %w", p.KernelPID, err)
			}
		}
	}
	w.selected = selected
	if err := w.coll.Variables["selected"].Set(buckets); err != nil {
		return fmt.Errorf("write whom to watch: %w", err)
	}
	return nil
}

// Contact counts the wakes of one process by another through one channel.
// Names are those of the first time.
type Contact struct {
	Waker, Wakee         waitgraph.KernelIdentity
	WakerComm, WakeeComm string
	Channel              waitgraph.Channel
	Count                uint64 // since the watch began
}

// Contacts returns everything counted so far, and how many wakes found no
// space to be counted, or to have the woken watched.
func (w *Watcher) Contacts() (contacts []Contact, lost uint64, err error) {
	counted, err := readMap[watchWakeKey, watchContact](w.coll.Maps[watchMapContacts])
	if err != nil {
		return nil, 0, fmt.Errorf("read wakes: %w", err)
	}
	if err := w.coll.Variables["lost_events"].Get(&lost); err != nil {
		return nil, 0, fmt.Errorf("read lost events: %w", err)
	}
	type pair struct {
		waker, wakee waitgraph.KernelIdentity
		channel      waitgraph.Channel
	}
	at := make(map[pair]int, len(counted))
	for k, c := range counted {
		p := pair{wakerOf(&k), wakeeOf(&k), trail(k.Trail).channel()}
		i, ok := at[p]
		if !ok {
			i = len(contacts)
			at[p] = i
			contacts = append(contacts, Contact{
				Waker: p.waker, Wakee: p.wakee, Channel: p.channel,
				WakerComm: comm(c.Waker[:]), WakeeComm: comm(c.Wakee[:]),
			})
		}
		contacts[i].Count += c.Count
	}
	return contacts, lost, nil
}

func wakerOf(k *watchWakeKey) waitgraph.KernelIdentity {
	return waitgraph.KernelIdentity{KernelPID: k.Cause, StartNS: k.CauseStartNs}
}

func wakeeOf(k *watchWakeKey) waitgraph.KernelIdentity {
	return waitgraph.KernelIdentity{KernelPID: k.Wakee, StartNS: k.WakeeStartNs}
}

// Forget gives the space of those back that are gone: their counts leave
// [Watcher.Contacts], and no wake of theirs can come any more.
func (w *Watcher) Forget(gone func(waitgraph.KernelIdentity) bool) error {
	contacts := w.coll.Maps[watchMapContacts]
	counted, err := readMap[watchWakeKey, watchContact](contacts)
	if err != nil {
		return fmt.Errorf("read wakes: %w", err)
	}
	for k := range counted {
		if gone(wakerOf(&k)) || gone(wakeeOf(&k)) {
			if err := contacts.Delete(k); err != nil {
				return fmt.Errorf("forget a wake: %w", err)
			}
		}
	}
	watched, err := readMap[int32, watchWatched](w.coll.Maps[watchMapWatched])
	if err != nil {
		return fmt.Errorf("read whom is watched: %w", err)
	}
	for tgid, p := range watched {
		id := waitgraph.KernelIdentity{KernelPID: tgid, StartNS: p.StartNs}
		if !gone(id) {
			continue
		}
		if err := w.coll.Maps[watchMapWatched].Delete(tgid); err != nil {
			return fmt.Errorf("stop watching process %d: %w", tgid, err)
		}
		delete(w.selected, id)
	}
	return nil
}

// Watched is how many processes are watched: the selected, and those that they
// woke.
func (w *Watcher) Watched() (selected, met int, err error) {
	watched, err := readMap[int32, watchWatched](w.coll.Maps[watchMapWatched])
	if err != nil {
		return 0, 0, fmt.Errorf("read whom is watched: %w", err)
	}
	for _, p := range watched {
		if p.Selected != 0 {
			selected++
		} else {
			met++
		}
	}
	return selected, met, nil
}
