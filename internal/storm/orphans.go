package storm

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

var orphanTopologies = []Topology{
	{
		Name: "reaper", Unit: "reapers", Channel: "child",
		Summary: "routers that are subreapers and in wait4, each with a router child, and below that an smtpserver with a router child of its own; every other smtpserver also has a zombie that it does not reap",
		Outcome: "every reaper that inherits a zombie wakes; the others just have a child more",
		build:   func(b *builder, n int) { b.trees(n, b.reaper(true), b.reaper(false)) },
	}, {
		Name: "vfork", Unit: "parents", Channel: "child",
		Summary: "routers that are blocked in vfork until their smtpserver child ends",
		Outcome: "every router wakes",
		build: func(b *builder, n int) {
			b.trees(n, &node{
				role: "parent", wakes: dies("child"),
				children: []*node{{comm: Target, role: "child", vfork: true}},
			})
		},
	}, {
		Name: "parent-death", Unit: "servers", Channel: "parent-death",
		Summary: "servers, each with a router child that asked for a signal at its parent's death: caught, read from a signalfd, awaited; sent also when the parent was a thread; or deadly, in one case to a router that another one reads from",
		Outcome: "every router whose signal is caught wakes; the others die, and who waits on them wakes",
		build:   func(b *builder, n int) { b.trees(n, b.bereaved()...) },
	}, {
		Name: "parent-death-awake", Unit: "servers", Channel: "parent-death",
		Summary: "servers, each with a router child that asked for SIGKILL at its parent's death, and one of its own that reads from it; the first does not sleep, it computes",
		Outcome: "the routers die, and who reads from them wakes",
		build: func(b *builder, n int) {
			b.trees(1, b.mourned("computing", func() { b.deathSignal(unix.SIGKILL); b.compute() }))
			if n > 1 { // one is enough for a machine
				b.trees(n-1, b.mourned("asleep", func() { b.deathSignal(unix.SIGKILL); b.pause() }))
			}
		},
	}, {
		Name: "parent-death-unheard", Unit: "servers", Channel: "parent-death", Quiet: true,
		Summary: "the same with a signal that is ignored, by default or on purpose, or blocked",
		Outcome: "nobody wakes",
		build: func(b *builder, n int) {
			var kinds []*node
			for _, w := range []way{
				{"default", func() { b.deathSignal(unix.SIGURG); b.pause() }},
				{"ignored", func() { b.ignore(unix.SIGUSR1); b.deathSignal(unix.SIGUSR1); b.pause() }},
				{"blocked", func() { b.hold(unix.SIGUSR1); b.deathSignal(unix.SIGUSR1); b.pause() }},
			} {
				kinds = append(kinds, &node{comm: Target, role: "server", children: []*node{{role: w.role, wait: w.wait}}})
			}
			b.trees(n, kinds...)
		},
	}, {
		Name: "parent-death-denied", Unit: "servers", Channel: "parent-death", Quiet: true,
		Summary: "servers that have become another user, each with a router child of the first that asked for a signal at its parent's death: caught, or deadly",
		Outcome: "nobody wakes: the kernel does not let a server send it",
		needs:   needRoot("to become another user"),
		build: func(b *builder, n int) {
			var kinds []*node
			for _, w := range []way{
				{"caught", func() { b.catch(unix.SIGUSR1, 0); b.deathSignal(unix.SIGUSR1); b.pause() }},
				{"deadly", func() { b.deathSignal(unix.SIGKILL); b.pause() }},
			} {
				kinds = append(kinds, &node{
					comm: Target, role: "server", children: []*node{{role: w.role, wait: w.wait}},
					shut: func() { b.must(regTemp, unix.SYS_SETRESUID, imm(nobody), imm(nobody), imm(nobody)) },
				})
			}
			b.trees(n, kinds...)
		},
	},
}

// nobody is a user that owns nothing.
const nobody = 65534

