package loader

import (
	"fmt"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// watchBuilder gathers the files of whose close somebody is told, by inotify or
// fanotify. Each file (a struct file) becomes an object of its own: whoever watches is
// told of every one that goes.
type watchBuilder struct {
	files map[uint64]int32         // file_id -> Snapshot.Files
	asked []watchedObject          // one for each file
	marks map[uint64][]watchedMark // by what they are on
}

type watchedObject struct {
	object int32
	on     [4]uint64 // the file, its directory, its mount, its file system
	event  uint32    // FS_CLOSE_*, and FS_ISDIR
}

// watchedMark says which events one instance is told of, and where its readers sleep.
type watchedMark struct {
	queue  uint64
	events uint32
}

func newWatchBuilder() watchBuilder {
	return watchBuilder{files: make(map[uint64]int32), marks: make(map[uint64][]watchedMark)}
}

func (w *watchBuilder) addDescriptor(b *snapshotBuilder, r *snapshotDescriptorRecord, proc, table int32) {
	file, ok := w.files[r.FileId]
	if !ok {
		obj := b.newObject(waitgraph.Object{
			Channel: waitgraph.ChannelOther, Name: fmt.Sprintf("watched:[%d]", r.Inode), Writers: int32(r.Writers),
		})
		file = b.newFile(obj, r.FileRefs)
		w.files[r.FileId] = file
		w.asked = append(w.asked, watchedObject{
			object: obj, on: [4]uint64{r.Own[0], r.Own[1], r.Wakes[0], r.Wakes[1]}, event: r.Wanted,
		})
	}
	b.snap.Descriptors = append(b.snap.Descriptors, waitgraph.Descriptor{
		Process: proc, File: file, Table: table, TableShared: r.TableUsers > 1, FD: r.Fd,
	})
}

// addMapping adds a mapping to what holds the file, if that is watched.
func (w *watchBuilder) addMapping(b *snapshotBuilder, file uint64, d waitgraph.Descriptor) {
	f, ok := w.files[file]
	if !ok {
		return
	}
	d.File = f
	b.snap.Descriptors = append(b.snap.Descriptors, d)
}

func (w *watchBuilder) addMark(l *snapshotLinkRecord) {
	w.marks[l.From] = append(w.marks[l.From], watchedMark{l.To, l.Wanted})
}

// addPolls adds the references that polls hold, of whatever object the file is as well.
func (w *watchBuilder) addPolls(b *snapshotBuilder, recs []snapshotSleeperRecord) {
	if len(w.files) == 0 {
		return
	}
	seen := make(map[uint64]bool)
	for i := range recs {
		r := &recs[i]
		file, ok := w.files[r.LinkId]
		proc, known := b.process[taskKey{r.Tgid, r.StartNs}]
		if r.Via != uint8(waitgraph.ViaPoll) || !ok || !known || seen[r.EntryId] {
			continue
		}
		seen[r.EntryId] = true
		b.snap.Descriptors = append(b.snap.Descriptors, waitgraph.Descriptor{
			Process: proc, File: file, Table: -2, FD: int32(len(seen)),
		})
	}
}

// Bits of marks and events: FS_* of include/linux/fsnotify_backend.h.
const (
	closeEvents  = 0x18 // FS_CLOSE_WRITE, FS_CLOSE_NOWRITE
	unmounted    = 0x2000
	eventOnChild = 0x08000000
	isDirectory  = 0x40000000
)

// onDirectory is the place of its directory in what a file is watched by.
const onDirectory = 1

// asks reports whether a mark asks for an event. Of directories fanotify tells only who
// says so; inotify's marks, which alone ask to be told of unmounts, need not.
func (m watchedMark) asks(event uint32, on int) bool {
	switch {
	case m.events&event&closeEvents == 0:
		return false
	case on == onDirectory && m.events&eventOnChild == 0:
		return false
	}
	return event&isDirectory == 0 || m.events&(isDirectory|unmounted) != 0
}

func (w *watchBuilder) link(b *snapshotBuilder) {
	for _, o := range w.asked {
		for i, on := range o.on {
			if on == 0 {
				continue
			}
			for _, m := range w.marks[on] {
				if m.asks(o.event, i) {
					b.link(o.object, m.queue)
				}
			}
		}
	}
}
