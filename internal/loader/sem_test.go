package loader

import (
	"slices"
	"testing"
)

func TestSemaphores(t *testing.T) {
	type waiter []semOperation
	up := func(n int32) map[uint32]int32 { return map[uint32]int32{0: n} }
	take := func(n int32) waiter { return waiter{{semaphore: 0, change: -n}} }
	zero := waiter{{semaphore: 0}}
	for _, test := range []struct {
		name    string
		value   int32 // of the first; the second is 1
		waiters []waiter
		undo    map[uint32]int32
		able    []int // each by itself
		done    []int
	}{
		{"one unit, one waiter", 0, []waiter{take(1)}, up(1), []int{0}, []int{0}},
		{"one unit, the first in line", 0, []waiter{take(1), take(1), take(1)}, up(1), []int{0, 1, 2}, []int{0}},
		{"two units, the first two", 0, []waiter{take(1), take(1), take(1)}, up(2), []int{0, 1, 2}, []int{0, 1}},
		{"who wants more is passed over", 0, []waiter{take(2), take(1)}, up(1), []int{1}, []int{1}},
		{"too few", 0, []waiter{take(3)}, up(2), nil, nil},
		{"units that are there", 2, []waiter{take(3)}, up(1), []int{0}, []int{0}},
		{"down to zero", 1, []waiter{zero, zero}, up(-1), []int{0, 1}, []int{0, 1}},
		{"no lower than zero", 1, []waiter{zero}, up(-5), []int{0}, []int{0}},
		{"not down to zero", 2, []waiter{zero}, up(-1), nil, nil},
		{"zero by whoever goes on", 0, []waiter{zero, take(1)}, up(1), []int{1}, []int{1, 0}},
		{"both or nothing", 0, []waiter{{{semaphore: 0, change: -1}, {semaphore: 1, change: -2}}}, up(1), nil, nil},
		{"both", 0, []waiter{{{semaphore: 0, change: -1}, {semaphore: 1, change: -1}}}, up(1), []int{0}, []int{0}},
		{"one gives to the next", 0, []waiter{{{semaphore: 0, change: -1}, {semaphore: 1, change: 1}}, {{semaphore: 1, change: -2}}}, up(1), []int{0}, []int{0, 1}},
		{"no higher than SEMVMX", semMax - 1, []waiter{{{semaphore: 0, change: -semMax}, {semaphore: 0, change: 0}}}, up(5), []int{0}, []int{0}},
		{"beyond SEMVMX is an error", 0, []waiter{{{semaphore: 0, change: -1}, {semaphore: 1, change: semMax}}}, up(1), []int{0}, []int{0}},
		{"an error takes nothing", 0, []waiter{{{semaphore: 0, change: -1}, {semaphore: 1, change: semMax}}, take(1)}, up(1), []int{0, 1}, []int{0, 1}},
		{"not the first two", 0, []waiter{take(1), take(2), take(1)}, up(2), []int{0, 1, 2}, []int{0, 2}},
		{"a value that was not read", 0, []waiter{{{semaphore: 300, change: 0}}}, up(1), nil, nil},
		{"it would not wait for the other", 0, []waiter{{{semaphore: 0, change: -1}, {semaphore: 1, change: -2, noWait: true}}}, up(1), []int{0}, []int{0}},
		{"nothing changes", 0, []waiter{take(1)}, map[uint32]int32{1: 1}, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newSemBuilder()
			set := b.set(1)
			set.values[0], set.values[1] = test.value, 1
			for i, w := range test.waiters {
				for k, o := range w {
					b.addLink(&snapshotLinkRecord{
						Kind: linkSemOperation, From: 1, To: uint64(i), Tgid: int32(len(w)), Inode: uint64(k),
						Freed: o.semaphore | noWait(o.noWait), Wanted: uint32(o.change),
					})
				}
			}
			outcome := [2][]uint64{}
			outcome[0], outcome[1], _ = set.outcome(set.able(test.undo), test.undo)
			if n := len(outcome[0]) + len(outcome[1]); n != len(test.able) {
				t.Errorf("%d go on or come too late, of %d who are able", n, len(test.able))
			}
			ids := func(list []uint64) (out []int) {
				for _, w := range list {
					out = append(out, int(w))
				}
				return out
			}
			if got := ids(set.able(test.undo)); !slices.Equal(got, test.able) {
				t.Errorf("able to go on: %v, want %v", got, test.able)
			}
			if got := ids(set.update(test.undo)); !slices.Equal(got, test.done) {
				t.Errorf("go on: %v, want %v", got, test.done)
			}
		})
	}
}

// What is not known whole is not done: the kernel side reads so many operations.
func TestSemaphoreOperationsUnread(t *testing.T) {
	b := newSemBuilder()
	b.addLink(&snapshotLinkRecord{Kind: linkSemOperation, From: 1, To: 2, Tgid: 17, Wanted: ^uint32(0)})
	if got := b.set(1).able(map[uint32]int32{0: 1}); got != nil {
		t.Errorf("goes on with 16 operations unread: %v", got)
	}
}

// A walk that begins again says everything twice.
func TestSemaphoreReadTwice(t *testing.T) {
	b := newSemBuilder()
	for range 2 {
		for i := range 2 {
			b.addLink(&snapshotLinkRecord{
				Kind: linkSemOperation, From: 1, To: 2, Tgid: 2, Inode: uint64(i), Freed: uint32(i), Wanted: ^uint32(0),
			})
		}
	}
	set := b.set(1)
	if n := len(set.queue); n != 1 {
		t.Fatalf("%d waiters, want 1", n)
	}
	if got := len(set.waiters[2].operations); got != 2 {
		t.Errorf("%d operations, want 2", got)
	}
}

func noWait(set bool) uint32 {
	if set {
		return ipcNoWait << 16
	}
	return 0
}

// Two who hold a unit each give to the same line: the second wake is the second waiter's.
func TestSemaphoreLineIsShared(t *testing.T) {
	b := newSnapshotBuilder()
	for tgid := int32(1); tgid <= 4; tgid++ {
		b.outsider(taskKey{tgid, 1}, "")
	}
	sem := &b.sem
	sem.set(9).values[0] = 0
	var recs []snapshotSleeperRecord
	for i := range 2 {
		tgid, list, waiter := int32(1+i), uint64(100+i), uint64(200+i)
		sem.addLink(&snapshotLinkRecord{Kind: linkSemUndoer, From: list, To: 1, Tgid: tgid})
		sem.addLink(&snapshotLinkRecord{Kind: linkSemUndo, From: list, To: 9, Inode: 7, Wanted: 1})
		sem.addLink(&snapshotLinkRecord{Kind: linkSemOperation, From: 9, To: waiter, Tgid: 1, Wanted: ^uint32(0)})
		recs = append(recs, snapshotSleeperRecord{EntryId: waiter, QueueId: waiter, Tgid: tgid + 2, StartNs: 1})
	}
	sem.addObjects(b, recs)
	if n := len(b.snap.Lines); n != 1 {
		t.Fatalf("%d lines, want 1: %v", n, b.snap.Lines)
	}
	if n := len(b.snap.Sleepers); n != 4 {
		t.Fatalf("%d sleepers, want each of two waiters once for each of two holders", n)
	}
	for _, s := range b.snap.Sleepers {
		if s.Line != 1 {
			t.Errorf("%+v is in no line", s)
		}
	}
}
