package storm

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

var ttyTopologies = []Topology{
	{
		Name: "pty", Unit: "servers", Channel: "pty",
		Summary: "servers that hold the master of a pseudo-terminal, each with a router child on the slave: in read, ppoll, epoll_pwait, or in a write for which there is no room",
		Outcome: "every router wakes: its terminal is hung up",
		needs:   needPty,
		build: func(b *builder, n int) {
			b.trees(n, b.pairs(func() { b.pty(regOut, regIn) }, dies("server"), b.onTerminal(regIn)...)...)
		},
	}, {
		Name: "pty-master", Unit: "servers", Channel: "pty",
		Summary: "servers that hold the slave, each with a router child on the master",
		Outcome: "every router wakes: nobody has the terminal open any more",
		needs:   needPty,
		build: func(b *builder, n int) {
			ways := slices.DeleteFunc(b.onTerminal(regIn), func(w way) bool {
				// The kernel wakes it before it counts the slave as closed, so that
				// it may find nothing changed, and sleeps on.
				return w.role == "writer"
			})
			b.trees(n, b.pairs(func() { b.pty(regIn, regOut) }, dies("server"), ways...)...)
		},
	}, {
		Name: "pty-exclusive", Unit: "routers", Channel: "pty",
		Summary: "one server that holds the slave, and routers that watch the master with EPOLLEXCLUSIVE, each in an epoll instance of its own",
		Outcome: "two routers wake: one from each of the terminal's queues",
		needs:   needPty,
		build:   buildPtyExclusive,
	}, {
		Name: "pty-session", Unit: "servers", Channel: "pty", regroups: true,
		Summary: "servers that hold the master of a session's terminal; the session is a leader, who catches SIGHUP or does not, one who reads, and one who sleeps in the foreground and catches SIGHUP",
		Outcome: "the leader gets SIGHUP and wakes, and the reader wakes; the sleeper wakes where the leader dies",
		needs:   needPty,
		build:   func(b *builder, n int) { b.trees(n, b.hungUp(true), b.hungUp(false)) },
	}, {
		Name: "pty-turn", Unit: "servers", Channel: "pty", Uncharged: true,
		Summary:       "servers that read from the slave of a terminal whose master a router holds, each with a router behind it that reads, too",
		Outcome:       "every router behind a server is woken, and now waits for input",
		Unpredictable: "who waits for another's read to end is in the queue of a lock of the kernel's own",
		needs:         needPty,
		build: func(b *builder, n int) {
			b.trees(n, &node{
				role: "keeper",
				open: func() { b.pty(regOut, regIn) },
				wait: b.pause,
				children: []*node{
					{comm: Target, role: "server", wait: func() { b.read(regIn) }},
					{
						role: "behind", after: "server", wait: func() { b.read(regIn) },
						wakes: stirs("server"),
					},
				},
			})
		},
	}, {
		Name: "session-leader", Unit: "leaders", Channel: "pty", regroups: true,
		Summary: "session leaders with a terminal, whose master a router holds; routers in the foreground and the background of the session, and one outside that reads",
		Outcome: "the foreground gets SIGHUP: who catches it wakes, who does not dies; the others sleep on, for the terminal stays",
		needs:   needPty,
		build:   buildSessionLeader,
	}, {
		Name: "orphaned-group", Unit: "servers", Channel: "signal", regroups: true,
		Summary: "servers, each with a job below it: a process group of five routers, two of them stopped, in a session of the server's own",
		Outcome: "the group is orphaned and has stopped members, so all of it gets SIGHUP and SIGCONT: all wake or die, but one that sleeps and ignores SIGHUP",
		build:   buildOrphanedGroup,
	}, {
		Name: "orphaned-group-ties", Unit: "servers", Channel: "signal", regroups: true,
		Summary: "servers with a stopped job below them, in a session of a router's; who adopts the job is a router that waits for children, or of the same session; or the job has two members, and one of them and the other's parent are servers",
		Outcome: "the job goes on or dies of SIGHUP, and who adopts it is told; with who is of the same session it stays stopped",
		build:   buildOrphanedGroupTies,
	},
}

