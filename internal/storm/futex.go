package storm

import "golang.org/x/sys/unix"

var futexTopologies = []Topology{
	{
		Name: "futex-robust", Unit: "servers", Channel: "futex",
		Summary:       "servers that own a robust mutex in memory shared with their router children, which wait for it: one in futex, two in futex, or one for a lock with priority inheritance",
		Unpredictable: "the list of the robust mutexes that a thread holds is in its own memory, and to read it may page it in",
		Outcome:       "of those that wait for a mutex one wakes, and finds its owner dead",
		build:         func(b *builder, n int) { b.trees(n, b.mutexes()...) },
	}, {
		Name: "futex-pi", Unit: "servers", Channel: "futex",
		Summary: "servers that own a mutex with priority inheritance in memory shared with their children, which wait for it: one, two in their order, or one behind another server; it is in no robust list",
		Outcome: "the first router of each server wakes, and owns the mutex; who is behind another does not",
		build:   func(b *builder, n int) { b.trees(n, b.inheritedMutexes()...) },
	},
}

const (
	futexWaiters = 0x80000000 // somebody waits for the mutex
	futexLockPI  = 6

	// A mutex in shared memory: its link in the owner's robust list, its word.
	mutexWord = 8
	mutexSize = 4096
)

func (b *builder) mutexes() []*node {
	tree := func(held uint32, waiter *node) *node {
		return &node{
			comm: Target, role: "owner",
			open:     func() { b.ownMutex(regOut, held) },
			wait:     func() { b.registerMutex(regOut); b.accept() },
			children: []*node{waiter},
		}
	}
	wait := func() {
		b.load(regTemp, reg(regOut), mutexWord)
		b.add(regPtr, reg(regOut), imm(mutexWord))
		b.block(unix.SYS_FUTEX, reg(regPtr), imm(futexWait), reg(regTemp), imm(0))
	}
	return []*node{
		tree(futexWaiters, &node{role: "waiter", wakes: dies("owner"), wait: wait}),
		tree(futexWaiters, &node{
			role: "one of two", times: 2, wait: wait,
			wakes: []when{{deaths: []string{"owner"}, oneOf: true}},
		}),
		tree(0, b.inheriting()),
	}
}

func (b *builder) inheritedMutexes() []*node {
	owner := func(children ...*node) *node {
		return &node{comm: Target, role: "owner", open: func() { b.ownMutex(regOut, 0) }, children: children}
	}
	next, behind := b.inheriting(), b.inheriting()
	behind.role, behind.after, behind.wakes = "behind the next", next.role, dies("owner", next.role)
	dying, heir := b.inheriting(), b.inheriting()
	dying.comm, dying.role = Target, "dying"
	heir.after, heir.wakes = dying.role, dies("owner", dying.role)
	return []*node{owner(b.inheriting()), owner(next, behind), owner(dying, heir)}
}

// inheriting waits for a mutex with priority inheritance.
func (b *builder) inheriting() *node {
	return &node{
		role: "inheriting", wakes: dies("owner"),
		wait: func() {
			b.add(regPtr, reg(regOut), imm(mutexWord))
			b.block(unix.SYS_FUTEX, reg(regPtr), imm(futexLockPI), imm(0), imm(0))
		},
	}
}

// ownMutex makes a mutex that this thread owns. Whoever waits for it by
// FUTEX_LOCK_PI says so itself; others need the bit in held.
func (b *builder) ownMutex(memory int, held uint32) {
	b.must(memory, unix.SYS_MMAP, imm(0), imm(mutexSize), imm(unix.PROT_READ|unix.PROT_WRITE),
		imm(unix.MAP_SHARED|unix.MAP_ANONYMOUS), imm(^uintptr(0)), imm(0))
	b.must(regTemp, unix.SYS_GETTID)
	b.add(regTemp, reg(regTemp), imm(uintptr(held)))
	b.store(reg(memory), mutexWord, reg(regTemp))
}

// registerMutex makes the mutex the only entry of this thread's robust list.
func (b *builder) registerMutex(memory int) {
	head := b.scratch + scratchRobust
	b.store64(imm(head), 0, reg(memory))
	b.store64(imm(head), 8, imm(mutexWord))
	b.store64(reg(memory), 0, imm(head))
	b.must(regTemp, unix.SYS_SET_ROBUST_LIST, imm(head), imm(24))
}
