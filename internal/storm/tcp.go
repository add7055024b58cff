package storm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

var tcpTopologies = []Topology{
	{
		Name: "tcp", Unit: "servers", Channel: "tcp",
		Summary: "servers, each with a router child connected to it over 127.0.0.1: in read, ppoll, epoll_pwait, in a blocked send, or in read while the server has unread data",
		Outcome: "every router wakes: by a FIN, or by a reset where the server had unread data",
		build:   func(b *builder, n int) { b.trees(n, b.tcpPairs(loopback4)...) },
	}, {
		Name: "tcp6", Unit: "servers", Channel: "tcp",
		Summary: "the same over ::1",
		Outcome: "every router wakes",
		needs:   needIPv6,
		build:   func(b *builder, n int) { b.trees(n, b.tcpPairs(loopback6)...) },
	}, {
		Name: "tcp-listener", Unit: "servers", Channel: "tcp",
		Summary: "servers that listen on 127.0.0.1 and do not accept, each with a router child whose connection lies in the accept queue",
		Outcome: "every router wakes: its connection is reset",
		build:   func(b *builder, n int) { b.trees(n, b.tcpQueued(loopback4)...) },
	}, {
		Name: "tcp6-listener", Unit: "servers", Channel: "tcp",
		Summary: "the same over ::1",
		Outcome: "every router wakes",
		needs:   needIPv6,
		build:   func(b *builder, n int) { b.trees(n, b.tcpQueued(loopback6)...) },
	}, {
		Name: "mptcp-listener", Unit: "servers", Channel: "tcp",
		Summary: "the same over 127.0.0.1 with servers that listen for MPTCP, and router children that connect by TCP",
		Outcome: "every router wakes",
		needs:   needMPTCP,
		build: func(b *builder, n int) {
			b.trees(n, b.queued(func() {
				b.mptcpSocket(regFD)
				b.listen(regFD, loopback4, 1)
				b.socket(regIn, unix.AF_INET, unix.SOCK_STREAM)
				b.connect(regIn)
			})...)
		},
	}, {
		Name: "mptcp", Unit: "servers", Channel: "tcp",
		Summary:       "servers, each with a router child connected to it over 127.0.0.1 by MPTCP: in read, ppoll or epoll_pwait",
		Outcome:       "every router wakes",
		Late:          true,
		Unpredictable: "the subflows of a connection by MPTCP are not followed, and it is a worker that tells the other end",
		needs:         needMPTCP,
		build:         func(b *builder, n int) { b.trees(n, b.pairs(b.mptcpPair, dies("server"), b.receiving(regIn)...)...) },
	}, {
		Name: "tcp-window", Unit: "servers", Channel: "tcp", Quiet: true,
		Summary: "servers blocked in a send to a router child that does not receive, has sent its FIN or not, and waits in ppoll or epoll_pwait for the server to stop sending",
		Outcome: "nobody wakes: the FIN waits behind what the router has no room for",
		build:   buildTCPWindow,
	}, {
		Name: "tcp-linger", Unit: "servers", Channel: "tcp", Mutual: true,
		Summary: "the same with servers that reset when they close (SO_LINGER with no time), and servers that have sent their FIN already, or that do so when they wait for the router's (TCP_LINGER2 below 0)",
		Outcome: "every router wakes: a reset does not wait",
		build:   buildTCPLinger,
	}, {
		Name: "tcp-broken", Unit: "servers", Channel: "tcp",
		Summary:       "servers that have sent their FIN and do not receive, each with a router child in a send that has sent nothing yet, with SIGPIPE at its default, which has a child connected to it",
		Outcome:       "every router dies, and its child wakes",
		Unpredictable: "whether the call has MSG_NOSIGNAL is in its registers",
		build:         buildTCPBroken,
	}, {
		Name: "tcp-closing", Unit: "servers", Channel: "tcp",
		Summary:       "servers that do not receive, each with a router child that is in close until they have (SO_LINGER with a time)",
		Outcome:       "every router wakes",
		Unpredictable: "a socket that is being closed is in no descriptor table any more",
		build:         buildTCPClosing,
	}, {
		Name: "tcp-connect", Unit: "servers", Channel: "tcp",
		Summary: "servers that listen on 127.0.0.1 with a full accept queue, each with a router child in connect",
		Outcome: "every router wakes, some time later: when it sends its SYN again, and it is refused",
		Late:    true,
		Unpredictable: "a connection that was not let into the accept queue is in no list of the listener's; " +
			"it learns of the death from its next SYN, one second to a minute later",
		build: buildTCPConnect,
	}, {
		Name: "tcp-mapped", Unit: "servers", Channel: "tcp",
		Summary:       "servers connected to a router child on 127.0.0.1, which have mapped their socket, and closed it",
		Outcome:       "every router wakes: with its last mapping a socket is closed",
		Unpredictable: "mappings of sockets are not looked at",
		build: func(b *builder, n int) {
			kinds := b.pairs(func() { b.tcpPair(loopback4) }, dies("server"), b.receiving(regIn)[:1]...)
			for _, kind := range kinds {
				kind.shut = func() {
					b.closeFD(regIn)
					b.must(regPtr, unix.SYS_MMAP, imm(0), imm(unix.Getpagesize()), imm(unix.PROT_READ), imm(unix.MAP_SHARED), reg(regOut), imm(0))
					b.closeFD(regOut)
				}
			}
			b.trees(n, kinds...)
		},
	}, {
		Name: "tcp-migrated", Unit: "servers", Channel: "tcp",
		Summary:       "servers that listen on 127.0.0.1 with a connection in their accept queue, each with a router child that has joined them with SO_REUSEPORT, and accepts (net.ipv4.tcp_migrate_req)",
		Outcome:       "every router wakes: the connection is its own now, and not reset",
		Unpredictable: "neither the setting nor the group is read",
		needs:         needTCPMigration,
		build:         buildTCPMigrated,
	}, {
		Name: "udp", Unit: "servers", Channel: "other", Quiet: true,
		Summary: "servers with a UDP socket on 127.0.0.1, each with a router child whose own is connected to it: in read, ppoll or epoll_pwait",
		Outcome: "nobody wakes: nothing is sent when a UDP socket closes",
		build:   buildUDP,
	},
}

