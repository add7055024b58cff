package loader

import "testing"

// A process that is measured by several events, for its threads and by CPU, holds their
// buffer once. Another that writes to the same buffer holds it as well.
func TestBuffersOfEventsAreHeldOnce(t *testing.T) {
	b := newSnapshotBuilder()
	first := b.outsider(taskKey{1, 1}, "first")
	second := b.outsider(taskKey{2, 1}, "second")
	const buffer, one, two = 100, 200, 201
	b.addLinks([]snapshotLinkRecord{
		{Kind: linkEventOwner, From: buffer, To: 1, Tgid: 1},
		{Kind: linkEventQueue, From: buffer, To: one},
		{Kind: linkEventQueue, From: buffer, To: two},
		{Kind: linkEventOwner, From: buffer, To: 1, Tgid: 1},
		{Kind: linkEventOwner, From: buffer, To: 1, Tgid: 2},
		{Kind: linkEventOwner, From: buffer, To: 1, Tgid: 9}, // forked since
	})
	s := b.snap
	var holders []int32
	for _, d := range s.Descriptors {
		holders = append(holders, d.Process)
	}
	if len(holders) != 2 || holders[0] != first || holders[1] != second {
		t.Errorf("held by %v, want %d and %d", holders, first, second)
	}
	ends := map[int32][]int32{}
	for _, l := range s.Links {
		ends[l.From] = append(ends[l.From], l.To)
	}
	for _, f := range s.Files {
		if n := len(ends[f.Object]); n != 2 {
			t.Errorf("object %d wakes %d queues, want 2", f.Object, n)
		}
	}
	if len(b.queue) != 2 {
		t.Errorf("%d queues, want 2", len(b.queue))
	}
}
