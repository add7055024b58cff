package loader

import (
	"slices"

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
	lines   map[uint64]int32 // by queue where one sleeper takes the wake: waitgraph.Sleeper.Line
	depth   int
	edge    bool // an instance on the way reports the event once
	calls   int  // how often the event calls the first instance on the way

	// Where the end of an object wakes one of those that watch it exclusively.
	exclusive map[int32]int32 // by object: waitgraph.Sleeper.Line
	only      int32           // the line of the instances on the way
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
	q := queues{
		entries: make(map[uint64][]*snapshotSleeperRecord), lines: make(map[uint64]int32),
		exclusive: make(map[int32]int32),
	}
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
		for _, id := range [...]uint64{id, id | sendersOnly, id | pollersOnly} {
			if obj, ok := b.queue[id]; ok && !visit[id] {
				visit[id] = true
				b.addQueue(&q, obj, id, waitgraph.ViaPlain)
			}
		}
		b.addChildWait(&recs[i])
	}
}

// Marks in the name of a queue, which is an address, where only those on it count who
// wait for room to send, or who poll for data.
const (
	sendersOnly = 1 << iota
	pollersOnly
)

// polls reports whether an entry polls for data, itself or by way of epoll or a ring.
func (r *snapshotSleeperRecord) polls() bool {
	return r.Via != uint8(waitgraph.ViaPlain) && r.Events&(unix.EPOLLIN|unix.EPOLLRDNORM) != 0
}

// sends reports whether an entry waits for room to send. Who waits for data to
// read queues exclusively (__skb_wait_for_more_packets), who waits for room
// does not (sock_wait_for_wmem).
func (r *snapshotSleeperRecord) sends() bool {
	if r.Via == uint8(waitgraph.ViaPlain) {
		return r.Exclusive == 0
	}
	return r.Events&unix.EPOLLOUT != 0
}

// writes reports whether an entry on the queue of those who wait for room in a pipe is
// of a write, and not of a poll.
func (r *snapshotSleeperRecord) writes() bool {
	return r.Via == uint8(waitgraph.ViaPlain) || r.Writes != 0
}

// addQueue adds the sleepers of one queue to an object, and those of the queues
// that it passes its wakes on to.
func (b *snapshotBuilder) addQueue(q *queues, obj int32, id uint64, through waitgraph.Via) {
	if q.depth > maxNesting {
		return
	}
	q.depth++
	defer func() { q.depth-- }()
	for _, r := range q.entries[id&^(sendersOnly|pollersOnly)] {
		switch {
		case id&sendersOnly != 0 && !r.sends(), id&pollersOnly != 0 && !r.polls():
		case r.Via == viaEpoll:
			before := *q
			q.edge = q.edge || r.Events&(unix.EPOLLET|unix.EPOLLONESHOT) != 0
			if through == waitgraph.ViaPlain {
				q.calls = b.calls(obj, r.Events)
				if r.Exclusive != 0 && b.master[obj] {
					q.only = b.exclusiveLine(q, obj, id)
				}
			}
			b.addQueue(q, obj, r.LinkId, waitgraph.ViaEpoll)
			q.edge, q.calls, q.only = before.edge, before.calls, before.only
		case r.Via == viaRelay:
			b.addQueue(q, obj, r.LinkId, through)
		case r.Via >= viaChild:
		case through == waitgraph.ViaPlain:
			if s := b.addSleeper(obj, r, waitgraph.Via(r.Via)); s != nil {
				s.Writes = b.writers[r.QueueId] && r.writes() && r.HoldsSigpipe == 0
			}
		default:
			line := q.only
			if line == 0 {
				line = b.line(q, r)
			}
			n := 1
			if line != 0 {
				n = q.calls
			} else if through == waitgraph.ViaEpoll && b.sleepsThere(obj, r) {
				continue
			}
			for range n {
				if s := b.addSleeper(obj, r, through); s != nil {
					s.Line, s.PassedOn = line, line != 0 && q.only == 0 && !q.edge
				}
			}
		}
	}
}

// sleepsThere reports whether the sleeper that was added last is another thread of the
// same process, on the same epoll instance or one behind it: a thousand threads and a
// million descriptors are one process on a million objects.
func (b *snapshotBuilder) sleepsThere(obj int32, r *snapshotSleeperRecord) bool {
	if len(b.snap.Sleepers) == 0 {
		return false
	}
	last := &b.snap.Sleepers[len(b.snap.Sleepers)-1]
	return r.Tgid != 0 && last.Object == obj && last.Via == waitgraph.ViaEpoll && last.Line == 0 &&
		last.Process == b.outsider(taskKey{r.Tgid, r.StartNs}, comm(r.Comm[:]))
}

// calls is how often the end of the other side calls an epoll instance by way of one
// of the queues of an object that it watches for events. A FIN (tcp_fin,
// tcp_data_ready) and a reset (tcp_done, sk_error_report) call it twice, unless it does
// not ask for data; the end of a terminal's master does so thrice, with the hangup that
// follows (pty_close, tty_ldisc_hangup, tty_ldisc_lock).
func (b *snapshotBuilder) calls(obj int32, events uint32) int {
	switch c := b.snap.Objects[obj].Channel; {
	case c == waitgraph.ChannelTCP && events&unix.EPOLLIN != 0:
		return 2
	case c == waitgraph.ChannelPTY && !b.master[obj]:
		return 3
	}
	return 1
}

// line is not 0 for a sleeper on an epoll instance on which others sleep, too: each
// call of the instance wakes the first of them and takes it off the queue
// (ep_poll_callback, ep_autoremove_wake_function). An event that stays is passed on
// by each to the next (ep_done_scan).
func (b *snapshotBuilder) line(q *queues, r *snapshotSleeperRecord) int32 {
	if r.Exclusive == 0 {
		return 0
	}
	if line, ok := q.lines[r.QueueId]; ok {
		return line
	}
	line := b.addLine(b.exclusiveSleepers(q, r.QueueId))
	q.lines[r.QueueId] = line
	return line
}

// exclusiveLine is the line of those that sleep on instances which watch an object with
// EPOLLEXCLUSIVE, by one of its queues. The last close of a terminal's slave wakes the
// first such instance on each queue of the master that somebody sleeps on (pty_close,
// wake_up_interruptible); everything else that dies wakes all.
func (b *snapshotBuilder) exclusiveLine(q *queues, obj int32, queue uint64) int32 {
	if line, ok := q.exclusive[obj]; ok {
		return line
	}
	var waiters []int32
	for _, r := range q.entries[queue] {
		if r.Via == viaEpoll && r.Exclusive != 0 {
			waiters = append(waiters, b.exclusiveSleepers(q, r.LinkId)...)
		}
	}
	line := b.addLine(waiters)
	q.exclusive[obj] = line
	return line
}

// exclusiveSleepers are the processes that sleep on an epoll instance, in their order.
func (b *snapshotBuilder) exclusiveSleepers(q *queues, queue uint64) []int32 {
	var out []int32
	for _, r := range q.entries[queue] {
		if r.Exclusive != 0 && r.Tgid != 0 {
			out = append(out, b.outsider(taskKey{r.Tgid, r.StartNs}, comm(r.Comm[:])))
		}
	}
	return out
}

// addLine returns the number of a new line, 0 where one process alone is in it.
func (b *snapshotBuilder) addLine(waiters []int32) int32 {
	if !slices.ContainsFunc(waiters, func(w int32) bool { return w != waiters[0] }) {
		return 0
	}
	b.snap.Lines = append(b.snap.Lines, waiters)
	return int32(len(b.snap.Lines))
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