func needPty() error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/ptmx: %w (mount devpts on /dev/pts)", err)
	}
	return unix.Close(fd)
}

// pty opens both sides of a pseudo-terminal in raw mode.
func (b *builder) pty(master, slave int) {
	flags := imm(unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC)
	at := unix.AT_FDCWD
	b.must(master, unix.SYS_OPENAT, imm(at), imm(b.comm("/dev/ptmx")), flags, imm(0))
	b.must(regTemp, unix.SYS_IOCTL, reg(master), imm(unix.TIOCSPTLCK), imm(b.constant(words(0))))
	b.must(slave, unix.SYS_IOCTL, reg(master), imm(unix.TIOCGPTPEER), flags)
	// struct termios: four words of flags, the line discipline, c_cc.
	raw := append(words(0, 0, unix.CS8|unix.CREAD, 0), make([]byte, 20)...)
	raw[16+1+unix.VMIN] = 1
	b.must(regTemp, unix.SYS_IOCTL, reg(slave), imm(unix.TCSETS), imm(b.constant(raw)))
}

// onTerminal are the ways of one who waits for input, and of one who has more to
// write than there is room for.
func (b *builder) onTerminal(fd int) []way {
	return append(b.receiving(fd), way{"writer", func() { b.write(fd, arenaSize) }})
}

func buildPtyExclusive(b *builder, n int) {
	one := when{deaths: []string{"server"}, oneOf: true}
	b.trees(1, &node{
		comm: Target, role: "server",
		open: func() { b.pty(regIn, regOut) },
		shut: func() { b.closeFD(regIn) },
		children: []*node{{
			role: "router", times: n, wakes: []when{one, one},
			open: func() { b.closeFD(regOut) },
			wait: func() { b.epollFor(regIn, unix.EPOLLIN|unix.EPOLLEXCLUSIVE) },
		}},
	})
}

// newSession makes the process the leader of a session whose terminal is slave.
// Its own group is in the foreground.
func (b *builder) newSession(slave int) {
	b.must(regTemp, unix.SYS_SETSID)
	b.must(regTemp, unix.SYS_IOCTL, reg(slave), imm(unix.TIOCSCTTY), imm(0))
}

// hungUp is a server that holds the master of a session's terminal.
func (b *builder) hungUp(catches bool) *node {
	leader := &node{
		role: "leader", wakes: dies("server"),
		open: func() { b.closeFD(regOut); b.newSession(regIn) },
		wait: func() { b.catch(unix.SIGHUP, 0); b.pause() },
		children: []*node{{
			role: "reader", wakes: anyDies("server"),
			// The hangup does not reach it by signal, the leader's death would.
			wait: func() { b.ignore(unix.SIGHUP); b.read(regIn) },
		}, {
			role: "sleeper", wakes: dies("leader"),
			open: func() { b.closeFD(regIn) },
			wait: func() { b.catch(unix.SIGHUP, 0); b.pause() },
		}},
	}
	if !catches {
		leader.wakes = diesOf("server")
		leader.wait = b.pause
	}
	return &node{
		comm: Target, role: "server",
		open:     func() { b.pty(regOut, regIn) },
		shut:     func() { b.closeFD(regIn) },
		children: []*node{leader},
	}
}

