package storm

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

var endTopologies = []Topology{
	{
		Name: "pipe-writer", Unit: "servers", Channel: "pipe",
		Summary: "servers that hold the read end of a pipe, each with a router child that finds it full: in write, ppoll or epoll_pwait",
		Outcome: "every router wakes: nobody reads any more",
		build:   func(b *builder, n int) { b.trees(n, b.writers(0)...) },
	}, {
		Name: "pipe-broken", Unit: "servers", Channel: "pipe",
		Summary: "servers that read from a router child, which reads from one of its own, both blocked in a write with SIGPIPE at its default",
		Outcome: "every router dies: nobody reads any more",
		build:   func(b *builder, n int) { b.trees(n, b.brokenPipes()) },
	}, {
		Name: "pipe-held", Unit: "servers", Channel: "pipe",
		Summary: "servers that read from a router child, of which one thread is blocked in a write with SIGPIPE held, and another does not hold it",
		Outcome: "every router wakes, and lives: the signal waits for who wrote",
		build:   func(b *builder, n int) { b.trees(n, b.heldSignal()) },
	}, {
		Name: "packet-pipe", Unit: "servers", Channel: "pipe",
		Summary: "servers, each with a router child at the other end of a pipe that keeps packets apart (O_DIRECT), reading or writing",
		Outcome: "every router wakes",
		build: func(b *builder, n int) {
			readers := b.pairs(func() { b.pipeWith(regIn, regOut, unix.O_DIRECT) }, dies("server"), b.receiving(regIn)...)
			b.trees(n, append(readers, b.writers(unix.O_DIRECT)...)...)
		},
	}, {
		Name: "fifo", Unit: "servers", Channel: "fifo",
		Summary: "servers, each with a router child at the other end of a FIFO, reading or writing",
		Outcome: "every router wakes",
		build:   buildFIFO,
	}, {
		Name: "fifo-readers", Unit: "servers", Channel: "fifo",
		Summary: "servers that hold the read end of a FIFO without writers, each with a router child that has opened it, too: in ppoll, epoll_pwait, or still in open",
		Outcome: "every router is woken: of a FIFO with one side alone, any end that goes wakes. Only those with EPOLLET, to whom the last writer's end was told before, return",
		build:   buildFIFOReaders,
	}, {
		Name: "in-flight", Unit: "servers", Channel: "pipe", Quiet: true,
		Summary: "servers that sent the only write end of a router child's pipe into a socket, whose other end a second child holds and does not read",
		Outcome: "nobody wakes: the write end lies in the socket; a reader wakes when who holds that dies",
		build:   func(b *builder, n int) { b.trees(n, b.inFlight(false)) },
	}, {
		Name: "in-flight-lost", Unit: "servers", Channel: "pipe",
		Summary:       "the same, and the server alone holds both ends of the socket",
		Outcome:       "every router wakes: the socket and what lies in it go with the server",
		Unpredictable: onlyInFlight,
		Unaccounted:   true,
		build:         func(b *builder, n int) { b.trees(n, b.inFlight(true)) },
	}, {
		Name: "in-flight-cycle", Unit: "servers", Channel: "pipe",
		Summary:       "the same, and both ends of the socket lie in it, too",
		Outcome:       "every router wakes, when the kernel has found that nobody can receive what lies in the socket",
		Late:          true,
		Unpredictable: "the write end is in no descriptor table, and since v6.9 it is a worker that lets it go",
		build:         func(b *builder, n int) { b.trees(n, b.inFlightCycle()) },
	}, {
		Name: "unix-in-flight", Unit: "servers", Channel: "unix",
		Summary:       "servers that sent the other end of a router child's socket pair into a socket of their own",
		Outcome:       "every router wakes: the socket and what lies in it go with the server",
		Unpredictable: onlyInFlight,
		Unaccounted:   true,
		build: func(b *builder, n int) {
			b.trees(n, b.lostInFlight(func() { b.socketPair(regIn, regOut, unix.SOCK_STREAM) })...)
		},
	}, {
		Name: "tcp-in-flight", Unit: "servers", Channel: "tcp",
		Summary:       "the same with a connection over 127.0.0.1",
		Outcome:       "every router wakes",
		Unpredictable: onlyInFlight,
		Unaccounted:   true,
		build: func(b *builder, n int) {
			b.trees(n, b.lostInFlight(func() { b.tcpPair(loopback4) })...)
		},
	}, {
		Name: "pty-in-flight", Unit: "servers", Channel: "pty",
		Summary:       "the same with a pseudo-terminal, whose master is sent or whose slave is",
		Outcome:       "every router wakes",
		Unpredictable: onlyInFlight,
		Unaccounted:   true,
		needs:         needPty,
		build: func(b *builder, n int) {
			masters := b.lostInFlight(func() { b.pty(regOut, regIn) })
			b.trees(n, append(masters, b.lostInFlight(func() { b.pty(regIn, regOut) })...)...)
		},
	}, {
		Name: "flock-in-flight", Unit: "servers", Channel: "lock",
		Summary:       "servers that sent a file on which a router child waits for a flock into a socket of their own",
		Outcome:       "every router wakes",
		Unpredictable: onlyInFlight,
		Unaccounted:   true,
		build:         func(b *builder, n int) { b.trees(n, b.lockInFlight()) },
	}, {
		Name: "pipe-in-call", Unit: "servers", Channel: "pipe", Mutual: true,
		Summary:       "servers with one thread blocked in a write to a pipe that another has closed meanwhile, each with a router child at the other end, in ppoll for the hangup",
		Outcome:       "every router wakes: the call that had the write end is over",
		Unpredictable: onlyInCall,
		Unaccounted:   true,
		build:         func(b *builder, n int) { b.trees(n, b.heldInCall(func() { b.pipe(regIn, regOut) })) },
	}, {
		Name: "unix-in-call", Unit: "servers", Channel: "unix", Mutual: true,
		Summary:       "the same with a socket pair",
		Outcome:       "every router wakes",
		Unpredictable: onlyInCall,
		build: func(b *builder, n int) {
			b.trees(n, b.heldInCall(func() { b.socketPair(regIn, regOut, unix.SOCK_STREAM) }))
		},
	}, {
		Name: "tcp-in-call", Unit: "servers", Channel: "tcp", Mutual: true,
		Summary:       "the same with a connection over 127.0.0.1 on which the server has unread data",
		Outcome:       "every router wakes: its connection is reset",
		Unpredictable: onlyInCall,
		build:         func(b *builder, n int) { b.trees(n, b.heldInCall(func() { b.tcpUnread(loopback4) })) },
	},
}

