package loader

import (
	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// How an entry is queued, beyond [waitgraph.Via]: VIA_* of bpf/record.h.
const (
	viaEpoll     = 2
	viaRelay     = 4
	viaChild     = 5
	viaChildPID  = 6
	viaChildPGRP = 7
)

// queues are the entries of wait queues, by queue.
type queues struct {
	entries map[uint64][]*snapshotSleeperRecord
	turns   map[uint64]int32 // by queue where the first sleeper takes the wake
	depth   int
	edge    bool // an instance on the way reports the event once
}

// maxNesting is how deep epoll instances watch each other: the kernel allows
// five levels (EP_MAX_NESTS), and a relay may come before them.
const maxNesting = 6

// addSleepers resolves the wait queue entries. An entry of an epoll instance
// stands for everybody asleep on that instance.
func (b *snapshotBuilder) addSleepers(recs []snapshotSleeperRecord) {
	type queued struct {
		entry, queue, link uint64
	}
	seen := make(map[queued]bool, len(recs))
	q := queues{entries: make(map[uint64][]*snapshotSleeperRecord), turns: make(map[uint64]int32)}
	for i := range recs {
		r := &recs[i]
		key := queued{entry: r.EntryId, queue: r.QueueId}
		if r.Via == viaEpoll { // one entry, two queues behind it
			key.link = r.LinkId
		}
		if !seen[key] {
			seen[key] = true
			q.entries[r.QueueId] = append(q.entries[r.QueueId], r)
		}
	}
	visit := make(map[uint64]bool, len(b.queue))
	for i := range recs { // maps have no order
		id := recs[i].QueueId
		for _, id := range [...]uint64{id, id | sendersOnly} {
			if obj, ok := b.queue[id]; ok && !visit[id] {
				visit[id] = true
				b.addQueue(&q, obj, id, waitgraph.ViaPlain)
			}
		}
		b.addChildWait(&recs[i])
	}
}

// sendersOnly marks the name of a queue, which is even, where only those on it
// count who wait for room to send.
const sendersOnly = 1

// sends reports whether an entry waits for room to send. Who waits for data to
// read queues exclusively (__skb_wait_for_more_packets), who waits for room
// does not (sock_wait_for_wmem).
func (r *snapshotSleeperRecord) sends() bool {
	if r.Via == uint8(waitgraph.ViaPlain) {
		return r.Exclusive == 0
	}
	return r.Events&unix.EPOLLOUT != 0
}

// addQueue adds the sleepers of one queue to an object, and those of the queues
// that it passes its wakes on to.
func (b *snapshotBuilder) addQueue(q *queues, obj int32, id uint64, through waitgraph.Via) {
	if q.depth > maxNesting {
		return
	}
	q.depth++
	defer func() { q.depth-- }()
	for _, r := range q.entries[id&^sendersOnly] {
		switch {
		case id&sendersOnly != 0 && !r.sends():
		case r.Via == viaEpoll:
			edge := q.edge
			q.edge = edge || r.Events&(unix.EPOLLET|unix.EPOLLONESHOT) != 0
			b.addQueue(q, obj, r.LinkId, waitgraph.ViaEpoll)
			q.edge = edge
		case r.Via == viaRelay:
			b.addQueue(q, obj, r.LinkId, through)
		case r.Via >= viaChild:
		case through == waitgraph.ViaPlain:
			b.addSleeper(obj, r, waitgraph.Via(r.Via))
		default:
			if s := b.addSleeper(obj, r, through); s != nil {
				s.Turn, s.PassedOn = q.turn(r)
			}
		}
	}
}

// turn is not 0 for a sleeper on an epoll instance: it takes the wake, and the
// next one on the same instance sleeps on (ep_poll_callback). An event that
// stays is passed on by each to the next (ep_done_scan).
func (q *queues) turn(r *snapshotSleeperRecord) (turn int32, passedOn bool) {
	if r.Exclusive == 0 {
		return 0, false
	}
	key := r.QueueId
	if q.edge {
		key |= 1 // which no queue's address has
	}
	if q.turns[key] == 0 {
		q.turns[key] = int32(len(q.turns) + 1)
	}
	return q.turns[key], !q.edge
}

// addSleeper returns the sleeper that it added, nil where no process sleeps.
func (b *snapshotBuilder) addSleeper(obj int32, r *snapshotSleeperRecord, via waitgraph.Via) *waitgraph.Sleeper {
	if r.Tgid == 0 {
		b.snap.Incomplete.Callbacks++
		return nil
	}
	file := int32(-1)
	if via == waitgraph.ViaPoll {
		if f, ok := b.file[r.LinkId]; ok {
			file = f
		}
	}
	b.snap.Sleepers = append(b.snap.Sleepers, waitgraph.Sleeper{
		Object: obj, Process: b.outsider(taskKey{r.Tgid, r.StartNs}, comm(r.Comm[:])),
		Via: via, Exclusive: r.Exclusive != 0, File: file,
	})
	return &b.snap.Sleepers[len(b.snap.Sleepers)-1]
}
