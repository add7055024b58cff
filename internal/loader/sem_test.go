package loader

import (
	"slices"
	"testing"
)

func TestSemaphores(t *testing.T) {
	type waiter []semOperation
	up := func(n int32) map[uint32]int32 { return map[uint32]int32{0: n} }
	take := func(n int32) waiter { return waiter{{0, -n}} }
	zero := waiter{{0, 0}}
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
		{"both or nothing", 0, []waiter{{{0, -1}, {1, -2}}}, up(1), nil, nil},
		{"both", 0, []waiter{{{0, -1}, {1, -1}}}, up(1), []int{0}, []int{0}},
		{"one gives to the next", 0, []waiter{{{0, -1}, {1, 1}}, {{1, -2}}}, up(1), []int{0}, []int{0, 1}},
		{"no higher than SEMVMX", semMax - 1, []waiter{{{0, -semMax}, {0, 0}}}, up(5), []int{0}, []int{0}},
		{"beyond SEMVMX is an error", 0, []waiter{{{0, -1}, {1, semMax}}}, up(1), []int{0}, []int{0}},
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
						Freed: o.semaphore, Wanted: uint32(o.change),
					})
				}
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
