package storm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

var epollTopologies = []Topology{
	{
		Name: "nested-epoll", Unit: "servers", Channel: "pipe",
		Summary: "servers, each with a router child whose epoll instance watches an instance that watches its pipe: in epoll_pwait, one deeper still, or in ppoll on an instance",
		Outcome: "every router wakes",
		build:   buildNestedEpoll,
	}, {
		Name: "epoll-modes", Unit: "servers", Channel: "pipe",
		Summary: "servers, each with a router child in epoll_pwait on its pipe: edge-triggered, edge-triggered with unread data that was reported, or one-shot and armed",
		Outcome: "every router wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.epollPairs(dies("server"),
				way{"edge", func() { b.take(regIn); b.epollFor(regIn, unix.EPOLLIN|unix.EPOLLET) }},
				way{"edge, reported", func() { b.epollAgain(regIn, unix.EPOLLIN|unix.EPOLLET) }},
				way{"one-shot, armed", func() { b.epollRearmed(regIn) }})...)
		},
	}, {
		Name: "pipe-interrupted", Unit: "servers", Channel: "pipe",
		Summary: "servers in a write to a full pipe whose ends a router keeps, each with a router in epoll_pwait on the pipe: edge-triggered, with data that was reported",
		Outcome: "every router in epoll_pwait wakes: a write that ends tells of data once more",
		needs:   func() error { return needLinux(5, 14, "a pipe whose interrupted writes wake who polls") },
		build: func(b *builder, n int) {
			b.trees(n, &node{
				role: "keeper",
				open: func() { b.pipe(regIn, regOut) },
				wait: b.pause,
				children: []*node{
					{comm: Target, role: "server", wait: func() { b.writeToFull(regOut) }},
					{
						role: "watcher", after: "server", wakes: dies("server"),
						open: func() { b.closeFD(regOut) },
						wait: func() { b.epollAgain(regIn, unix.EPOLLIN|unix.EPOLLET) },
					},
				},
			})
		},
	}, {
		Name: "epoll-oneshot", Unit: "servers", Channel: "pipe", Quiet: true,
		Summary: "servers, each with a router child in epoll_pwait on its pipe, one-shot, and the one event was had already",
		Outcome: "nobody wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.epollPairs(nil, way{"one-shot, fired", func() { b.epollAgain(regIn, unix.EPOLLIN|unix.EPOLLONESHOT) }})...)
		},
	}, {
		Name: "epoll-exclusive", Unit: "routers", Channel: "pipe",
		Summary: "one server, and routers that watch its pipe with EPOLLEXCLUSIVE, each in an epoll instance of its own",
		Outcome: "all routers wake: the end of a pipe spares nobody",
		build: func(b *builder, n int) {
			b.trees(1, b.epollHerd(n, dies("server"), nil, func() { b.epollFor(regIn, unix.EPOLLIN|unix.EPOLLEXCLUSIVE) }))
		},
	}, {
		Name: "epoll-shared", Unit: "routers", Channel: "pipe", Cascade: true,
		Summary: "one server, and routers that are all in epoll_pwait on one instance that watches its pipe",
		Outcome: "one router wakes and wakes the next, until all have: the event is level-triggered and stays",
		build: func(b *builder, n int) {
			b.trees(1, b.epollHerd(n, dies("server"), b.sharedInstance(unix.EPOLLIN), func() { b.epollWait(regFD) }))
		},
	}, {
		Name: "epoll-shared-edge", Unit: "routers", Channel: "pipe",
		Summary: "the same, edge-triggered",
		Outcome: "one router wakes, whichever came first; the others sleep on",
		build: func(b *builder, n int) {
			wakes := []when{{deaths: []string{"server"}, oneOf: true}}
			b.trees(1, b.epollHerd(n, wakes, b.sharedInstance(unix.EPOLLIN|unix.EPOLLET), func() { b.epollWait(regFD) }))
		},
	}, {
		Name: "epoll-shared-many", Unit: "routers", Channel: "pipe",
		Summary: "two servers with a pipe each, and routers that are all in epoll_pwait on one instance that watches the pipes, edge-triggered",
		Outcome: "two routers wake: each pipe's end wakes the first that still sleeps",
		// Those two are, and seldom there is a third.
		Unpredictable: "who is taking events while another end comes wakes one more for it, besides the one whom the end wakes",
		build:         func(b *builder, n int) { b.trees(1, b.sharedByMany(n, 2)) },
	},
}

// Descriptors of the pipes that a shared instance watches: the read end of the
// first, its write end, and so on.
const manyPipes = 110