const (
	onlyInFlight = "the other end is in no descriptor table, only in a message on a socket's queue"
	onlyInCall   = "the other end is in no descriptor table, only in a call that is blocked on it"
)

// writers are pairs of a server and one who writes to a full pipe from it. Here
// the child's end, in regIn, is the write end.
func (b *builder) writers(flags int) []*node {
	return b.pairs(func() { b.pipeWith(regOut, regIn, flags) }, dies("server"), b.writing(regIn)...)
}

// writing are the ways of one who waits for room in a pipe.
func (b *builder) writing(fd int) []way {
	fill := func() { b.ignore(unix.SIGPIPE); b.fillPipe(fd) }
	return b.sending(fd, fill, func() { b.write(fd, unix.Getpagesize()) })
}

// fillPipe makes a pipe as small as it can be, one page, and full.
func (b *builder) fillPipe(fd int) {
	page := unix.Getpagesize()
	b.must(regTemp, unix.SYS_FCNTL, reg(fd), imm(unix.F_SETPIPE_SZ), imm(page))
	b.must(regTemp, unix.SYS_WRITE, reg(fd), imm(b.base()), imm(page))
}

// writeToFull fills a pipe and blocks in a write to it.
func (b *builder) writeToFull(fd int) {
	b.fillPipe(fd)
	b.write(fd, unix.Getpagesize())
}

