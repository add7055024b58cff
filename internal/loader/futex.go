package loader

import "github.com/bpfkill/bpfkill/internal/waitgraph"

// futexBuilder gathers the mutexes with priority inheritance (FUTEX_LOCK_PI) that
// somebody waits for. Each is an object that its owner holds for as long as it lives.
type futexBuilder struct {
	owned []snapshotLinkRecord // from a mutex to its owner
}

func (f *futexBuilder) addLink(r *snapshotLinkRecord) { f.owned = append(f.owned, *r) }

// addObjects makes the objects. The owner's exit gives the mutex to the first of those
// who wait (rt_mutex_futex_unlock), and if that one dies, too, to the next.
func (f *futexBuilder) addObjects(b *snapshotBuilder, recs []snapshotSleeperRecord) {
	if len(f.owned) == 0 {
		return
	}
	queue := make(map[uint64][]int32) // by mutex: who waits, in the order of their turns
	for i := range f.owned {
		queue[f.owned[i].From] = nil
	}
	seen := make(map[uint64]bool) // entries: a tree may have been read twice
	for i := range recs {
		r := &recs[i]
		if waiters, ok := queue[r.QueueId]; ok && !seen[r.EntryId] {
			seen[r.EntryId] = true
			queue[r.QueueId] = append(waiters, b.outsider(taskKey{r.Tgid, r.StartNs}, comm(r.Comm[:])))
		}
	}
	for i := range f.owned {
		r := &f.owned[i]
		waiters := queue[r.From]
		delete(queue, r.From) // which may have been read twice, too
		owner, ok := b.process[taskKey{r.Tgid, r.To}]
		if !ok || len(waiters) == 0 {
			continue
		}
		obj := b.newObject(waitgraph.Object{Channel: waitgraph.ChannelFutex, Name: "futex"})
		b.hold(obj, owner)
		to := b.newLink(obj, waitgraph.Object{})
		line := b.addLine(waiters)
		for _, proc := range waiters {
			b.addWaiter(to, proc, line)
		}
	}
}
