package storm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var eventTopologies = []Topology{
	{
		Name: "eventfd", Unit: "servers", Channel: "other", Quiet: true,
		Summary: "servers that share an eventfd with a router child, which waits in read, ppoll or epoll_pwait",
		Outcome: "nobody wakes: the other holders of an eventfd are nothing to it",
		build: func(b *builder, n int) {
			b.trees(n, b.sharers(func() { b.must(regIn, unix.SYS_EVENTFD2, imm(0), imm(unix.EFD_CLOEXEC)) })...)
		},
	}, {
		Name: "timerfd", Unit: "servers", Channel: "other", Quiet: true,
		Summary: "the same with a timerfd that is not set",
		Outcome: "nobody wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.sharers(func() {
				b.must(regIn, unix.SYS_TIMERFD_CREATE, imm(unix.CLOCK_MONOTONIC), imm(unix.TFD_CLOEXEC))
			})...)
		},
	}, {
		Name: "inotify", Unit: "servers", Channel: "other",
		Summary:       "routers that watch for a file being closed, in read, ppoll or epoll_pwait, each with up to four smtpserver children that have it open",
		Unpredictable: "the marks on each inode and its directory are not read",
		Outcome:       "every router wakes: dying closes files",
		build:         func(b *builder, n int) { b.watchers(n, b.inotify) },
	}, {
		Name: "fanotify-close", Unit: "servers", Channel: "other",
		Summary:       "the same with fanotify",
		Unpredictable: "the marks on each inode, mount and file system are not read",
		Outcome:       "every router wakes",
		needs:         needFanotify,
		build:         func(b *builder, n int) { b.watchers(n, b.fanotify) },
	}, {
		Name: "sigio", Unit: "servers", Channel: "signal",
		Summary:       "servers, each with a router child that asked for SIGIO at the other end of a pipe, a socket pair or a TCP connection, and sleeps in something else",
		Unpredictable: "the lists of files with O_ASYNC are not read",
		Outcome:       "every router's handler is called",
		build:         buildSigio,
	},
}

// sharers are trees of a server and a child that waits in read, ppoll or
// epoll_pwait on a descriptor that both have, and does not wake.
func (b *builder) sharers(open func()) []*node {
	var kinds []*node
	for _, w := range b.receiving(regIn) {
		kinds = append(kinds, &node{
			comm: Target, role: "server", open: open,
			children: []*node{{role: w.role, wait: w.wait}},
		})
	}
	return kinds
}

// watched is how many servers one router watches: there may be few instances
// (fs.inotify.max_user_instances, fs.fanotify.max_user_groups).
const watched = 4

func (b *builder) watchers(n int, watch func()) {
	b.trees(n/watched, b.watching(watched, watch)...)
	if rest := n % watched; rest > 0 {
		b.trees(1, b.watching(rest, watch)[2])
	}
}

// watching are trees of a router and n servers that each opened the router's file.
// watch has whoever calls it be told, in regIn, when that file is closed.
func (b *builder) watching(n int, watch func()) []*node {
	var kinds []*node
	for _, w := range b.receiving(regIn) {
		watcher := &node{
			role: w.role, open: b.makeLockFile,
			wait: func() { watch(); w.wait() },
		}
		for i := range n {
			role := fmt.Sprintf("server %d", i)
			watcher.children = append(watcher.children, &node{comm: Target, role: role, open: b.reopenLockFile})
			watcher.wakes = append(watcher.wakes, anyDies(role)...)
		}
		kinds = append(kinds, watcher)
	}
	return kinds
}

func (b *builder) inotify() {
	b.must(regIn, unix.SYS_INOTIFY_INIT1, imm(unix.IN_CLOEXEC))
	b.must(regTemp, unix.SYS_INOTIFY_ADD_WATCH, reg(regIn), imm(b.comm(lockPath)), imm(unix.IN_CLOSE))
}

func (b *builder) fanotify() {
	b.must(regIn, unix.SYS_FANOTIFY_INIT, imm(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC), imm(unix.O_RDONLY))
	b.markFile(unix.FAN_CLOSE)
}

// markFile has the fanotify group in regIn be told of events on the file at lockPath.
func (b *builder) markFile(events uintptr) {
	b.must(regTemp, unix.SYS_FANOTIFY_MARK, reg(regIn), imm(unix.FAN_MARK_ADD), imm(events), imm(unix.AT_FDCWD), imm(b.comm(lockPath)))
}

func buildSigio(b *builder, n int) {
	asked := func() {
		b.catch(unix.SIGIO, 0)
		b.must(regPID, unix.SYS_GETPID)
		b.must(regTemp, unix.SYS_FCNTL, reg(regIn), imm(unix.F_SETOWN), reg(regPID))
		b.must(regTemp, unix.SYS_FCNTL, reg(regIn), imm(unix.F_SETFL), imm(unix.O_ASYNC))
		b.pause()
	}
	pipe := func() { b.pipe(regIn, regOut) }
	pair := func() { b.socketPair(regIn, regOut, unix.SOCK_STREAM) }
	connection := func() { b.tcpPair(loopback4) }
	kinds := b.pairs(pipe, dies("server"), way{"of a pipe", asked})
	kinds = append(kinds, b.pairs(pair, dies("server"), way{"of a socket pair", asked})...)
	b.trees(n, append(kinds, b.pairs(connection, dies("server"), way{"of a TCP connection", asked})...)...)
}
