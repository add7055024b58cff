package loader

import (
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// A mutex goes to who comes first. What was read twice is there once, and an owner whom
// nobody knows has no mutex.
func TestMutexesHaveLines(t *testing.T) {
	b := newSnapshotBuilder()
	owner := b.outsider(taskKey{1, 1}, "owner")
	const mutex, unowned, other = 100, 101, 102
	links := []snapshotLinkRecord{
		{Kind: linkPIOwner, From: mutex, To: 1, Tgid: 1},
		{Kind: linkPIOwner, From: unowned, To: 1, Tgid: 9},
		{Kind: linkPIOwner, From: mutex, To: 1, Tgid: 1},
	}
	b.addLinks(links)
	waiter := func(entry, queue uint64, tgid int32) snapshotSleeperRecord {
		return snapshotSleeperRecord{EntryId: entry, QueueId: queue, Tgid: tgid, StartNs: 1}
	}
	b.futex.addObjects(b, []snapshotSleeperRecord{
		waiter(200, mutex, 2), waiter(201, mutex, 3), waiter(200, mutex, 2),
		waiter(202, unowned, 4), waiter(203, other, 5),
	})
	s := b.snap
	if n := len(s.Objects); n != 2 {
		t.Fatalf("%d objects, want the mutex and its queue: %+v", n, s.Objects)
	}
	if o := s.Objects[0]; o.Channel != waitgraph.ChannelFutex {
		t.Errorf("channel %v, want futex", o.Channel)
	}
	if n := len(s.Descriptors); n != 1 || s.Descriptors[0].Process != owner {
		t.Errorf("held by %+v, want the owner alone", s.Descriptors)
	}
	if n := len(s.Sleepers); n != 2 {
		t.Fatalf("%d sleepers, want 2: %+v", n, s.Sleepers)
	}
	for i, want := range []int32{2, 3} {
		got := s.Sleepers[i]
		if tgid := s.Processes[got.Process].KernelPID; tgid != want || got.Line != 1 || got.Object != 1 {
			t.Errorf("sleeper %d: process %d, %+v; want %d, in line 1 of object 1", i, tgid, got, want)
		}
	}
	if n := len(s.Lines); n != 1 || len(s.Lines[0]) != 2 {
		t.Errorf("lines %v, want one of 2", s.Lines)
	}
}
