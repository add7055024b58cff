package storm

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

var childTopologies = []Topology{
	{
		Name: "child", Unit: "parents", Channel: "child",
		Summary: "routers that each wait for two smtpserver children in wait4 or waitid: for any, for the first, for the group, by pidfd, or for both, with SIGCHLD ignored; or for stops, of an smtpserver and a router",
		Outcome: "every router wakes, but for those that wait for stops: these look, and sleep again",
		build:   func(b *builder, n int) { b.trees(n, b.waitingParents()...) },
	}, {
		Name: "sigchld", Unit: "parents", Channel: "child",
		Summary: "routers that sleep in something else and have SIGCHLD of an smtpserver child caught, read from a signalfd, or taken by rt_sigtimedwait",
		Outcome: "every router wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.parents(anyDies("child"), []string{"child"}, b.hearing()...)...)
		},
	}, {
		Name: "sigchld-unheard", Unit: "parents", Channel: "child", Quiet: true,
		Summary: "routers that sleep and have SIGCHLD at its default, ignored, blocked, or with SA_NOCLDWAIT",
		Outcome: "nobody wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.parents(nil, []string{"child"}, b.deaf()...)...)
		},
	}, {
		Name: "pidfd", Unit: "servers", Channel: "pidfd",
		Summary: "servers, each with a router child in ppoll or epoll_pwait on the server's pidfd",
		Outcome: "every router wakes",
		build:   buildPidfd,
	}, {
		Name: "pidfd-autokill", Unit: "servers", Channel: "signal",
		Summary:       "servers, each with a router child that dies when its pidfd is closed (CLONE_PIDFD_AUTOKILL)",
		Unpredictable: "such a pidfd is not told from others",
		Outcome:       "every router dies",
		needs:         needAutokill,
		build: func(b *builder, n int) {
			b.trees(n, &node{comm: Target, role: "server", children: []*node{{
				role: "router", autokill: true, wakes: diesOf("server"), wait: b.pause,
			}}})
		},
	},
}

// Flags of clone3 since v7.1, which package unix does not export; the last needs all.
const (
	cloneAutoreap = 1 << 34
	cloneNNP      = 1 << 35
	cloneAutokill = 1<<36 | cloneAutoreap | cloneNNP | unix.CLONE_PIDFD
)

// cloneArgs is struct clone_args in its first version.
func cloneArgs(flags uint64, pidfd uintptr) []byte {
	args := binary.NativeEndian.AppendUint64(nil, flags)
	args = binary.NativeEndian.AppendUint64(args, uint64(pidfd))
	return append(args, make([]byte, 64-len(args))...)
}

func needAutokill() error {
	args := cloneArgs(cloneAutokill, 0)
	// EFAULT says that the flags are known: there is no place for the pidfd.
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args[0])), uintptr(len(args)), 0)
	if errno != unix.EFAULT {
		return fmt.Errorf("CLONE_PIDFD_AUTOKILL: %w (Linux 7.1 or later)", errno)
	}
	return nil
}

// forkAutokilled forks a child that dies when the last descriptor for the pidfd that
// this process gets is closed.
func (b *builder) forkAutokilled(child label, slot int) {
	born, past := b.newLabel(), b.newLabel()
	args := cloneArgs(cloneAutokill, b.scratch+scratchPipe)
	b.must(regTemp, unix.SYS_CLONE3, imm(b.constant(args)), imm(len(args)))
	b.jumpZero(regTemp, born)
	b.jump(past)
	b.place(born)
	b.become(child, slot)
	b.place(past)
}

// parents are trees of a router and its smtpserver children, one tree for each way.
func (b *builder) parents(wakes []when, children []string, ways ...way) []*node {
	var kinds []*node
	for _, w := range ways {
		parent := &node{role: w.role, wakes: wakes, wait: w.wait}
		for _, role := range children {
			parent.children = append(parent.children, &node{comm: Target, role: role})
		}
		kinds = append(kinds, parent)
	}
	return kinds
}

// pidOf loads the pid of the process with a number in this tree, once that
// number's parent (which may be this process) has forked it.
func (b *builder) pidOf(dst, number int) {
	b.load(dst, reg(regHome), number*slotSize+slotPID)
}

// wait4 and waitid wait until a child has ended.
func (b *builder) wait4(which arg) { b.block(unix.SYS_WAIT4, which, imm(0), imm(0), imm(0)) }