// loopback is an address family and a socket address with port 0.
type loopback struct {
	family  int
	address []byte
}

var (
	loopback4 = loopback{unix.AF_INET, append(append(shorts(unix.AF_INET, 0), 127, 0, 0, 1), make([]byte, 8)...)}
	loopback6 = loopback{unix.AF_INET6, append(append(shorts(unix.AF_INET6, 0, 0, 0), make([]byte, 15)...), 1, 0, 0, 0, 0)}
)

func needIPv6() error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Bind(fd, &unix.SockaddrInet6{Addr: [16]byte{15: 1}})
	}
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("::1: %w (IPv6 is off here: CONFIG_IPV6, net.ipv6.conf.lo.disable_ipv6, and lo up)", err)
	}
	return err
}

func needMPTCP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		return fmt.Errorf("MPTCP: %w (CONFIG_MPTCP, net.mptcp.enabled)", err)
	}
	return unix.Close(fd)
}

// bind gives a socket a free port of the loopback interface, and puts its
// address where connect finds it.
func (b *builder) bind(fd int, at loopback) {
	b.must(regTemp, unix.SYS_BIND, reg(fd), imm(b.constant(at.address)), imm(len(at.address)))
	b.name(fd)
}

func (b *builder) listen(fd int, at loopback, backlog int) {
	b.bind(fd, at)
	b.must(regTemp, unix.SYS_LISTEN, reg(fd), imm(backlog))
}

// tcpConnection makes a listener in regFD and a connection to it in regIn.
func (b *builder) tcpConnection(at loopback, backlog int) {
	b.socket(regFD, at.family, unix.SOCK_STREAM)
	b.smallBuffers(regFD)
	b.listen(regFD, at, backlog)
	b.socket(regIn, at.family, unix.SOCK_STREAM)
	b.smallBuffers(regIn)
	b.connect(regIn)
}

// tcpPair makes a connection, whose ends are in regIn and regOut.
func (b *builder) tcpPair(at loopback) {
	b.tcpConnection(at, 1)
	b.acceptOne()
}

// acceptOne takes a connection from the listener in regFD, which goes, to regOut.
func (b *builder) acceptOne() {
	b.must(regOut, unix.SYS_ACCEPT4, reg(regFD), imm(0), imm(0), imm(unix.SOCK_CLOEXEC))
	b.closeFD(regFD)
}

// tcpUnread makes a connection with data that the end in regOut has not read.
func (b *builder) tcpUnread(at loopback) {
	b.tcpPair(at)
	b.must(regTemp, unix.SYS_SENDTO, reg(regIn), imm(b.base()), imm(1), imm(0), imm(0), imm(0))
}