func needRoot(what string) func() error {
	return func() error {
		if os.Geteuid() != 0 {
			return errors.New(what + " needs root")
		}
		return nil
	}
}

// zombie has the process fork a child that ends and is not reaped.
func (b *builder) zombie() {
	child, past := b.newLabel(), b.newLabel()
	b.fork(child, imm(0))
	b.jump(past)
	b.place(child)
	b.must(regTemp, unix.SYS_EXIT_GROUP, imm(0))
	b.place(past)
	b.must(regTemp, unix.SYS_WAITID, imm(unix.P_ALL), imm(0), imm(b.scratch+scratchInfo), imm(unix.WEXITED|unix.WNOWAIT), imm(0))
}

func (b *builder) reaper(zombie bool) *node {
	server := &node{
		comm: Target, role: "server",
		children: []*node{{role: "orphan"}},
	}
	// The middle one is its own child. When the server dies it inherits the
	// orphan, whose later end is then another child's.
	wakes := append(anyDies("middle"), dies("server", "orphan")...)
	if zombie {
		server.shut = b.zombie
		wakes = anyDies("middle", "server")
	}
	return &node{
		role: "reaper", wakes: wakes,
		open:     func() { b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_CHILD_SUBREAPER), imm(1)) },
		wait:     func() { b.wait4(imm(^uintptr(0))) },
		children: []*node{{role: "middle", children: []*node{server}}},
	}
}

// deathSignal asks for a signal at the death of the thread that forked this
// process. It comes after the prologue, which asks for Options.ParentDeathSignal.
func (b *builder) deathSignal(sig unix.Signal) {
	b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_PDEATHSIG), imm(int(sig)))
}

// withoutCore lets the process leave no core file, and no pipe gets one.
func (b *builder) withoutCore() {
	limits := imm(b.constant(words(1, 0, 1, 0))) // struct rlimit
	b.must(regTemp, unix.SYS_PRLIMIT64, imm(0), imm(unix.RLIMIT_CORE), limits, imm(0))
}

// mourned is a server with a child that dies with it, and a child of that which
// reads from it.
func (b *builder) mourned(role string, wait func()) *node {
	return &node{
		comm: Target, role: "server",
		children: []*node{{
			role: role, wakes: diesOf("server"),
			open: func() { b.pipe(regIn, regOut) },
			shut: func() { b.closeFD(regIn) },
			wait: wait,
			children: []*node{{
				role: "reader", wakes: dies(role),
				open: func() { b.closeFD(regOut) },
				wait: func() { b.read(regIn) },
			}},
		}},
	}
}

func (b *builder) bereaved() []*node {
	const sig = unix.SIGUSR1
	caught := func() { b.catch(sig, 0); b.deathSignal(sig); b.pause() }
	deadly := diesOf("server")
	child := func(role string, wakes []when, wait func()) *node {
		return &node{comm: Target, role: "server", children: []*node{{role: role, wakes: wakes, wait: wait}}}
	}
	ofThread := child("caught, a thread's child", dies("server"), caught)
	ofThread.children[0].thread = true
	return []*node{
		child("caught", dies("server"), caught),
		child("deadly", deadly, func() { b.deathSignal(unix.SIGTERM); b.pause() }),
		child("signalfd", dies("server"), func() { b.signalFD(regIn, sig); b.deathSignal(sig); b.poll(regIn) }),
		child("rt_sigtimedwait", dies("server"), func() { b.deathSignal(sig); b.awaitSignal(sig) }),
		ofThread,
		b.mourned("deadly, and read from", func() { b.deathSignal(unix.SIGKILL); b.pause() }),
		b.mourned("deadly by a core dump, and read from", func() { b.withoutCore(); b.deathSignal(unix.SIGQUIT); b.pause() }),
		child("deadly by SIGKILL", deadly, func() { b.deathSignal(unix.SIGKILL); b.pause() }),
	}
}