func buildSessionLeader(b *builder, n int) {
	caught := func() { b.catch(unix.SIGHUP, 0); b.pause() }
	leader := &node{
		comm: Target, role: "leader",
		// The end of the master's holder is a hangup, and that is deadly here.
		wakes: diesOf("keeper"),
		open:  func() { b.closeFD(regOut); b.newSession(regIn) },
		children: []*node{
			{role: "foreground", wakes: dies("leader"), wait: caught},
			{role: "foreground, deadly", wakes: diesOf("leader"), wait: b.pause},
			{role: "foreground, ignoring", wait: func() { b.ignore(unix.SIGHUP); b.pause() }},
			{
				role: "background",
				open: func() { b.must(regTemp, unix.SYS_SETPGID, imm(0), imm(0)) },
				wait: caught,
			},
		},
	}
	b.trees(n, &node{
		role: "keeper",
		open: func() { b.pty(regOut, regIn) },
		shut: func() { b.closeFD(regIn) },
		children: []*node{leader, {
			role: "outsider", wakes: dies("keeper"),
			open: func() { b.closeFD(regOut) },
			wait: func() { b.read(regIn) },
		}},
	})
}

func buildOrphanedGroup(b *builder, n int) {
	// The end of the server orphans the group, and so does that of the one
	// member whose parent the server is.
	runs := anyDies("server", "job")
	b.trees(n, &node{
		role: "shell",
		children: []*node{{
			comm: Target, role: "server",
			open: func() { b.must(regTemp, unix.SYS_SETSID) },
			children: []*node{{
				role: "job", wakes: dies("server"),
				open: func() { b.must(regTemp, unix.SYS_SETPGID, imm(0), imm(0)) },
				wait: func() { b.catch(unix.SIGHUP, 0); b.pause() },
				children: []*node{
					{role: "stopped", wakes: runs, wait: func() { b.catch(unix.SIGHUP, 0); b.stop() }},
					{role: "stopped, ignoring", wakes: runs, wait: func() { b.ignore(unix.SIGHUP); b.stop() }},
					{role: "deadly", wakes: []when{
						{deaths: []string{"server"}, effect: Dies}, {deaths: []string{"job"}, effect: Dies},
					}, wait: b.pause},
					{role: "ignoring", wait: func() { b.ignore(unix.SIGHUP); b.pause() }},
				},
			}},
		}},
	})
}

func buildOrphanedGroupTies(b *builder, n int) {
	session := func() { b.must(regTemp, unix.SYS_SETSID) }
	group := func() { b.must(regTemp, unix.SYS_SETPGID, imm(0), imm(0)) }
	subreaper := func() { b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_CHILD_SUBREAPER), imm(1)) }
	// server is one whose job is a group of its own.
	server := func(wakes []when) *node {
		return &node{comm: Target, role: "server", open: group, children: []*node{{
			role: "job", wakes: wakes, open: group,
			wait: func() { b.ignore(unix.SIGHUP); b.stop() },
		}}}
	}
	const first = 2 // the number of "first"
	b.trees(n,
		&node{
			role: "reaper", wakes: anyDies("session", "server"), open: subreaper,
			wait:     func() { b.waitid(unix.P_ALL, imm(0), unix.WEXITED|unix.WCONTINUED) },
			children: []*node{{role: "session", open: session, children: []*node{server(dies("server"))}}},
		},
		&node{
			role: "session", open: session,
			children: []*node{
				{comm: Target, role: "server", open: group, children: []*node{{
					role: "first", open: group, wait: b.stop,
					wakes: []when{
						{deaths: []string{"server", "second"}, effect: Dies},
						{deaths: []string{"server", "other"}, effect: Dies},
					},
				}}},
				{role: "other", open: group, children: []*node{{
					comm: Target, role: "second", after: "first",
					wakes: diesOf("server", "other"),
					wait: func() {
						b.pidOf(regPID, first)
						b.must(regTemp, unix.SYS_SETPGID, imm(0), reg(regPID))
						b.accept()
					},
				}}},
			},
		},
		&node{
			role: "session", open: func() { session(); subreaper() },
			children: []*node{server(dies("session", "server"))},
		},
	)
}

// stop has the process stop itself until it is continued.
func (b *builder) stop() {
	b.state = 'T'
	b.must(regPID, unix.SYS_GETPID)
	b.block(unix.SYS_KILL, reg(regPID), imm(int(unix.SIGSTOP)))
}
