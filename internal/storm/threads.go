package storm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Topologies where it matters which thread a signal is for, or whose exit, and in
// what state that is.
var threadTopologies = []Topology{
	{
		Name: "sigchld-thread", Unit: "parents", Channel: "child",
		Summary: "routers whose leaders block SIGCHLD and are in no sleep that a signal ends, each with a second thread that awaits it or catches it; and routers whose smtpserver child sends SIGUSR1 at its end",
		Outcome: "every router wakes",
		build:   buildSigchldThread,
	}, {
		Name: "sigchld-traced", Unit: "parents", Channel: "child",
		Summary: "routers that have SIGCHLD of an smtpserver child at its default, and a tracer: their own parent, a router that waits for them",
		Outcome: "the signal, otherwise ignored, stops every parent for its tracer, and the tracer wakes",
		needs:   needPtrace,
		build: func(b *builder, n int) {
			b.trees(n, &node{
				role: "tracer", wakes: anyDies("child", "parent"), after: "parent",
				wait: func() { b.pidOf(regPID, 1); b.traceAndWait() },
				children: []*node{{
					role: "parent", wakes: stirs("child"), wait: b.pause,
					children: []*node{{comm: Target, role: "child"}},
				}},
			})
		},
	}, {
		Name: "parent-death-thread", Unit: "servers", Channel: "parent-death",
		Summary: "servers, each with a router child that asked for a signal at its parent's death and in which a second thread gets it: its leader blocks it, or it was that thread that asked",
		Outcome: "every router wakes",
		build:   buildParentDeathThread,
	}, {
		Name: "pidfd-thread", Unit: "servers", Channel: "pidfd",
		Summary: "servers, each with a router child in ppoll or epoll_pwait on a pidfd of the server's second thread",
		Outcome: "every router wakes",
		needs:   needPidfdThread,
		build:   buildPidfdThread,
	}, {
		// Who is traced stops for its tracer when its reader exits, and the reader wakes
		// when it does.
		Name: "parent-death-stopped", Unit: "servers", Channel: "parent-death", regroups: true, Mutual: true,
		Summary: "servers, each with a router child that asked for a signal at its parent's death and does not simply sleep: it is stopped, traced by another router, or awaits a signal that would end it; others wait for what it holds",
		Outcome: "SIGKILL ends who is stopped, SIGCONT has it go on, and who adopted it is told; the traced one stops, and its tracer is told; who awaits the signal gets it; the one that is stopped by another signal stays that",
		needs:   needPtrace,
		build:   func(b *builder, n int) { b.trees(n, b.heldBereaved()...) },
	},
}

// asides are trees of a leader in vfork and a second thread that waits for a signal.
func (b *builder) asides(sig unix.Signal, parent func(w way) *node) []*node {
	var kinds []*node
	for _, w := range b.aside(sig) {
		nd := parent(w)
		nd.aside = w.wait
		nd.children = append(nd.children, &node{role: "nested", vfork: true, wait: b.pause})
		kinds = append(kinds, nd)
	}
	return kinds
}

func buildSigchldThread(b *builder, n int) {
	kinds := b.asides(unix.SIGCHLD, func(w way) *node {
		return &node{
			role: w.role, wakes: anyDies("child", "nested"),
			shut:     func() { b.catch(unix.SIGCHLD, 0); b.hold(unix.SIGCHLD) },
			children: []*node{{comm: Target, role: "child"}},
		}
	})
	b.trees(n, append(kinds, &node{
		role: "another signal, caught", wakes: dies("child"),
		wait:     func() { b.catch(unix.SIGUSR1, 0); b.pause() },
		children: []*node{{comm: Target, role: "child", exitSignal: unix.SIGUSR1}},
	})...)
}

func buildParentDeathThread(b *builder, n int) {
	const sig = unix.SIGUSR1
	var kinds []*node
	for _, child := range b.asides(sig, func(w way) *node {
		return &node{
			role: w.role, wakes: anyDies("server", "nested"),
			shut: func() { b.catch(sig, 0); b.hold(sig) },
			asks: func() { b.deathSignal(sig) },
		}
	}) {
		kinds = append(kinds, &node{comm: Target, role: "server", children: []*node{child}})
	}
	b.trees(n, append(kinds, &node{
		comm: Target, role: "server",
		children: []*node{{
			role: "asked for by a thread", wakes: dies("server"),
			shut:  func() { b.catch(sig, 0) },
			aside: func() { b.deathSignal(sig); b.blockAside(unix.SYS_PPOLL) },
			wait:  b.pause,
		}},
	})...)
}

// pidfdThread is PIDFD_THREAD.
const pidfdThread = unix.O_EXCL

func needPidfdThread() error {
	fd, err := unix.PidfdOpen(unix.Getpid(), pidfdThread)
	if err != nil {
		return fmt.Errorf("open a pidfd of a thread: %w (Linux 6.9 or later)", err)
	}
	return unix.Close(fd)
}

func buildPidfdThread(b *builder, n int) {
	var kinds []*node
	for _, w := range b.receiving(regIn)[1:] { // a pidfd cannot be read
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			children: []*node{{
				role: w.role, wakes: dies("server"), thread: true, wait: w.wait,
				open: func() { b.must(regIn, unix.SYS_PIDFD_OPEN, reg(regPID), imm(pidfdThread)) },
			}},
		})
	}
	b.trees(n, kinds...)
}

// heldBereaved are servers with a child that does not simply sleep when it gets a
// signal at its parent's death. Those that stop are in a session of their own: a
// stopped member of the storm's group would bring SIGHUP on all of it when the last
// of its parents dies.
func (b *builder) heldBereaved() []*node {
	ownSession := func() { b.must(regTemp, unix.SYS_SETSID) }
	server := func(child *node) *node { return &node{comm: Target, role: "server", children: []*node{child}} }
	// held has a child that waits for its end.
	held := func(role string, wakes []when, wait func()) *node {
		return &node{
			role: role, wakes: wakes, wait: wait,
			open: func() { ownSession(); b.pipe(regIn, regOut) },
			shut: func() { b.closeFD(regIn) },
			children: []*node{{
				role: "reader", wakes: dies(role),
				open: func() { b.closeFD(regOut) },
				wait: func() { b.read(regIn) },
			}},
		}
	}
	stopped := func(sig unix.Signal) func() { return func() { b.deathSignal(sig); b.stop() } }
	deadly := diesOf("server")
	return []*node{
		server(held("stopped, killed", deadly, stopped(unix.SIGKILL))),
		server(held("stopped", nil, stopped(unix.SIGTERM))),
		{
			role: "reaper", wakes: anyDies("middle", "server"),
			open: func() { b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_CHILD_SUBREAPER), imm(1)) },
			wait: func() { b.waitid(unix.P_ALL, imm(0), unix.WEXITED|unix.WCONTINUED) },
			children: []*node{{role: "middle", children: []*node{server(&node{
				role: "continued", wakes: dies("server"), open: ownSession, wait: stopped(unix.SIGCONT),
			})}}},
		},
		server(held("awaiting", dies("server"), func() { b.deathSignal(unix.SIGTERM); b.awaitSignal(unix.SIGTERM) })),
		{
			role: "tracer", wakes: anyDies("server", "traced"), after: "traced",
			wait: func() { b.pidOf(regPID, 2); b.traceAndWait() },
			children: []*node{server(held("traced", []when{
				{deaths: []string{"server"}, effect: Stirs},
				{deaths: []string{"server", "tracer"}, effect: Dies},
			}, func() { b.deathSignal(unix.SIGTERM); b.pause() }))},
		},
	}
}
