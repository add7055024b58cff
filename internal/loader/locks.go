package loader

import (
	"fmt"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// lockBuilder gathers the file locks that somebody waits for. A lock becomes
// an object that its owner holds, and a blocked request that others wait
// behind one that its sleeper holds.
type lockBuilder struct {
	tables  map[uint64][]int32     // descriptor table -> processes
	files   map[uint64]*lockedFile // by file_id
	owned   []snapshotLinkRecord   // locks and their owners
	waiters []snapshotLinkRecord   // blocked requests and the queues of who made them
	blocked map[uint64][]uint64    // lock or request -> queues behind it
	held    []objectQueue          // blocked request -> queue of who made it
}

// lockedFile is a file description with locks on its inode.
type lockedFile struct {
	refs        int64
	descriptors []waitgraph.Descriptor
}

func newLockBuilder() lockBuilder {
	return lockBuilder{
		tables: make(map[uint64][]int32), files: make(map[uint64]*lockedFile),
		blocked: make(map[uint64][]uint64),
	}
}

func (l *lockBuilder) addDescriptor(r *snapshotDescriptorRecord, proc, table int32) {
	if have := l.tables[r.TableId]; len(have) == 0 || have[len(have)-1] != proc {
		l.tables[r.TableId] = append(have, proc)
	}
	f := l.files[r.FileId]
	if f == nil {
		f = &lockedFile{refs: r.FileRefs}
		l.files[r.FileId] = f
	}
	f.descriptors = append(f.descriptors, waitgraph.Descriptor{
		Process: proc, Table: table, TableShared: r.TableUsers > 1, FD: r.Fd,
	})
}

func (l *lockBuilder) addLink(r *snapshotLinkRecord) {
	switch r.Kind {
	case linkLockTable, linkLockFile:
		l.owned = append(l.owned, *r)
	case linkLockWaiter:
		l.waiters = append(l.waiters, *r)
	case linkLockBlocked:
		l.blocked[r.From] = append(l.blocked[r.From], r.To)
	}
}

func (l *lockBuilder) addMapping(file uint64, d waitgraph.Descriptor) {
	f := l.files[file]
	if f == nil { // its refs are those of the mappings then
		f = &lockedFile{}
		l.files[file] = f
	}
	f.descriptors = append(f.descriptors, d)
}

// addObjects makes the objects, with links to those who wait.
func (l *lockBuilder) addObjects(b *snapshotBuilder) {
	for i := range l.owned {
		r := &l.owned[i]
		kind := "lock"
		if r.Kind == linkLockFile {
			kind = "flock"
		}
		obj := b.newLock(r.From, fmt.Sprintf("%s:[%d]", kind, r.Inode))
		if r.Kind == linkLockTable {
			if len(l.tables[r.To]) == 0 {
				b.snap.Objects[obj].Writers = 1 // a holder that was not found
			}
			for _, p := range l.tables[r.To] {
				b.hold(obj, p)
			}
			continue
		}
		f := l.files[r.To]
		if f == nil {
			b.snap.Objects[obj].Writers = 1
			continue
		}
		file := b.newFile(obj, f.refs)
		for _, d := range f.descriptors {
			d.File = file
			b.snap.Descriptors = append(b.snap.Descriptors, d)
		}
	}
	for i := range l.waiters {
		r := &l.waiters[i]
		l.held = append(l.held, objectQueue{b.newLock(r.From, "lock request"), r.To})
	}
}

// newLock makes an object of a lock or a blocked request.
func (b *snapshotBuilder) newLock(id uint64, name string) int32 {
	obj := b.newObject(waitgraph.Object{Channel: waitgraph.ChannelLock, Name: name})
	for _, q := range b.locks.blocked[id] {
		b.link(obj, q)
	}
	return obj
}

// newFile makes a file that holds an object.
func (b *snapshotBuilder) newFile(obj int32, refs int64) int32 {
	b.snap.Files = append(b.snap.Files, waitgraph.File{Object: obj, End: waitgraph.EndOpen, Refs: refs})
	return int32(len(b.snap.Files) - 1)
}

// hold makes a process hold an object for as long as it lives.
func (b *snapshotBuilder) hold(obj, proc int32) {
	b.snap.Descriptors = append(b.snap.Descriptors, waitgraph.Descriptor{
		Process: proc, File: b.newFile(obj, 0), Table: -1, FD: -1,
	})
}

// finishLocks makes those asleep on a blocked request hold it: they are known
// last.
func (b *snapshotBuilder) finishLocks() {
	if len(b.locks.held) == 0 {
		return
	}
	at := make(map[int32][]int32)
	for i := range b.snap.Sleepers {
		s := &b.snap.Sleepers[i]
		at[s.Object] = append(at[s.Object], s.Process)
	}
	for _, h := range b.locks.held {
		for _, p := range at[b.queueObject(h.queue)] {
			b.hold(h.object, p)
		}
	}
}
