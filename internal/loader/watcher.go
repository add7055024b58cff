package loader

import (
	"errors"
	"fmt"
	"time"

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
	grace    time.Duration // from the end of a process until it is forgotten
}

// watcherGrace is how long the wakes may take that a process causes by its end.
const watcherGrace = 2 * time.Second

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
	addSeconds(spec, watchProgWatchExit)
	coll, err := ebpf.NewCollectionWithOptions(spec, *collectionOptions())
	if err != nil {
		return nil, fmt.Errorf("load watch programs: %w", err)
	}
	w := &Watcher{coll: coll, selected: map[waitgraph.KernelIdentity]bool{}, grace: watcherGrace}
	for _, program := range []string{watchProgWatchExit, watchProgWatchWaking} {
		links, err := attachTracepoint(coll, program)
		w.links = append(w.links, links...)
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
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
	buckets := make([]byte, watchBuckets)
	selected := make(map[waitgraph.KernelIdentity]bool, len(procs))
	for _, p := range procs {
		selected[p] = true
		buckets[uint32(p.KernelPID)%watchBuckets] = 1
		if w.selected[p] {
			continue
		}
		now, _, err := w.find(p)
		if err != nil {
			return err
		}
		now.StartNs, now.Selected = p.StartNS, 1
		if err := w.coll.Maps[watchMapWatched].Update(p.KernelPID, now, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("watch process %d: %w", p.KernelPID, err)
		}
	}
	for p := range w.selected {
		if selected[p] {
			continue
		}
		if err := w.deselect(p); err != nil {
			return err
		}
	}
	w.selected = selected
	if err := w.coll.Variables["selected"].Set(buckets); err != nil {
		return fmt.Errorf("write whom to watch: %w", err)
	}
	return nil
}

// find returns what is known of a watched process.
func (w *Watcher) find(p waitgraph.KernelIdentity) (now watchWatched, found bool, err error) {
	err = w.coll.Maps[watchMapWatched].Lookup(p.KernelPID, &now)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return watchWatched{}, false, nil
	case err != nil:
		return watchWatched{}, false, fmt.Errorf("look up process %d: %w", p.KernelPID, err)
	case now.StartNs != p.StartNS: // another, with the same pid
		return watchWatched{}, false, nil
	}
	return now, true, nil
}

// deselect has the wakes of a process count no more, but for those that it passes
// on. Where it has ended, [Watcher.Contacts] forgets it in its time.
func (w *Watcher) deselect(p waitgraph.KernelIdentity) error {
	now, found, err := w.find(p)
	if !found || now.ExitedNs != 0 {
		return err
	}
	m := w.coll.Maps[watchMapWatched]
	if now.Met == 0 {
		err = m.Delete(p.KernelPID)
	} else {
		now.Selected = 0
		err = m.Update(p.KernelPID, now, ebpf.UpdateExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("stop watching process %d: %w", p.KernelPID, err)
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
	Gone                 bool   // one of them is: this is the last of it
}

// Contacts returns everything counted so far, and how many wakes found no
// space to be counted, or to have the woken watched. Where one of the two has ended,
// a while ago, or is watched no more, it is for the last time: their space is given
// back.
func (w *Watcher) Contacts() (contacts []Contact, lost uint64, err error) {
	counted, err := readMap[watchWakeKey, watchContact](w.coll.Maps[watchMapContacts])
	if err != nil {
		return nil, 0, fmt.Errorf("read wakes: %w", err)
	}
	if err := w.coll.Variables["lost_events"].Get(&lost); err != nil {
		return nil, 0, fmt.Errorf("read lost events: %w", err)
	}
	// Read after the wakes: who is not there now will not wake or be woken again.
	watched, err := w.readLiving()
	if err != nil {
		return nil, 0, err
	}
	type pair struct {
		waker, wakee waitgraph.KernelIdentity
		channel      waitgraph.Channel
	}
	at := make(map[pair]int, len(counted))
	for k, c := range counted {
		p := pair{wakerOf(&k), wakeeOf(&k), trail(k.Trail).channel()}
		_, waker := watched[p.waker]
		_, wakee := watched[p.wakee]
		gone := !waker || !wakee
		i, ok := at[p]
		if !ok {
			i = len(contacts)
			at[p] = i
			contacts = append(contacts, Contact{
				Waker: p.waker, Wakee: p.wakee, Channel: p.channel,
				WakerComm: comm(c.Waker[:]), WakeeComm: comm(c.Wakee[:]), Gone: gone,
			})
		}
		contacts[i].Count += c.Count
		if !gone {
			continue
		}
		if err := w.coll.Maps[watchMapContacts].Delete(k); err != nil {
			return nil, 0, fmt.Errorf("forget a wake: %w", err)
		}
	}
	return contacts, lost, nil
}

// readWatched returns who is watched.
func (w *Watcher) readWatched() (map[waitgraph.KernelIdentity]watchWatched, error) {
	byPID, err := readMap[int32, watchWatched](w.coll.Maps[watchMapWatched])
	if err != nil {
		return nil, fmt.Errorf("read who is watched: %w", err)
	}
	watched := make(map[waitgraph.KernelIdentity]watchWatched, len(byPID))
	for pid, p := range byPID {
		watched[waitgraph.KernelIdentity{KernelPID: pid, StartNS: p.StartNs}] = p
	}
	return watched, nil
}

func wakerOf(k *watchWakeKey) waitgraph.KernelIdentity {
	return waitgraph.KernelIdentity{KernelPID: k.Cause, StartNS: k.CauseStartNs}
}

func wakeeOf(k *watchWakeKey) waitgraph.KernelIdentity {
	return waitgraph.KernelIdentity{KernelPID: k.Wakee, StartNS: k.WakeeStartNs}
}

// readLiving returns who is watched, and forgets those who began to end a while ago. Who
// is still selected has not got to its end: to let go of its memory, which comes first,
// may take longer.
func (w *Watcher) readLiving() (map[waitgraph.KernelIdentity]watchWatched, error) {
	watched, err := w.readWatched()
	if err != nil {
		return nil, err
	}
	now := monotonicNS()
	for p, state := range watched {
		if state.ExitedNs == 0 || state.ExitedNs+uint64(w.grace) > now || w.selected[p] {
			continue
		}
		if err := w.coll.Maps[watchMapWatched].Delete(p.KernelPID); err != nil {
			return nil, fmt.Errorf("forget process %d: %w", p.KernelPID, err)
		}
		delete(watched, p)
	}
	return watched, nil
}

// Watched is how many living processes are watched: the selected, and those that they
// woke.
func (w *Watcher) Watched() (selected, met int, err error) {
	watched, err := w.readWatched()
	if err != nil {
		return 0, 0, err
	}
	for _, p := range watched {
		switch {
		case p.ExitedNs != 0:
		case p.Selected != 0:
			selected++
		default:
			met++
		}
	}
	return selected, met, nil
}
