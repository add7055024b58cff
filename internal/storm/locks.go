package storm

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

var lockTopologies = []Topology{
	{
		Name: "flock", Unit: "servers", Channel: "lock",
		Summary: "servers that hold a flock, each with two router children blocked on it: one behind the other, side by side where they share, or one behind two holders",
		Outcome: "who is next gets the lock and wakes; who queues behind that sleeps on",
		build:   func(b *builder, n int) { b.trees(n, b.lockTrees(b.flocks())...) },
	}, {
		Name: "flock-anything", Unit: "servers", Channel: "lock",
		Summary: "servers that hold a flock on a pipe, on a terminal, or on a file that they have mapped, each with a router child blocked on it",
		Outcome: "every router wakes",
		needs:   needPty,
		build:   func(b *builder, n int) { b.trees(n, b.lockedThings()...) },
	}, {
		Name: "flock-mapped", Unit: "servers", Channel: "lock", Quiet: true,
		Summary: "servers that hold a flock on a file that a second child has mapped, and no longer open, each with a router child blocked on it",
		Outcome: "nobody wakes: the mapping keeps the file, and the file its lock",
		build:   func(b *builder, n int) { b.trees(n, b.lockMapped()) },
	}, {
		Name: "posix-lock", Unit: "servers", Channel: "lock",
		Summary: "the same with fcntl's locks, which belong to processes; and a chain, each of which holds a byte and waits for the next one's",
		Outcome: "the same; in a chain the first wakes",
		build: func(b *builder, n int) {
			locks := b.recordLocks(unix.F_SETLKW)
			b.trees(n, append(b.lockTrees(locks), b.lockChain(locks))...)
		},
	}, {
		Name: "ofd-lock", Unit: "servers", Channel: "lock",
		Summary: "the same as flock with fcntl's locks that belong to open files",
		Outcome: "the same",
		build:   func(b *builder, n int) { b.trees(n, b.lockTrees(b.recordLocks(unix.F_OFD_SETLKW))...) },
	},
}

// lockedThings are servers with a flock on something that is no plain file, or is
// mapped. open puts it at lockFile.
func (b *builder) lockedThings() []*node {
	locks := b.flocks()
	var kinds []*node
	for _, thing := range []struct {
		role string
		open func()
	}{
		{"waiter for a pipe", func() { b.pipe(regFD, regOut); b.lockFileIs(regFD) }},
		{"waiter for a terminal", func() { b.pty(regOut, regFD); b.lockFileIs(regFD) }},
		{"waiter for a mapped file", func() { b.makeLockFile(); b.mapLockFile() }},
	} {
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			open: func() { thing.open(); locks.take(true, 0) },
			children: []*node{{
				role: thing.role, wakes: dies("server"),
				// It inherits the mapping, too.
				open: func() { b.reopenLockFile(); b.unmapLockFile() },
				wait: func() { locks.wait(true, 0) },
			}},
		})
	}
	return kinds
}

func (b *builder) lockMapped() *node {
	locks := b.flocks()
	return &node{
		comm: Target, role: "server",
		open: func() { b.makeLockFile(); locks.take(true, 0); b.mapLockFile() },
		shut: b.unmapLockFile,
		children: []*node{{
			role: "mapper",
			open: func() { b.must(regTemp, unix.SYS_CLOSE, imm(lockFile)) },
		}, {
			role: "waiter", wakes: dies("server", "mapper"),
			open: func() { b.reopenLockFile(); b.unmapLockFile() },
			wait: func() { locks.wait(true, 0) },
		}},
	}
}

// mapLockFile maps the first page of the file, and puts where into regPtr.
func (b *builder) mapLockFile() {
	b.must(regPtr, unix.SYS_MMAP, imm(0), imm(unix.Getpagesize()), imm(unix.PROT_READ), imm(unix.MAP_SHARED), imm(lockFile), imm(0))
}

// unmapLockFile unmaps it; where there is no mapping, nothing happens.
func (b *builder) unmapLockFile() {
	b.must(regTemp, unix.SYS_MUNMAP, reg(regPtr), imm(unix.Getpagesize()))
}

// locking is one kind of lock on a byte of the file.
type locking struct {
	// take gets a lock that is free, and wait one that is not.
	take, wait func(exclusive bool, offset int)
}

// lockFile is the descriptor of the file, and lockPath opens it anew: that makes
// an open file of the process's own.
const (
	lockFile = 100
	lockPath = "/proc/self/fd/100"
)

