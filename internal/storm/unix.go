package storm

import (
	"slices"

	"golang.org/x/sys/unix"
)

var unixTopologies = []Topology{
	{
		Name: "unix-stream", Unit: "servers", Channel: "unix",
		Summary: "servers, each with a router child at the other end of a socket pair: in read, ppoll, epoll_pwait, or in a send that the full socket blocks",
		Outcome: "every router wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.unixPairs(unix.SOCK_STREAM, b.sending(regIn, func() { b.smallBuffers(regIn) }, func() { b.send(regIn) })[0])...)
		},
	}, {
		Name: "unix-seqpacket", Unit: "servers", Channel: "unix",
		Summary: "the same with sockets that keep messages apart",
		Outcome: "every router wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.unixPairs(unix.SOCK_SEQPACKET, b.messages()...)...)
		},
	}, {
		Name: "unix-dgram", Unit: "servers", Channel: "unix",
		Summary: "servers with a named datagram socket, each with a router child connected to it that finds the server's queue full: in send, ppoll or epoll_pwait",
		Outcome: "every router wakes: its peer is gone",
		build:   buildUnixDgram,
	}, {
		Name: "unix-dgram-elsewhere", Unit: "servers", Channel: "unix", Quiet: true,
		Summary: "servers with a datagram from a router child that has no room to send more: for another router has not read the rest",
		Outcome: "nobody wakes: what the server takes with it is too little",
		build:   func(b *builder, n int) { b.trees(n, b.dgramsElsewhere()) },
	}, {
		Name: "unix-dgram-reader", Unit: "servers", Channel: "unix", Quiet: true,
		Summary: "servers, each with a router child that reads from a pair of datagram sockets",
		Outcome: "nobody wakes: a datagram socket whose peer is gone just stays silent",
		build: func(b *builder, n int) {
			b.trees(n, b.pairs(func() { b.socketPair(regIn, regOut, unix.SOCK_DGRAM) }, nil, b.receiving(regIn)...)...)
		},
	}, {
		Name: "unix-listener", Unit: "servers", Channel: "unix",
		Summary: "listening servers that do not accept; of two router children each, one is in the backlog and reads, the other is blocked in connect, for the backlog is full",
		Outcome: "both routers of each server wake",
		build:   buildUnixListener,
	}, {
		Name: "unix-shared", Unit: "holders", Channel: "unix",
		Summary: "servers that all inherited one end of one socket pair, and three routers that inherited the other and read",
		Outcome: "nobody wakes until the last server dies; then all routers do",
		build:   buildUnixShared,
	},
}

// unixPairs are trees of a server and one who waits at the other end of a pair of
// sockets.
func (b *builder) unixPairs(kind int, senders ...way) []*node {
	return b.pairs(func() { b.socketPair(regIn, regOut, kind) }, dies("server"),
		slices.Concat(b.receiving(regIn), senders)...)
}

// messages are the ways of one who has no room for another message.
func (b *builder) messages() []way {
	small := func() { b.smallBuffers(regIn) }
	return b.sending(regIn, func() { small(); b.fill(regIn) }, func() { b.sendMessage(regIn) })
}

func buildUnixDgram(b *builder, n int) { b.trees(n, b.datagramSenders(b.messages()...)...) }

// datagramSenders are servers with a datagram socket, each with a child connected to it,
// whose own socket is in regIn.
func (b *builder) datagramSenders(ways ...way) []*node {
	var kinds []*node
	for _, w := range ways {
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			open: func() {
				b.socket(regOut, unix.AF_UNIX, unix.SOCK_DGRAM)
				b.autobind(regOut)
				b.name(regOut)
			},
			children: []*node{{
				role: w.role, wakes: dies("server"),
				open: func() {
					b.closeFD(regOut)
					b.socket(regIn, unix.AF_UNIX, unix.SOCK_DGRAM)
					b.connect(regIn)
				},
				wait: w.wait,
			}},
		})
	}
	return kinds
}

func (b *builder) dgramsElsewhere() *node {
	receiver := func(fd int) {
		b.socket(fd, unix.AF_UNIX, unix.SOCK_DGRAM)
		b.autobind(fd)
		b.name(fd)
		b.connect(regIn)
	}
	return &node{
		comm: Target, role: "server",
		open: func() {
			b.socket(regIn, unix.AF_UNIX, unix.SOCK_DGRAM)
			b.smallBuffers(regIn)
			receiver(regOut)
			b.must(regTemp, unix.SYS_SENDTO, reg(regIn), imm(b.base()), imm(1), imm(0), imm(0), imm(0))
			receiver(regOut2)
		},
		shut: func() { b.closeFD(regIn); b.closeFD(regOut2) },
		children: []*node{{
			role: "keeper",
			open: func() { b.closeFD(regIn); b.closeFD(regOut) },
		}, {
			role: "sender", wakes: dies("keeper"),
			open: func() { b.closeFD(regOut); b.closeFD(regOut2) },
			wait: func() { b.sendMessage(regIn) },
		}},
	}
}

func buildUnixListener(b *builder, n int) {
	var kinds []*node
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			open: func() {
				b.socket(regOut, unix.AF_UNIX, kind)
				b.autobind(regOut)
				// Room for one.
				b.must(regTemp, unix.SYS_LISTEN, reg(regOut), imm(0))
				b.name(regOut)
				b.socket(regIn, unix.AF_UNIX, kind)
				b.connect(regIn)
			},
			shut: func() { b.closeFD(regIn) },
			children: []*node{{
				role: "queued", wakes: dies("server"),
				open: func() { b.closeFD(regOut) },
				wait: func() { b.read(regIn) },
			}, {
				role: "connecting", wakes: dies("server"),
				open: func() {
					b.closeFD(regOut)
					b.closeFD(regIn)
					b.socket(regIn, unix.AF_UNIX, kind)
				},
				wait: func() { b.blockInConnect(regIn) },
			}},
		})
	}
	b.trees(n, kinds...)
}

func buildUnixShared(b *builder, n int) {
	root := &node{
		comm: Target, role: "first",
		open: func() { b.socketPair(regIn, regOut, unix.SOCK_STREAM) },
		shut: func() { b.closeFD(regIn) },
		children: []*node{{
			role: "reader", times: 3, wakes: dies("first"),
			open: func() { b.closeFD(regOut) },
			wait: func() { b.read(regIn) },
		}},
	}
	if n > 1 {
		root.children[0].wakes = dies("first", "holder")
		root.children = append(root.children, &node{
			comm: Target, role: "holder", times: n - 1,
			open: func() { b.closeFD(regIn) },
		})
	}
	b.trees(1, root)
}