// brokenPipes is a server that reads from a writer, which reads from another: neither
// has anything against SIGPIPE.
func (b *builder) brokenPipes() *node {
	return &node{
		comm: Target, role: "server",
		open: func() { b.pipe(regIn, regOut) },
		shut: func() { b.closeFD(regOut) },
		children: []*node{{
			role: "writer", wakes: diesOf("server"),
			open: func() { b.closeFD(regIn); b.pipe(regIn2, regOut2) },
			shut: func() { b.closeFD(regOut2) },
			wait: func() { b.writeToFull(regOut) },
			children: []*node{{
				role: "writer's writer", wakes: diesOf("writer"),
				open: func() { b.closeFD(regOut); b.closeFD(regIn2) },
				wait: func() { b.writeToFull(regOut2) },
			}},
		}},
	}
}

// heldSignal is a server that reads from a writer that is safe from SIGPIPE, and whose
// other thread is not.
func (b *builder) heldSignal() *node {
	return &node{
		comm: Target, role: "server",
		open: func() { b.pipe(regIn, regOut) },
		shut: func() { b.closeFD(regOut) },
		children: []*node{{
			role: "writer", wakes: dies("server"),
			open:  func() { b.closeFD(regIn) },
			aside: func() { b.blockAside(unix.SYS_PPOLL) },
			wait: func() {
				b.hold(unix.SIGPIPE)
				b.writeToFull(regOut)
			},
		}},
	}
}

func buildFIFO(b *builder, n int) {
	server := func(own, others int, w way) *node {
		return &node{
			comm: Target, role: "server",
			shut: func() { b.closeFD(others) },
			children: []*node{{
				role: w.role, wakes: dies("server"),
				open: func() { b.closeFD(own) },
				wait: w.wait,
			}},
		}
	}
	var kinds []*node
	for _, w := range b.receiving(regIn) {
		kinds = append(kinds, server(regOut, regIn, w))
	}
	for _, w := range b.writing(regOut) {
		kinds = append(kinds, server(regIn, regOut, w))
	}
	b.trees(n, kinds...)
	b.fifoEach(n)
}

// fifoEach gives each of n trees a FIFO, whose ends its root has in regIn and regOut.
func (b *builder) fifoEach(n int) {
	b.pipes, b.fifos = n, true
	for i := range b.direct {
		b.direct[i].in, b.direct[i].out = i, i
	}
}

// buildFIFOReaders has each reader open the FIFO itself. Most do so once no writer is
// left: they see no hangup then, and look in vain each time.
func buildFIFOReaders(b *builder, n int) {
	reopen := func(flags int) { b.must(regIn, unix.SYS_OPENAT, b.anew(flags)...) }
	reader := func(role string, effect Effect, flags int, wait func()) *node {
		return &node{
			comm: Target, role: "server",
			shut: func() { b.closeFD(regOut) },
			children: []*node{{
				role: role, wakes: []when{{deaths: []string{"server"}, effect: effect}}, after: "server",
				open: func() {
					b.lockFileIs(regIn)
					reopen(flags)
					b.lockFileIs(regIn)
					b.closeFD(regOut)
				},
				wait: wait,
			}},
		}
	}
	polled := func(wait func(fd int)) func() {
		return func() { reopen(unix.O_RDONLY | unix.O_NONBLOCK); wait(regIn) }
	}
	b.trees(n,
		reader("edge", Runs, unix.O_RDONLY|unix.O_NONBLOCK, func() {
			b.add(regIn, imm(lockFile), imm(0))
			b.epollAgain(regIn, unix.EPOLLIN|unix.EPOLLET)
		}),
		reader("poller", Stirs, unix.O_PATH, polled(b.poll)),
		reader("epoller", Stirs, unix.O_PATH, polled(b.epoll)),
		reader("opener", Stirs, unix.O_PATH, func() { b.block(unix.SYS_OPENAT, b.anew(unix.O_RDONLY)...) }))
	b.fifoEach(n)
}

// inFlight is a server whose reader's write end it has put into a socket. lost
// says that it keeps that socket to itself.
func (b *builder) inFlight(lost bool) *node {
	wakes := dies("keeper")
	if lost {
		wakes = dies("server")
	}
	root := &node{
		comm: Target, role: "server",
		open: func() {
			b.pipe(regIn, regOut)
			b.putInFlight()
		},
		shut: func() { b.closeFD(regIn) },
		children: []*node{{
			role: "reader", wakes: wakes,
			open: func() { b.closeFD(regIn2); b.closeFD(regOut2) },
			wait: func() { b.read(regIn) },
		}},
	}
	if !lost {
		root.shut = func() { b.closeFD(regIn); b.closeFD(regOut2) }
		root.children = append(root.children, &node{
			role: "keeper",
			open: func() { b.closeFD(regIn); b.closeFD(regIn2) },
		})
	}
	return root
}

