package loader

import (
	"fmt"
	"maps"
	"slices"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// semBuilder gathers System V semaphores: what the exit of each process undoes
// (SEM_UNDO), and who waits for operations that are not possible yet. It does what
// exit_sem and do_smart_update do, once for each undo list, and says who goes on.
type semBuilder struct {
	undoers map[uint64][]taskKey // undo list -> who shares it; the last exit undoes
	lists   []uint64             // undo lists in the order of their first process
	sets    map[uint64]*semSet
	order   []uint64 // sets
}

type semSet struct {
	id      int32
	values  map[uint32]int32            // by semaphore
	undo    map[uint64]map[uint32]int32 // by undo list
	waiters map[uint64]*semWaiter
	queue   []uint64 // waiters in their order
	lines   []semLine
}

// semLine is one of Snapshot.Lines: several who undo something give to the same waiters,
// one after the other.
type semLine struct {
	waiters []int32
	line    int32
}

// semWaiter is one call of semop(2), whose operations are done all at once or not.
type semWaiter struct {
	operations []semOperation
	n          int // operations known: more than the kernel side reads are not
}

type semOperation struct {
	semaphore uint32
	change    int32 // 0: waits for 0
	noWait    bool  // IPC_NOWAIT: where it is not possible the call ends
}

// semMax is SEMVMX: no semaphore has a greater value.
const semMax = 32767

const ipcNoWait = 0o4000 // IPC_NOWAIT

func newSemBuilder() semBuilder {
	return semBuilder{undoers: make(map[uint64][]taskKey), sets: make(map[uint64]*semSet)}
}

func (s *semBuilder) addLink(l *snapshotLinkRecord) {
	switch l.Kind {
	case linkSemUndoer:
		key := taskKey{l.Tgid, l.To}
		if len(s.undoers[l.From]) == 0 {
			s.lists = append(s.lists, l.From)
		}
		if !slices.Contains(s.undoers[l.From], key) {
			s.undoers[l.From] = append(s.undoers[l.From], key)
		}
	case linkSemUndo:
		set := s.set(l.To)
		set.id = int32(l.Inode)
		if set.undo[l.From] == nil {
			set.undo[l.From] = make(map[uint32]int32)
		}
		set.undo[l.From][l.Freed] = int32(l.Wanted)
	case linkSemValue:
		s.set(l.From).values[l.Freed] = int32(l.Wanted)
	case linkSemOperation:
		s.set(l.From).addOperation(l)
	}
}

func (s *semBuilder) set(id uint64) *semSet {
	set := s.sets[id]
	if set == nil {
		set = &semSet{
			values: make(map[uint32]int32), undo: make(map[uint64]map[uint32]int32),
			waiters: make(map[uint64]*semWaiter),
		}
		s.sets[id] = set
		s.order = append(s.order, id)
	}
	return set
}

// addOperation takes one that is already there, from an earlier try of the walk, as new.
func (set *semSet) addOperation(l *snapshotLinkRecord) {
	w := set.waiters[l.To]
	if w == nil || l.Inode == 0 {
		if w == nil {
			set.queue = append(set.queue, l.To)
		}
		w = &semWaiter{n: int(l.Tgid)}
		set.waiters[l.To] = w
	}
	w.operations = append(w.operations, semOperation{
		semaphore: l.Freed & 0xffff, change: int32(l.Wanted), noWait: l.Freed>>16&ipcNoWait != 0,
	})
}

// addObjects makes an object of what each undo list does to a set, for those who go on
// then. What several lists do only together is one more.
func (s *semBuilder) addObjects(b *snapshotBuilder, recs []snapshotSleeperRecord) {
	if len(s.order) == 0 {
		return
	}
	who := make(map[uint64]*snapshotSleeperRecord)
	for i := range recs {
		who[recs[i].EntryId] = &recs[i]
	}
	for _, id := range s.order {
		set := s.sets[id]
		var few []uint64
		for _, list := range s.lists {
			if undo, ok := set.undo[list]; ok && !s.addObject(b, set, who, undo, list) {
				few = append(few, list)
			}
		}
		if len(few) > 1 {
			s.addObject(b, set, who, set.together(few), few...)
		}
	}
}

// together is what several lists change.
func (set *semSet) together(lists []uint64) map[uint32]int32 {
	sum := make(map[uint32]int32)
	for _, list := range lists {
		for semaphore, change := range set.undo[list] {
			sum[semaphore] += change
		}
	}
	return sum
}

// addObject reports whether there is anybody who goes on when lists are undone together.
func (s *semBuilder) addObject(b *snapshotBuilder, set *semSet, who map[uint64]*snapshotSleeperRecord, undo map[uint32]int32, lists ...uint64) bool {
	able := set.able(undo)
	if len(able) == 0 {
		return false
	}
	obj := b.newObject(waitgraph.Object{Channel: waitgraph.ChannelOther, Name: fmt.Sprintf("semaphore:[%d]", set.id)})
	for _, list := range lists {
		file := b.newFile(obj, 0)
		for _, key := range s.undoers[list] {
			if proc, ok := b.process[key]; ok {
				b.snap.Descriptors = append(b.snap.Descriptors, waitgraph.Descriptor{Process: proc, File: file, Table: -1, FD: -1})
			}
		}
	}
	queue := b.newLink(obj, waitgraph.Object{})
	process := func(list []uint64) (procs []int32) {
		for _, w := range list {
			if r := who[w]; r != nil && r.Tgid != 0 {
				procs = append(procs, b.outsider(taskKey{r.Tgid, r.StartNs}, comm(r.Comm[:])))
			}
		}
		return procs
	}
	add := func(procs []int32, line int32, times int) {
		for _, proc := range procs {
			for range times {
				b.addWaiter(queue, proc, line)
			}
		}
	}
	first, rest, further := set.outcome(able, undo)
	if len(rest) == 0 {
		add(process(first), 0, 1)
	} else {
		competing := process(slices.Concat(first, rest))
		add(competing, set.line(b, competing), len(first))
	}
	add(process(further), 0, 1)
	return true
}

// outcome says which of those who are able go on after a change, which come too late,
// and who goes on because others did.
func (set *semSet) outcome(able []uint64, undo map[uint32]int32) (first, rest, further []uint64) {
	for _, w := range set.update(undo) {
		if slices.Contains(able, w) {
			first = append(first, w)
		} else {
			further = append(further, w)
		}
	}
	for _, w := range able {
		if !slices.Contains(first, w) {
			rest = append(rest, w)
		}
	}
	return first, rest, further
}

// line is the number of the line of waiters, 0 where one process alone is in it.
func (set *semSet) line(b *snapshotBuilder, waiters []int32) int32 {
	for _, l := range set.lines {
		if slices.Equal(l.waiters, waiters) {
			return l.line
		}
	}
	line := b.addLine(waiters)
	set.lines = append(set.lines, semLine{waiters, line})
	return line
}

// able are the waiters of whom each can go on after a change, if no other does before.
func (set *semSet) able(undo map[uint32]int32) []uint64 {
	values := set.changed(undo)
	var able []uint64
	for _, w := range set.queue {
		if _, ends := set.waiters[w].perform(values); ends {
			able = append(able, w)
		}
	}
	return able
}

// update returns those who go on after a change, in their order.
func (set *semSet) update(undo map[uint32]int32) []uint64 {
	values := set.changed(undo)
	left := slices.Clone(set.queue)
	var done []uint64
	for {
		i := slices.IndexFunc(left, func(w uint64) bool {
			after, ends := set.waiters[w].perform(values)
			if ends {
				values = after
			}
			return ends
		})
		if i < 0 {
			return done
		}
		done = append(done, left[i])
		left = slices.Delete(left, i, i+1)
	}
}

// changed are the values after a change, in the bounds that exit_sem keeps. Values that
// were not read are not in there.
func (set *semSet) changed(undo map[uint32]int32) map[uint32]int32 {
	values := maps.Clone(set.values)
	for semaphore, change := range undo {
		if v, ok := values[semaphore]; ok {
			values[semaphore] = min(max(v+change, 0), semMax)
		}
	}
	return values
}

// perform reports whether the wait ends at these values, and what they are then: changed
// by all operations, or by none where one is not possible at all.
func (w *semWaiter) perform(values map[uint32]int32) (after map[uint32]int32, ends bool) {
	if len(w.operations) < w.n {
		return values, false
	}
	after = maps.Clone(values)
	for _, o := range w.operations {
		v, ok := after[o.semaphore]
		switch next := v + o.change; {
		case !ok:
			return values, false
		case o.change == 0 && v != 0 || next < 0:
			return values, o.noWait // EAGAIN
		case next > semMax:
			return values, true // ERANGE
		default:
			after[o.semaphore] = next
		}
	}
	return after, true
}