func (b *builder) waitid(kind int, which arg, options int) {
	b.block(unix.SYS_WAITID, imm(kind), which, imm(b.scratch+scratchInfo), imm(options), imm(0))
}

func (b *builder) waitingParents() []*node {
	children := []string{"first", "second"}
	all := []way{
		{"wait4 for any", func() { b.wait4(imm(^uintptr(0))) }},
		{"wait4 for its group", func() { b.wait4(imm(0)) }},
		{"waitid for any", func() { b.waitid(unix.P_ALL, imm(0), unix.WEXITED) }},
		{"waitid for its group", func() { b.waitid(unix.P_PGID, imm(0), unix.WEXITED) }},
	}
	one := []way{
		{"wait4 for one", func() { b.pidOf(regPID, 1); b.wait4(reg(regPID)) }},
		{"waitid for one", func() { b.pidOf(regPID, 1); b.waitid(unix.P_PID, reg(regPID), unix.WEXITED) }},
		{"waitid by pidfd", func() {
			b.pidOf(regPID, 1)
			b.must(regFD, unix.SYS_PIDFD_OPEN, reg(regPID), imm(0))
			b.waitid(unix.P_PIDFD, reg(regFD), unix.WEXITED)
		}},
	}
	ignoring := way{"wait4, ignoring", func() { b.ignore(unix.SIGCHLD); b.wait4(imm(^uintptr(0))) }}

	kinds := b.parents(anyDies(children...), children, all...)
	kinds = append(kinds, b.parents(dies("first"), children, one...)...)
	// Those that are ignored are reaped at once; with the last of them there is
	// none left to wait for.
	kinds = append(kinds, b.parents([]when{
		{deaths: children}, {deaths: children[:1], effect: Stirs}, {deaths: children[1:], effect: Stirs},
	}, children, ignoring)...)
	return append(kinds, &node{
		role:     "waitid for stops",
		wait:     func() { b.waitid(unix.P_ALL, imm(0), unix.WSTOPPED) },
		wakes:    []when{{deaths: []string{"first"}, effect: Stirs}, {deaths: []string{"first", "bystander"}}},
		children: []*node{{comm: Target, role: "first"}, {role: "bystander"}},
	})
}

// hearing are the ways to be woken by SIGCHLD in a sleep that is about something
// else.
func (b *builder) hearing() []way {
	// A read that nothing ends: the process holds both ends of the pipe.
	read := func() { b.pipe(regIn, regOut); b.read(regIn) }
	const ended = unix.SIGCHLD
	return []way{
		{"caught in ppoll", func() { b.catch(ended, 0); b.pause() }},
		{"caught in read, restarting", func() { b.catch(ended, saRestart); read() }},
		{"caught, without zombies", func() { b.catch(ended, saNoChildWait); b.pause() }},
		{"rt_sigsuspend", func() {
			b.catch(ended, 0)
			b.hold(ended)
			b.block(unix.SYS_RT_SIGSUSPEND, imm(b.constant(make([]byte, 8))), imm(8))
		}},
		{"signalfd in read", func() { b.signalFD(regFD, ended); b.read(regFD) }},
		{"signalfd in ppoll", func() { b.signalFD(regFD, ended); b.poll(regFD) }},
		{"signalfd in epoll", func() { b.signalFD(regIn, ended); b.epoll(regIn) }},
		{"rt_sigtimedwait", func() { b.awaitSignal(ended) }},
	}
}

// deaf are the ways not to be.
func (b *builder) deaf() []way {
	return []way{
		{"default", b.pause},
		{"ignored", func() { b.ignore(unix.SIGCHLD); b.pause() }},
		{"blocked", func() { b.catch(unix.SIGCHLD, 0); b.hold(unix.SIGCHLD); b.pause() }},
		{"without zombies", func() { b.action(unix.SIGCHLD, sigDefault, saNoChildWait); b.pause() }},
	}
}

func buildPidfd(b *builder, n int) {
	open := func() {
		b.must(regPID, unix.SYS_GETPPID)
		b.must(regIn, unix.SYS_PIDFD_OPEN, reg(regPID), imm(0))
	}
	var kinds []*node
	for _, w := range b.receiving(regIn)[1:] { // a pidfd cannot be read
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			children: []*node{{role: w.role, wakes: dies("server"), open: open, wait: w.wait}},
		})
	}
	b.trees(n, kinds...)
}