// sharedByMany is a process with the read ends of the pipes of some servers, and
// n routers on an instance that watches these.
func (b *builder) sharedByMany(n, servers int) *node {
	writeEnd := func(i int) int { return manyPipes + 2*i + 1 }
	closeWriteEnds := func(but int) {
		for i := range servers {
			if i != but {
				b.must(regTemp, unix.SYS_CLOSE, imm(writeEnd(i)))
			}
		}
	}
	root := &node{
		role: "keeper",
		open: func() {
			b.must(regFD, unix.SYS_EPOLL_CREATE1, imm(unix.EPOLL_CLOEXEC))
			for i := range servers {
				b.pipe(regIn, regOut)
				b.watch(regFD, regIn, unix.EPOLLIN|unix.EPOLLET)
				for k, fd := range []int{regIn, regOut} {
					b.must(regTemp, unix.SYS_DUP3, reg(fd), imm(manyPipes+2*i+k), imm(unix.O_CLOEXEC))
					b.closeFD(fd)
				}
			}
		},
		shut: func() { closeWriteEnds(-1) },
	}
	var wakes []when
	closeReadEnds := func() {
		for i := range servers {
			b.must(regTemp, unix.SYS_CLOSE, imm(manyPipes+2*i))
		}
	}
	for i := range servers {
		role := fmt.Sprintf("server %d", i)
		root.children = append(root.children, &node{comm: Target, role: role, open: func() { closeWriteEnds(i); closeReadEnds() }})
		wakes = append(wakes, when{deaths: []string{role}, oneOf: true})
	}
	root.children = append(root.children, &node{
		role: "router", times: n, wakes: wakes,
		open: func() { closeWriteEnds(-1) },
		// Who takes fewer events than there are wakes the next for the rest. Who finds
		// that another took all is first in line again, and would be for a third.
		wait: func() { b.epollWaitFor(regFD, scratchStruct, servers) },
	})
	return root
}

// epollPairs are servers that have written a byte to the pipe of a router child.
func (b *builder) epollPairs(wakes []when, ways ...way) []*node {
	return b.pairs(func() {
		b.pipe(regIn, regOut)
		b.must(regTemp, unix.SYS_WRITE, reg(regOut), imm(b.base()), imm(1))
	}, wakes, ways...)
}

// epollAgain has an event, leaves it be, and waits for another.
func (b *builder) epollAgain(fd int, events uint32) {
	b.epollInstance(regFD, fd, events)
	b.epollEvent(regFD)
	b.epollWait(regFD)
}

// epollEvent takes an event that is there.
func (b *builder) epollEvent(instance int) {
	b.must(regTemp, unix.SYS_EPOLL_PWAIT, reg(instance), imm(b.scratch+scratchEvent), imm(1), imm(^uintptr(0)), imm(0), imm(8))
}

// take reads what is there.
func (b *builder) take(fd int) {
	b.must(regTemp, unix.SYS_READ, reg(fd), imm(b.scratch+scratchBuffer), imm(8))
}

// epollRearmed has a one-shot event, reads what it was about, and arms it again.
func (b *builder) epollRearmed(fd int) {
	const events = unix.EPOLLIN | unix.EPOLLONESHOT
	b.epollInstance(regFD, fd, events)
	b.epollEvent(regFD)
	b.take(fd)
	b.must(regTemp, unix.SYS_EPOLL_CTL, reg(regFD), imm(unix.EPOLL_CTL_MOD), reg(fd), imm(b.constant(words(events, 0, 0, 0))))
	b.epollWait(regFD)
}

func buildNestedEpoll(b *builder, n int) {
	inner := func() { b.epollInstance(regFD, regIn, unix.EPOLLIN) }
	var kinds []*node
	for _, w := range []way{
		{"two deep", func() { inner(); b.epollInstance(regIn2, regFD, unix.EPOLLIN); b.epollWait(regIn2) }},
		{"three deep", func() {
			inner()
			b.epollInstance(regIn2, regFD, unix.EPOLLIN)
			b.epollInstance(regOut2, regIn2, unix.EPOLLIN)
			b.epollWait(regOut2)
		}},
		{"ppoll on an instance", func() { inner(); b.poll(regFD) }},
	} {
		kinds = append(kinds, b.pairs(func() { b.pipe(regIn, regOut) }, dies("server"), w)...)
	}
	b.trees(n, kinds...)
}

// sharedInstance has the server watch the pipe in an instance that its children
// inherit.
func (b *builder) sharedInstance(events uint32) func() {
	return func() { b.epollInstance(regFD, regIn, events) }
}

// epollHerd is a server and n routers that wait for the same pipe.
func (b *builder) epollHerd(n int, wakes []when, open, wait func()) *node {
	return &node{
		comm: Target, role: "server",
		open: func() {
			b.pipe(regIn, regOut)
			if open != nil {
				open()
			}
		},
		shut: func() {
			b.closeFD(regIn)
			if open != nil {
				b.closeFD(regFD)
			}
		},
		children: []*node{{
			role: "router", times: n, wakes: wakes,
			open: func() { b.closeFD(regOut) },
			wait: wait,
		}},
	}
}