// inFlightCycle is one whose socket keeps itself alive, until the kernel collects
// it.
func (b *builder) inFlightCycle() *node {
	root := b.inFlight(true)
	open := root.open
	root.open = func() {
		open()
		b.sendDescriptor(regIn2, regIn2)
		b.sendDescriptor(regIn2, regOut2)
		b.sendDescriptor(regOut2, regIn2)
	}
	return root
}

// lostInFlight are servers that put the end in regOut into a socket that they keep to
// themselves, each with a child that waits at the other, in regIn.
func (b *builder) lostInFlight(open func()) []*node {
	var kinds []*node
	for _, w := range b.receiving(regIn) {
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			open: func() { open(); b.putInFlight() },
			shut: func() { b.closeFD(regIn) },
			children: []*node{{
				role: w.role, wakes: dies("server"),
				open: func() { b.closeFD(regIn2); b.closeFD(regOut2) },
				wait: w.wait,
			}},
		})
	}
	return kinds
}

// putInFlight sends the descriptor in regOut into a socket pair and closes it.
func (b *builder) putInFlight() {
	b.socketPair(regIn2, regOut2, unix.SOCK_STREAM)
	b.sendDescriptor(regIn2, regOut)
	b.closeFD(regOut)
}

// heldInCall is a server of which one thread writes more to regOut than there is room
// for. Another closes that descriptor as soon as some of it has come out at the other
// end: by then the call has the file, and keeps it.
func (b *builder) heldInCall(open func()) *node {
	return &node{
		comm: Target, role: "server", wakes: dies("router"),
		open:  open,
		asks:  func() { b.ignore(unix.SIGPIPE) },
		aside: func() { b.blockAside(unix.SYS_WRITE, reg(regOut), imm(b.base()), imm(arenaSize)) },
		wait: func() {
			entry := b.pollEntry(regIn, unix.POLLIN)
			b.must(regTemp, unix.SYS_PPOLL, entry, imm(1), imm(0), imm(0), imm(8))
			b.closeFD(regOut)
			b.closeFD(regIn)
			b.accept()
		},
		children: []*node{{
			role: "router", wakes: dies("server"),
			open: func() { b.closeFD(regOut) },
			wait: func() { b.pollFor(regIn, 0) },
		}},
	}
}

func (b *builder) lockInFlight() *node {
	locks := b.flocks()
	return &node{
		comm: Target, role: "server",
		open: func() {
			b.makeLockFile()
			locks.take(true, 0)
			b.must(regOut, unix.SYS_DUP, imm(lockFile))
			b.putInFlight()
		},
		shut: func() { b.must(regTemp, unix.SYS_CLOSE, imm(lockFile)) },
		children: []*node{{
			role: "waiter", wakes: dies("server"),
			open: func() { b.closeFD(regIn2); b.closeFD(regOut2); b.reopenLockFile() },
			wait: func() { locks.wait(true, 0) },
		}},
	}
}

// sendDescriptor sends fd and a byte over a socket.
func (b *builder) sendDescriptor(over, fd int) {
	long := binary.NativeEndian.AppendUint64
	iovec := b.constant(long(long(nil, uint64(b.base())), 1))
	// struct cmsghdr, and the descriptor after it.
	control := imm(b.scratch + scratchControl)
	b.store64(control, 0, imm(20))
	b.store(control, 8, imm(unix.SOL_SOCKET))
	b.store(control, 12, imm(unix.SCM_RIGHTS))
	b.store(control, 16, reg(fd))
	var header []byte
	for _, word := range []uintptr{0, 0, iovec, 1, b.scratch + scratchControl, 24, 0} {
		header = long(header, uint64(word))
	}
	b.must(regTemp, unix.SYS_SENDMSG, reg(over), imm(b.constant(header)), imm(0))
}
