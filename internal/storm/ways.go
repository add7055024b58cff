package storm

import "golang.org/x/sys/unix"

// way is one way to wait for the other end of something to go.
type way struct {
	role string
	wait func()
}

// receiving are the ways of one who waits for something to come out of fd.
func (b *builder) receiving(fd int) []way {
	return []way{
		{"reader", func() { b.read(fd) }},
		{"poller", func() { b.poll(fd) }},
		{"epoller", func() { b.epoll(fd) }},
	}
}

// sending are the ways of one who waits for room in fd, once fill has filled it.
func (b *builder) sending(fd int, fill, send func()) []way {
	return []way{
		{"sender", func() { fill(); send() }},
		{"polling sender", func() { fill(); b.pollFor(fd, unix.POLLOUT) }},
		{"epolling sender", func() { fill(); b.epollFor(fd, unix.EPOLLOUT) }},
	}
}

// pairs are trees of a server and a child that waits on it: one tree for each
// way. open makes both ends, the child's in regIn and the server's in regOut.
func (b *builder) pairs(open func(), wakes []when, ways ...way) []*node {
	var kinds []*node
	for _, w := range ways {
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			open: open,
			shut: func() { b.closeFD(regIn) },
			children: []*node{{
				role: w.role, wakes: wakes,
				open: func() { b.closeFD(regOut) },
				wait: w.wait,
			}},
		})
	}
	return kinds
}
