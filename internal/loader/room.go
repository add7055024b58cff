package loader

import (
	"cmp"
	"slices"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// roomBuilder adds up what the end of datagram sockets frees of others' send buffers,
// by the queue on which those wait who have no room to send.
type roomBuilder map[uint64]*room

type room struct {
	wanted uint32 // bytes
	freed  []freed
}

// freed are the bytes that go with the datagrams that one socket has not read.
type freed struct {
	object int32
	bytes  uint32
}

func (r roomBuilder) add(obj int32, l *snapshotLinkRecord) {
	to := r[l.To]
	if to == nil {
		to = &room{}
		r[l.To] = to
	}
	to.wanted = l.Wanted
	i := slices.IndexFunc(to.freed, func(f freed) bool { return f.object == obj })
	if i < 0 {
		i = len(to.freed)
		to.freed = append(to.freed, freed{object: obj})
	}
	to.freed[i].bytes += l.Freed
}

// link links the sockets whose end frees enough, or all that together do.
func (r roomBuilder) link(b *snapshotBuilder) {
	queues := make([]uint64, 0, len(r))
	for queue := range r {
		queues = append(queues, queue)
	}
	slices.SortFunc(queues, func(x, y uint64) int { return cmp.Compare(r[x].freed[0].object, r[y].freed[0].object) })
	for _, queue := range queues {
		var few []int32
		total := uint32(0)
		for _, f := range r[queue].freed {
			if f.bytes >= r[queue].wanted {
				b.link(f.object, queue|sendersOnly)
				continue
			}
			few = append(few, f.object)
			total += f.bytes
		}
		if total >= r[queue].wanted {
			b.link(b.together(few), queue|sendersOnly)
		}
	}
}

// together makes an object that ends when the last of several has ended.
func (b *snapshotBuilder) together(objects []int32) int32 {
	first := b.snap.Objects[objects[0]]
	all := b.newObject(waitgraph.Object{Channel: first.Channel, Name: first.Name + " and others"})
	files := make(map[int32]int32)
	for i := range b.snap.Files {
		if f := b.snap.Files[i]; slices.Contains(objects, f.Object) {
			files[int32(i)] = b.newFile(all, f.Refs)
		}
	}
	for i := range b.snap.Descriptors {
		d := b.snap.Descriptors[i]
		if f, ok := files[d.File]; ok {
			d.File = f
			b.snap.Descriptors = append(b.snap.Descriptors, d)
		}
	}
	b.snap.Objects[all].Writers = int32(len(files))
	return all
}
