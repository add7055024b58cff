package loader

import (
	"fmt"
	"strconv"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// taskKey is how the kernel side names a process: initial-namespace tgid and
// start time.
type taskKey struct {
	tgid  int32
	start uint64
}

// snapshotBuilder turns records into a [waitgraph.Snapshot]: kernel addresses
// become indexes here and go no further.
type snapshotBuilder struct {
	snap    *waitgraph.Snapshot
	process map[taskKey]int32
	object  map[uint64]int32
	queue   map[uint64]int32  // wait queue -> the object whose sleepers are on it
	writers map[uint64]bool   // wait queues of those who write to a pipe
	eager   map[uint64]uint64 // such a queue -> that of the readers, of whom each write's end tells who polls
	file    map[uint64]int32
	table   map[uint64]int32
	master  map[int32]bool // objects that are masters of terminals
	mapped  map[uint64]bool

	last  ownerOf       // of the descriptor before
	wakes []objectQueue // what the end of an object wakes beyond its own queues
	locks lockBuilder
	tcp   tcpBuilder
	peers peerBuilder
	room  roomBuilder
	watch watchBuilder
	sem   semBuilder
	futex futexBuilder
	perf  perfBuilder
	kin   kinBuilder
}

type objectQueue struct {
	object int32
	queue  uint64
}

// ownerOf says whose descriptors come one after the other.
type ownerOf struct {
	task        taskKey
	tableID     uint64
	proc, table int32
}

// owner returns the process and the table of a descriptor, false where the process
// is not known.
func (b *snapshotBuilder) owner(r *snapshotDescriptorRecord) (proc, table int32, ok bool) {
	key := taskKey{r.Tgid, r.StartNs}
	if key == b.last.task && r.TableId == b.last.tableID {
		return b.last.proc, b.last.table, true
	}
	if proc, ok = b.process[key]; !ok {
		return 0, 0, false
	}
	table, _ = intern(b.table, r.TableId)
	b.last = ownerOf{key, r.TableId, proc, table}
	return proc, table, true
}

func newSnapshotBuilder() *snapshotBuilder {
	return &snapshotBuilder{
		snap:    &waitgraph.Snapshot{},
		process: make(map[taskKey]int32),
		object:  make(map[uint64]int32),
		queue:   make(map[uint64]int32),
		writers: make(map[uint64]bool),
		eager:   make(map[uint64]uint64),
		file:    make(map[uint64]int32),
		table:   make(map[uint64]int32),
		master:  make(map[int32]bool),
		mapped:  make(map[uint64]bool),
		locks:   newLockBuilder(),
		tcp:     newTCPBuilder(),
		room:    make(roomBuilder),
		watch:   newWatchBuilder(),
		sem:     newSemBuilder(),
		perf:    perfBuilder{queues: make(map[uint64][]uint64)},
		kin:     newKinBuilder(),
	}
}

// build resolves what records refer to, once all of them are there.
func (b *snapshotBuilder) build(sleepers []snapshotSleeperRecord, links []snapshotLinkRecord) *waitgraph.Snapshot {
	b.addLinks(links)
	for _, w := range b.wakes {
		b.link(w.object, w.queue)
	}
	b.peers.addMissing(b)
	b.finishKin()
	b.watch.addPolls(b, sleepers)
	b.addInterrupted(sleepers)
	b.addSleepers(sleepers)
	b.noteCalls()
	b.finishLocks()
	b.sem.addObjects(b, sleepers)
	b.futex.addObjects(b, sleepers)
	return b.snap
}

// addInterrupted makes an object of each blocked write to a pipe that somebody polls for
// data: the death of who writes ends it, and at the end of each write those are told, some
// of whom have not taken what they were told of before (pipe_write, since v5.14).
func (b *snapshotBuilder) addInterrupted(recs []snapshotSleeperRecord) {
	if len(b.eager) == 0 {
		return
	}
	polled := make(map[uint64]bool)
	for i := range recs {
		if recs[i].polls() {
			polled[recs[i].QueueId] = true
		}
	}
	type write struct {
		queue uint64
		proc  int32
	}
	seen := make(map[write]bool)
	for i := range recs {
		r := &recs[i]
		readers, ok := b.eager[r.QueueId]
		if !ok || !polled[readers] || r.Tgid == 0 || r.Via != uint8(waitgraph.ViaPlain) {
			continue
		}
		w := write{r.QueueId, b.outsider(taskKey{r.Tgid, r.StartNs}, comm(r.Comm[:]))}
		if seen[w] {
			continue
		}
		seen[w] = true
		pipe := b.snap.Objects[b.queue[r.QueueId]]
		obj := b.newObject(waitgraph.Object{Channel: pipe.Channel, Name: pipe.Name + " (write)", Call: true})
		b.hold(obj, w.proc)
		b.link(obj, readers|pollersOnly)
	}
}

// noteCalls finds who is blocked in a read or write of a pipe that it has no descriptor
// of: another of its threads has closed it meanwhile, and the call alone holds the file.
func (b *snapshotBuilder) noteCalls() {
	type call struct{ process, object int32 }
	calls := make(map[call]bool)
	for i := range b.snap.Sleepers {
		s := &b.snap.Sleepers[i]
		ch := b.snap.Objects[s.Object].Channel
		if s.Via == waitgraph.ViaPlain && b.snap.Processes[s.Process].Threads > 1 && (ch == waitgraph.ChannelPipe || ch == waitgraph.ChannelFIFO) {
			calls[call{s.Process, s.Object}] = true
		}
	}
	if len(calls) == 0 {
		return
	}
	for i := range b.snap.Descriptors {
		d := &b.snap.Descriptors[i]
		delete(calls, call{d.Process, b.snap.Files[d.File].Object})
	}
	for c := range calls {
		b.snap.Processes[c.process].HoldsUnseen = true
	}
}

// intern returns the index of id, and whether it is new.
func intern(m map[uint64]int32, id uint64) (int32, bool) {
	if i, ok := m[id]; ok {
		return i, false
	}
	i := int32(len(m))
	m[id] = i
	return i, true
}

// newObject adds an object that no record names.
func (b *snapshotBuilder) newObject(o waitgraph.Object) int32 {
	b.snap.Objects = append(b.snap.Objects, o)
	return int32(len(b.snap.Objects) - 1)
}

// queueObject is the object whose sleepers are on a wait queue: one of the
// snapshot's, or one that is nothing but that queue.
func (b *snapshotBuilder) queueObject(queue uint64) int32 {
	o, ok := b.queue[queue]
	if !ok {
		o = b.newObject(waitgraph.Object{})
		b.queue[queue] = o
	}
	return o
}

// link notes that the end of an object wakes whoever sleeps on a queue.
func (b *snapshotBuilder) link(object int32, queue uint64) {
	b.snap.Links = append(b.snap.Links, waitgraph.Link{From: object, To: b.queueObject(queue)})
}

// newLink adds an object whose sleepers the end of another wakes: those who wait
// elsewhere than on a wait queue.
func (b *snapshotBuilder) newLink(from int32, o waitgraph.Object) (to int32) {
	to = b.newObject(o)
	b.snap.Links = append(b.snap.Links, waitgraph.Link{From: from, To: to})
	return to
}

// addWaiter has a process sleep there, in a line or not.
func (b *snapshotBuilder) addWaiter(obj, proc, line int32) {
	b.snap.Sleepers = append(b.snap.Sleepers, waitgraph.Sleeper{
		Object: obj, Process: proc, Via: waitgraph.ViaOther, File: -1, Line: line,
	})
}

func (b *snapshotBuilder) addDescriptor(r *snapshotDescriptorRecord) {
	proc, table, ok := b.owner(r)
	if !ok {
		// Forked after the process pass: the fork tracker knows it.
		return
	}
	if r.Flags&descriptorHides != 0 {
		b.snap.Processes[proc].HoldsUnseen = true
	}
	switch r.Kind {
	case objectLocked:
		b.locks.addDescriptor(r, proc, table)
		return
	case objectWatched:
		b.watch.addDescriptor(b, r, proc, table)
		return
	case objectRing:
		return
	}
	obj, ok := b.object[r.ObjectId]
	if !ok {
		obj = b.addObject(r)
	}
	// With each of its descriptors: the kernel side leaves out those of a pipe that
	// are empty at the moment.
	for _, q := range r.Own {
		if q != 0 {
			b.queue[q] = obj
		}
	}
	if r.Kind == objectPipe || r.Kind == objectFIFO {
		b.writers[r.Own[1]] = true
		if r.Flags&descriptorEager != 0 && r.Own[0] != 0 && r.Own[1] != 0 {
			b.eager[r.Own[1]] = r.Own[0]
		}
	}
	file, ok := b.file[r.FileId]
	if !ok || b.snap.Files[file].Object != obj { // another, which got the address since
		file = int32(len(b.snap.Files))
		b.file[r.FileId] = file
		b.snap.Files = append(b.snap.Files, waitgraph.File{
			Object: obj, End: waitgraph.End(r.End), Refs: r.FileRefs,
		})
	}
	b.snap.Descriptors = append(b.snap.Descriptors, waitgraph.Descriptor{
		Process: proc, File: file, Table: table, TableShared: r.TableUsers > 1, FD: r.Fd,
	})
}

// Kinds of objects: OBJECT_* of bpf/record.h.
const (
	objectPipe = iota + 1
	objectFIFO
	objectUnix
	objectTCP
	objectPTYMaster
	objectPTYSlave
	objectLocked
	objectRing
	objectWatched
)

// Flags of descriptors: DESCRIPTOR_* of bpf/record.h.
const (
	descriptorHides = 1 << iota
	descriptorSilent
	descriptorEager
)

// objectName says the channel of an object, and how its source is called.
func objectName(r *snapshotDescriptorRecord) (ch waitgraph.Channel, name string) {
	switch r.Kind {
	case objectFIFO:
		ch = waitgraph.ChannelFIFO
	case objectUnix:
		ch = waitgraph.ChannelUnix
	case objectTCP:
		ch = waitgraph.ChannelTCP
	case objectPTYMaster:
		return waitgraph.ChannelPTY, fmt.Sprintf("pty:[%d] (master)", r.Inode)
	case objectPTYSlave:
		ch = waitgraph.ChannelPTY
	default:
		ch = waitgraph.ChannelPipe
	}
	return ch, ch.String() + ":[" + strconv.FormatUint(r.Inode, 10) + "]"
}

func (b *snapshotBuilder) addObject(r *snapshotDescriptorRecord) int32 {
	ch, name := objectName(r)
	o := waitgraph.Object{Channel: ch, Name: name, Writers: int32(r.Writers)}
	if ch == waitgraph.ChannelPipe || ch == waitgraph.ChannelFIFO {
		o.Readers = int32(r.Readers)
	}
	obj := b.newObject(o)
	b.object[r.ObjectId] = obj
	b.peers.addObject(r, obj)
	for _, q := range r.Wakes {
		if q != 0 {
			b.wakes = append(b.wakes, objectQueue{obj, q})
		}
	}
	if r.Kind == objectTCP {
		b.tcp.addObject(r, obj)
	}
	if r.Kind == objectPTYMaster {
		b.master[obj] = true
	}
	if r.Kind == objectPTYMaster && r.ScopeId != 0 {
		b.kin.masters = append(b.kin.masters, terminalMaster{obj, r.ScopeId})
	}
	return obj
}

// Kinds of links: LINK_* of bpf/record.h.
const (
	linkQueue = iota + 1
	linkKey
	linkLockTable
	linkLockFile
	linkLockWaiter
	linkLockBlocked
	linkRoom
	linkMapped
	linkMark
	linkSemUndoer
	linkSemUndo
	linkSemValue
	linkSemOperation
	linkPIOwner
	linkEventOwner
	linkEventQueue
)

func (b *snapshotBuilder) addLinks(links []snapshotLinkRecord) {
	for i := range links {
		l := &links[i]
		switch l.Kind {
		case linkQueue:
			if obj, ok := b.object[l.From]; ok {
				b.link(obj, l.To)
			}
		case linkRoom:
			if obj, ok := b.object[l.From]; ok {
				b.room.add(obj, l)
			}
		case linkKey:
			if obj, ok := b.object[l.From]; ok {
				b.tcp.addPeer(obj, l.To, l.Inode)
			}
		case linkMapped:
			b.addMapping(l)
		case linkMark:
			b.watch.addMark(l)
		case linkSemUndoer, linkSemUndo, linkSemValue, linkSemOperation:
			b.sem.addLink(l)
		case linkPIOwner:
			b.futex.addLink(l)
		case linkEventOwner, linkEventQueue:
			b.perf.addLink(l)
		default:
			b.locks.addLink(l)
		}
	}
	b.locks.addObjects(b)
	b.perf.addObjects(b)
	b.watch.link(b)
	b.tcp.link(b)
	b.room.link(b)
}

// addMapping adds a mapping of a file to what holds it: a reference of its own, like an
// entry of a table that nobody has.
func (b *snapshotBuilder) addMapping(l *snapshotLinkRecord) {
	proc, ok := b.process[taskKey{l.Tgid, l.To}]
	if !ok || b.mapped[l.Inode] {
		return
	}
	b.mapped[l.Inode] = true
	d := waitgraph.Descriptor{Process: proc, Table: -1, FD: int32(-1 - len(b.mapped))}
	b.locks.addMapping(l.From, d)
	b.watch.addMapping(b, l.From, d)
}

// outsider returns the index of a process that the caller's pid namespace does
// not show.
func (b *snapshotBuilder) outsider(key taskKey, name string) int32 {
	proc, ok := b.process[key]
	if !ok {
		proc = int32(len(b.snap.Processes))
		b.process[key] = proc
		b.snap.Processes = append(b.snap.Processes, waitgraph.Process{
			Identity:  waitgraph.Identity{StartNS: key.start},
			KernelPID: key.tgid, Comm: name, State: 'S', Threads: 1,
		})
		b.snap.Kin = append(b.snap.Kin, noKin)
	}
	return proc
}