func (b *builder) tcpPairs(at loopback) []*node {
	pair := func() { b.tcpPair(at) }
	unread := func() { b.tcpUnread(at) }
	// Who polls for room could find some yet, when a late ACK comes.
	ways := append(b.receiving(regIn), way{"sender", func() { b.send(regIn) }})
	kinds := b.pairs(pair, dies("server"), ways...)
	return append(kinds, b.pairs(unread, dies("server"), way{"reader of an unread one", ways[0].wait})...)
}

func (b *builder) mptcpSocket(fd int) {
	b.must(fd, unix.SYS_SOCKET, imm(unix.AF_INET), imm(unix.SOCK_STREAM|unix.SOCK_CLOEXEC), imm(unix.IPPROTO_MPTCP))
}

// mptcpPair makes a connection by MPTCP, whose ends are in regIn and regOut.
func (b *builder) mptcpPair() {
	b.mptcpSocket(regFD)
	b.listen(regFD, loopback4, 1)
	b.mptcpSocket(regIn)
	b.connect(regIn)
	b.acceptOne()
}

func (b *builder) tcpQueued(at loopback) []*node {
	return b.queued(func() { b.tcpConnection(at, 1) })
}

// queued are servers with a listener in regFD, whose children wait on a connection in
// its queue, in regIn.
func (b *builder) queued(open func()) []*node {
	return b.pairs(func() {
		open()
		b.add(regOut, reg(regFD), imm(0))
	}, dies("server"), b.receiving(regIn)...)
}

func buildTCPWindow(b *builder, n int) {
	b.trees(n, append(b.windows(func() { b.tcpPair(loopback4) }, nil), b.windows(func() {
		b.tcpPair(loopback4)
		b.must(regTemp, unix.SYS_SHUTDOWN, reg(regIn), imm(unix.SHUT_WR))
	}, nil)...)...)
}

// windows are servers that wait for room in a connection that open makes, and
// children at its other end that do not receive.
func (b *builder) windows(open func(), wakes []when) []*node {
	var kinds []*node
	for _, w := range []way{
		{"poller", func() { b.pollFor(regIn, unix.POLLRDHUP) }},
		{"epoller", func() { b.epollFor(regIn, unix.EPOLLRDHUP) }},
	} {
		kinds = append(kinds, &node{
			comm: Target, role: "server", wakes: dies(w.role),
			open: open,
			shut: func() { b.closeFD(regIn) },
			wait: func() { b.send(regOut) },
			children: []*node{{
				role: w.role, wakes: wakes, open: func() { b.closeFD(regOut) }, wait: w.wait,
			}},
		})
	}
	return kinds
}

func buildTCPLinger(b *builder, n int) {
	linger := imm(b.constant(words(1, 0))) // struct linger
	open := func() {
		b.tcpPair(loopback4)
		b.must(regTemp, unix.SYS_SETSOCKOPT, reg(regOut), imm(unix.SOL_SOCKET), imm(unix.SO_LINGER), linger, imm(8))
	}
	finished := func() {
		open()
		b.must(regTemp, unix.SYS_SHUTDOWN, reg(regOut), imm(unix.SHUT_WR))
	}
	impatient := func() {
		b.tcpPair(loopback4)
		b.option(regOut, unix.IPPROTO_TCP, unix.TCP_LINGER2, math.MaxUint32) // -1
		b.must(regTemp, unix.SYS_SHUTDOWN, reg(regOut), imm(unix.SHUT_WR))
	}
	kinds := b.windows(open, dies("server"))
	for _, end := range []func(){finished, impatient} {
		kinds = append(kinds, b.pairs(end, dies("server"), way{"after a FIN", func() { b.pollFor(regIn, 0) }})...)
	}
	b.trees(n, kinds...)
}

func buildTCPClosing(b *builder, n int) {
	linger := imm(b.constant(words(1, 3600))) // struct linger
	kinds := b.pairs(func() { b.tcpPair(loopback4) }, dies("server"), way{"closing", func() {
		b.must(regTemp, unix.SYS_SETSOCKOPT, reg(regIn), imm(unix.SOL_SOCKET), imm(unix.SO_LINGER), linger, imm(8))
		b.fill(regIn)
		b.block(unix.SYS_CLOSE, reg(regIn))
	}})
	kinds[0].children[0].after = "server" // which has it open, too, until then
	b.trees(n, kinds...)
}