func (b *builder) lockTrees(l locking) []*node {
	waiter := func(role, after string, exclusive bool, wakes []when) *node {
		return &node{
			role: role, after: after, wakes: wakes, open: b.reopenLockFile,
			wait: func() { l.wait(exclusive, 0) },
		}
	}
	return []*node{
		{
			comm: Target, role: "holder",
			open: func() { b.makeLockFile(); l.take(true, 0) },
			children: []*node{
				waiter("next", "", true, dies("holder")),
				// It waits for the other waiter: if that dies it looks again.
				waiter("after next", "next", true,
					append(dies("holder", "next"), when{deaths: []string{"next"}, effect: Stirs})),
			},
		}, {
			comm: Target, role: "holder",
			open: func() { b.makeLockFile(); l.take(true, 0) },
			children: []*node{
				waiter("sharer", "", false, dies("holder")),
				waiter("other sharer", "sharer", false, dies("holder")),
			},
		}, {
			comm: Target, role: "holder",
			open: func() { b.makeLockFile(); l.take(false, 0) },
			children: []*node{
				{
					comm: Target, role: "other holder",
					open: func() { b.reopenLockFile(); l.take(false, 0) },
				},
				// It waits for the first that is in its way, then for the other.
				waiter("waiter", "other holder", true,
					append(dies("holder", "other holder"), when{deaths: []string{"holder"}, effect: Stirs})),
			},
		},
	}
}

// lockChain is processes that each hold a byte that the next one waits for. Each
// has its own byte before it forks the next.
func (b *builder) lockChain(l locking) *node {
	link := func(i int, role, waitsFor string) *node {
		return &node{
			role: role, wakes: dies(waitsFor),
			open: func() { b.reopenLockFile(); l.take(true, i) },
			wait: func() { l.wait(true, i-1) },
		}
	}
	first, second := link(1, "first", "holder"), link(2, "second", "first")
	first.children = []*node{second}
	return &node{
		comm: Target, role: "holder",
		open:     func() { b.makeLockFile(); l.take(true, 0) },
		children: []*node{first},
	}
}

func (b *builder) makeLockFile() {
	b.must(regFD, unix.SYS_MEMFD_CREATE, imm(b.comm("wakestorm-lock")), imm(unix.MFD_CLOEXEC))
	b.lockFileIs(regFD)
}

// reopenLockFile replaces the inherited open file, whose locks are another's.
func (b *builder) reopenLockFile() {
	b.must(regFD, unix.SYS_OPENAT, b.anew(unix.O_RDWR)...)
	b.lockFileIs(regFD)
}

// anew are the arguments of openat that open what is at lockFile once more.
func (b *builder) anew(flags int) []arg {
	return []arg{imm(unix.AT_FDCWD), imm(b.comm(lockPath)), imm(flags | unix.O_CLOEXEC), imm(0)}
}

func (b *builder) lockFileIs(fd int) {
	b.must(regTemp, unix.SYS_DUP3, reg(fd), imm(lockFile), imm(unix.O_CLOEXEC))
	b.closeFD(fd)
}

// flocks lock the whole file.
func (b *builder) flocks() locking {
	how := func(exclusive bool) arg {
		if exclusive {
			return imm(unix.LOCK_EX)
		}
		return imm(unix.LOCK_SH)
	}
	return locking{
		take: func(exclusive bool, _ int) { b.must(regTemp, unix.SYS_FLOCK, imm(lockFile), how(exclusive)) },
		wait: func(exclusive bool, _ int) { b.block(unix.SYS_FLOCK, imm(lockFile), how(exclusive)) },
	}
}

// recordLocks lock a byte with a command of fcntl's.
func (b *builder) recordLocks(command int) locking {
	lock := func(exclusive bool, offset int) arg {
		kind := uint16(unix.F_RDLCK)
		if exclusive {
			kind = unix.F_WRLCK
		}
		long := binary.NativeEndian.AppendUint64
		// struct flock: type, whence, start, length, pid
		l := append(shorts(kind, unix.SEEK_SET), 0, 0, 0, 0)
		return imm(b.constant(long(long(long(l, uint64(offset)), 1), 0)))
	}
	return locking{
		take: func(exclusive bool, offset int) {
			b.must(regTemp, unix.SYS_FCNTL, imm(lockFile), imm(command), lock(exclusive, offset))
		},
		wait: func(exclusive bool, offset int) {
			b.block(unix.SYS_FCNTL, imm(lockFile), imm(command), lock(exclusive, offset))
		},
	}
}
