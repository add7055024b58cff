package loader

import (
	"fmt"

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
	file    map[uint64]int32
	table   map[uint64]int32
}

func newSnapshotBuilder(procs []waitgraph.Process) *snapshotBuilder {
	b := &snapshotBuilder{
		snap:    &waitgraph.Snapshot{Processes: procs},
		process: make(map[taskKey]int32, len(procs)),
		object:  make(map[uint64]int32),
		file:    make(map[uint64]int32),
		table:   make(map[uint64]int32),
	}
	for i := range procs {
		b.process[taskKey{procs[i].KernelPID, procs[i].StartNS}] = int32(i)
	}
	return b
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

func (b *snapshotBuilder) addDescriptor(r *snapshotDescriptorRecord) {
	proc, ok := b.process[taskKey{r.Tgid, r.StartNs}]
	if !ok {
		// Forked after the process pass: the fork tracker knows it.
		return
	}
	obj, fresh := intern(b.object, r.ObjectId)
	if fresh {
		ch := waitgraph.ChannelPipe
		if r.Kind == objectFIFO {
			ch = waitgraph.ChannelFIFO
		}
		b.snap.Objects = append(b.snap.Objects, waitgraph.Object{
			Channel: ch, Name: fmt.Sprintf("%s:[%d]", ch, r.Inode),
			Readers: int32(r.Readers), Writers: int32(r.Writers),
		})
	}
	file, fresh := intern(b.file, r.FileId)
	if fresh {
		b.snap.Files = append(b.snap.Files, waitgraph.File{
			Object: obj, End: waitgraph.End(r.End), Refs: r.FileRefs,
		})
	}
	table, _ := intern(b.table, r.TableId)
	b.snap.Descriptors = append(b.snap.Descriptors, waitgraph.Descriptor{
		Process: proc, File: file, Table: table, TableShared: r.TableUsers > 1, FD: r.Fd,
	})
}

// addSleepers resolves the wait queue entries. An entry of an epoll instance
// stands for everybody asleep in epoll_wait on that instance.
func (b *snapshotBuilder) addSleepers(recs []snapshotSleeperRecord) {
	type queued struct {
		entry, object uint64
	}
	seen := make(map[queued]bool, len(recs))
	var instances map[uint64][]int // epoll instance -> records of its sleepers
	for i := range recs {
		if _, isObject := b.object[recs[i].ObjectId]; !isObject {
			if instances == nil {
				instances = make(map[uint64][]int)
			}
			instances[recs[i].ObjectId] = append(instances[recs[i].ObjectId], i)
		}
	}
	for i := range recs {
		r := &recs[i]
		obj, isObject := b.object[r.ObjectId]
		q := queued{r.EntryId, r.ObjectId}
		if !isObject || seen[q] {
			continue
		}
		seen[q] = true
		switch waitgraph.Via(r.Via) {
		case waitgraph.ViaEpoll:
			for _, j := range instances[r.LinkId] {
				b.addSleeper(obj, &recs[j], waitgraph.ViaEpoll)
			}
		default:
			b.addSleeper(obj, r, waitgraph.Via(r.Via))
		}
	}
}

func (b *snapshotBuilder) addSleeper(obj int32, r *snapshotSleeperRecord, via waitgraph.Via) {
	if r.Tgid == 0 {
		b.snap.Incomplete.Callbacks++
		return
	}
	key := taskKey{r.Tgid, r.StartNs}
	proc, ok := b.process[key]
	if !ok {
		proc = int32(len(b.snap.Processes))
		b.process[key] = proc
		b.snap.Processes = append(b.snap.Processes, waitgraph.Process{
			Identity:  waitgraph.Identity{StartNS: r.StartNs},
			KernelPID: r.Tgid, Comm: comm(r.Comm[:]), State: 'S', Threads: 1,
		})
	}
	file := int32(-1)
	if via == waitgraph.ViaPoll {
		if f, ok := b.file[r.LinkId]; ok {
			file = f
		}
	}
	b.snap.Sleepers = append(b.snap.Sleepers, waitgraph.Sleeper{
		Object: obj, Process: proc, Via: via, Exclusive: r.Exclusive != 0, File: file,
	})
}

const objectFIFO = 2