func buildTCPBroken(b *builder, n int) {
	b.trees(n, &node{
		comm: Target, role: "server",
		open: func() {
			b.tcpPair(loopback4)
			b.must(regTemp, unix.SYS_SHUTDOWN, reg(regOut), imm(unix.SHUT_WR))
		},
		shut: func() { b.closeFD(regIn) },
		children: []*node{{
			role: "sender", wakes: diesOf("server"),
			open: func() {
				b.closeFD(regOut)
				b.add(regIn2, reg(regIn), imm(0))
				b.tcpPair(loopback4)
			},
			shut: func() { b.closeFD(regIn) },
			// Byte by byte, of which no part can have gone out: as long as there is room,
			// which a late acknowledgement makes as well.
			wait: func() {
				b.fill(regIn2)
				b.ready(unix.SYS_SENDTO)
				again, failed := b.here(), b.newLabel()
				b.try(regTemp, unix.SYS_SENDTO, reg(regIn2), imm(b.base()), imm(1), imm(0), imm(0), imm(0))
				b.jumpMinus(regTemp, failed)
				b.jump(again)
				b.place(failed)
				b.awake()
			},
			children: []*node{{
				role: "reader", wakes: dies("sender"),
				open: func() { b.closeFD(regOut); b.closeFD(regIn2) },
				wait: func() { b.read(regIn) },
			}},
		}},
	})
}

func buildTCPConnect(b *builder, n int) {
	b.trees(n, &node{
		comm: Target, role: "server",
		// Room for one, and that one is the server's own.
		open: func() {
			b.tcpConnection(loopback4, 0)
			b.add(regOut, reg(regFD), imm(0))
		},
		children: []*node{{
			role: "connecting", wakes: dies("server"),
			open: func() {
				b.closeFD(regOut)
				b.closeFD(regIn)
				b.socket(regIn, unix.AF_INET, unix.SOCK_STREAM)
			},
			wait: func() { b.blockInConnect(regIn) },
		}},
	})
}

func buildUDP(b *builder, n int) {
	b.trees(n, b.pairs(func() {
		b.socket(regOut, unix.AF_INET, unix.SOCK_DGRAM)
		b.bind(regOut, loopback4)
		b.socket(regIn, unix.AF_INET, unix.SOCK_DGRAM)
		b.connect(regIn)
	}, nil, b.receiving(regIn)...)...)
}

const migrateSetting = "/proc/sys/net/ipv4/tcp_migrate_req"

func needTCPMigration() error {
	if err := needRoot("to have a network namespace")(); err != nil {
		return err
	}
	// 5.10.223 has the setting as well, but no such wake.
	return needLinux(5, 14, "connections that go to another listener")
}

// ownNetwork makes a network namespace with its loopback interface up.
func (b *builder) ownNetwork() {
	b.must(regTemp, unix.SYS_UNSHARE, imm(unix.CLONE_NEWNET))
	b.socket(regFD, unix.AF_INET, unix.SOCK_DGRAM)
	up := make([]byte, 40) // struct ifreq
	copy(up, "lo")
	binary.NativeEndian.PutUint16(up[16:], unix.IFF_UP)
	b.must(regTemp, unix.SYS_IOCTL, reg(regFD), imm(unix.SIOCSIFFLAGS), imm(b.constant(up)))
	b.closeFD(regFD)
}

func buildTCPMigrated(b *builder, n int) {
	listener := func(fd int) {
		b.socket(fd, unix.AF_INET, unix.SOCK_STREAM)
		b.option(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	b.trees(n, &node{
		comm: Target, role: "server",
		open: func() {
			b.ownNetwork()
			b.must(regFD, unix.SYS_OPENAT, imm(unix.AT_FDCWD), imm(b.comm(migrateSetting)), imm(unix.O_WRONLY|unix.O_CLOEXEC), imm(0))
			b.must(regTemp, unix.SYS_WRITE, reg(regFD), imm(b.constant([]byte("1"))), imm(1))
			b.closeFD(regFD)
			listener(regOut)
			b.listen(regOut, loopback4, 1)
			b.socket(regIn, unix.AF_INET, unix.SOCK_STREAM)
			b.connect(regIn)
		},
		shut: func() { b.closeFD(regIn) },
		children: []*node{{
			role: "heir", wakes: dies("server"),
			open: func() {
				b.closeFD(regOut)
				listener(regOut)
				b.load(regTemp, imm(b.scratch), scratchLength)
				b.must(regTemp, unix.SYS_BIND, reg(regOut), imm(b.scratch+scratchAddress), reg(regTemp))
				b.must(regTemp, unix.SYS_LISTEN, reg(regOut), imm(1))
			},
			wait: func() { b.block(unix.SYS_ACCEPT4, reg(regOut)) },
		}},
	})
}
