package storm

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Fragments of scripts: how to get at what the processes wait on, and how they
// wait.

// futex operations on memory that processes share.
const (
	futexWait = 0
	futexWake = 1
)

// read waits for end-of-file, or for something to read.
func (b *builder) read(fd int) {
	b.block(unix.SYS_READ, reg(fd), imm(b.scratch+scratchInfo), imm(infoSize))
}

// infoSize is enough for what a signalfd or an inotify instance has to say.
const infoSize = 128

// write blocks in a write that is larger than the room for it.
func (b *builder) write(fd, size int) {
	b.block(unix.SYS_WRITE, reg(fd), imm(b.base()), imm(size))
}

// accept waits for a connection on a socket that nobody knows.
func (b *builder) accept() {
	b.socket(regFD, unix.AF_UNIX, unix.SOCK_STREAM)
	b.autobind(regFD)
	b.must(regTemp, unix.SYS_LISTEN, reg(regFD), imm(16))
	b.block(unix.SYS_ACCEPT4, reg(regFD))
}

// epoll waits in epoll_pwait until a descriptor is readable.
func (b *builder) epoll(fd int) { b.epollFor(fd, unix.EPOLLIN) }

func (b *builder) epollFor(fd int, events uint32) {
	b.epollInstance(regFD, fd, events)
	b.epollWait(regFD)
}

// epollInstance creates an epoll instance that watches one descriptor.
func (b *builder) epollInstance(instance, fd int, events uint32) {
	b.must(instance, unix.SYS_EPOLL_CREATE1, imm(unix.EPOLL_CLOEXEC))
	b.watch(instance, fd, events)
}

// watch has an epoll instance watch one more descriptor.
func (b *builder) watch(instance, fd int, events uint32) {
	b.must(regTemp, unix.SYS_EPOLL_CTL, reg(instance), imm(unix.EPOLL_CTL_ADD), reg(fd), imm(b.constant(words(events, 0, 0, 0))))
}

func (b *builder) epollWait(instance int) { b.epollWaitFor(instance, scratchEvent, 1) }

// epollWaitFor waits for at most so many events, which go to the scratch page.
func (b *builder) epollWaitFor(instance int, offset uintptr, events int) {
	b.block(unix.SYS_EPOLL_PWAIT, reg(instance), imm(b.scratch+offset), imm(events), imm(^uintptr(0)), imm(0), imm(8))
}

// poll waits in ppoll until a descriptor is readable.
func (b *builder) poll(fd int) { b.pollFor(fd, unix.POLLIN) }

func (b *builder) pollFor(fd, events int) {
	b.block(unix.SYS_PPOLL, b.pollEntry(fd, events), imm(1), imm(0), imm(0), imm(8))
}

// pollEntry is a struct pollfd.
func (b *builder) pollEntry(fd, events int) arg {
	entry := imm(b.scratch + scratchPoll)
	b.store(entry, 0, reg(fd))
	b.store(entry, 4, imm(events))
	return entry
}

// pause waits in ppoll for nothing.
func (b *builder) pause() { b.block(unix.SYS_PPOLL) }

// pipe creates a pipe and loads its ends into two registers.
func (b *builder) pipe(in, out int) { b.pipeWith(in, out, 0) }

func (b *builder) pipeWith(in, out, flags int) {
	fds := imm(b.scratch + scratchPipe)
	b.must(regTemp, unix.SYS_PIPE2, fds, imm(unix.O_CLOEXEC|flags))
	b.load(in, fds, 0)
	b.load(out, fds, 4)
}

// send blocks in a send that is larger than what the socket takes, as nobody
// receives.
func (b *builder) send(fd int) {
	b.block(unix.SYS_SENDTO, reg(fd), imm(b.base()), imm(arenaSize), imm(unix.MSG_NOSIGNAL), imm(0), imm(0))
}

// fill sends messages until the socket takes no more.
func (b *builder) fill(fd int) {
	again, full := b.here(), b.newLabel()
	b.try(regTemp, unix.SYS_SENDTO, reg(fd), imm(b.base()), imm(messageSize), imm(unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), imm(0), imm(0))
	b.jumpMinus(regTemp, full)
	b.jump(again)
	b.place(full)
}

// sendMessage fills a socket that keeps messages apart, and blocks in sending
// one more.
func (b *builder) sendMessage(fd int) {
	b.fill(fd)
	b.block(unix.SYS_SENDTO, reg(fd), imm(b.base()), imm(messageSize), imm(unix.MSG_NOSIGNAL), imm(0), imm(0))
}

const messageSize = 1024

func (b *builder) socket(fd, family, kind int) {
	b.must(fd, unix.SYS_SOCKET, imm(family), imm(kind|unix.SOCK_CLOEXEC), imm(0))
}

func (b *builder) socketPair(one, other, kind int) {
	fds := imm(b.scratch + scratchPipe)
	b.must(regTemp, unix.SYS_SOCKETPAIR, imm(unix.AF_UNIX), imm(kind|unix.SOCK_CLOEXEC), imm(0), fds)
	b.load(one, fds, 0)
	b.load(other, fds, 4)
}

// autobind gives an AF_UNIX socket a unique abstract name: that is what an
// address of two bytes asks for.
func (b *builder) autobind(fd int) {
	b.must(regTemp, unix.SYS_BIND, reg(fd), imm(b.constant(shorts(unix.AF_UNIX))), imm(2))
}

// name puts a socket's address into the scratch page, for connect.
func (b *builder) name(fd int) {
	b.store(imm(b.scratch), scratchLength, imm(128))
	b.must(regTemp, unix.SYS_GETSOCKNAME, reg(fd), imm(b.scratch+scratchAddress), imm(b.scratch+scratchLength))
}

// connect connects to the named address and must succeed at once.
func (b *builder) connect(fd int) {
	b.load(regTemp, imm(b.scratch), scratchLength)
	b.must(regTemp, unix.SYS_CONNECT, reg(fd), imm(b.scratch+scratchAddress), reg(regTemp))
}

// blockInConnect connects to the named address and does not get through.
func (b *builder) blockInConnect(fd int) {
	b.load(regTemp, imm(b.scratch), scratchLength)
	b.block(unix.SYS_CONNECT, reg(fd), imm(b.scratch+scratchAddress), reg(regTemp))
}

// option sets an integer option of a socket.
func (b *builder) option(fd, level, name int, value uint32) {
	b.must(regTemp, unix.SYS_SETSOCKOPT, reg(fd), imm(level), imm(name), imm(b.constant(words(value))), imm(4))
}

// smallBuffers makes a socket's buffers as small as they can be.
func (b *builder) smallBuffers(fd int) {
	b.option(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
	b.option(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
}

// words and shorts lay out structures for the kernel.
func words(v ...uint32) []byte {
	var out []byte
	for _, w := range v {
		out = binary.NativeEndian.AppendUint32(out, w)
	}
	return out
}

func shorts(v ...uint16) []byte {
	var out []byte
	for _, w := range v {
		out = binary.NativeEndian.AppendUint16(out, w)
	}
	return out
}
