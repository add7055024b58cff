package storm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

var ioUringTopologies = []Topology{
	{
		Name: "io_uring-held", Unit: "servers", Channel: "pipe",
		Summary:       "servers that registered the write end of a router child's pipe with an io_uring, and closed it",
		Outcome:       "every router wakes, when a worker of the kernel's has taken the ring apart",
		Late:          true,
		Unaccounted:   true,
		Unpredictable: "a ring's files are in no descriptor table, and it is not the dying process that lets them go",
		needs:         needIOUring,
		build:         func(b *builder, n int) { b.trees(n, b.readsFromHolder(b.ringHolds)) },
	}, {
		Name: "io_uring-poll", Unit: "servers", Channel: "pipe",
		Summary: "servers, each with a router child that polls its pipe by way of an io_uring, and waits for the ring's completion, or for something else",
		Outcome: "every router wakes; who waits for something else sleeps on once the poll is done",
		needs:   needIOUring,
		build: func(b *builder, n int) {
			kinds := b.pairs(func() { b.pipe(regIn, regOut) }, dies("server"),
				way{"poller", func() { b.ring(regFD); b.ringPoll(regIn); b.ringWait() }})
			elsewhere := b.pairs(func() { b.pipe(regIn, regOut) }, stirs("server"),
				way{"elsewhere", func() { b.ring(regFD); b.ringPoll(regIn); b.ringSubmit(); b.pause() }})
			b.trees(n, append(kinds, elsewhere...)...)
		},
	}, {
		Name: "io_uring-unix", Unit: "servers", Channel: "unix",
		Summary: "servers with a socket, each with a router child that receives from it, or polls for room in it, by way of an io_uring, and waits for the ring's completion",
		Outcome: "every router wakes",
		needs:   needIOUring,
		build: func(b *builder, n int) {
			receivers := b.pairs(func() { b.socketPair(regIn, regOut, unix.SOCK_STREAM) }, dies("server"),
				way{"receiver", func() { b.ring(regFD); b.ringReceive(regIn); b.ringWait() }})
			b.trees(n, append(receivers, b.datagramSenders(way{"sender", func() {
				b.smallBuffers(regIn)
				b.fill(regIn)
				b.ring(regFD)
				b.ringPollFor(regIn, unix.POLLOUT)
				b.ringWait()
			}})...)...)
		},
	}, {
		Name: "io_uring-write", Unit: "servers", Channel: "pipe",
		Summary: "servers that read from a router child, which writes to the full pipe by way of an io_uring, with SIGPIPE at its default",
		Outcome: "every router dies of SIGPIPE: the write is tried again",
		needs:   needIOUringWrite,
		build: func(b *builder, n int) {
			b.trees(n, b.pairs(func() { b.pipe(regOut, regIn) }, diesOf("server"), way{"writer", func() {
				b.fillPipe(regIn)
				b.ring(regFD)
				b.ringWrite(regIn)
				b.ringWait()
			}})...)
		},
	}, {
		Name: "io_uring-eventfd", Unit: "servers", Channel: "other",
		Summary:       "servers that poll a pipe of their own by way of an io_uring, which tells an eventfd of completions, each with a router child that reads that eventfd",
		Outcome:       "every router wakes: the poll is cancelled, and so complete",
		Late:          true,
		Unpredictable: "whom a ring tells is not read, and it is not the dying process that cancels its requests",
		needs:         needIOUring,
		build: func(b *builder, n int) {
			b.trees(n, &node{
				comm: Target, role: "server",
				open: func() { b.must(regIn, unix.SYS_EVENTFD2, imm(0), imm(unix.EFD_CLOEXEC)) },
				shut: func() {
					b.ring(regFD)
					b.ringRegister(ioringRegisterEventfd, regIn)
					b.pipe(regIn2, regOut2)
					b.ringPoll(regIn2)
					b.ringSubmit()
				},
				children: []*node{{
					role: "reader", wakes: dies("server"),
					wait: func() { b.read(regIn) },
				}},
			})
		},
	}, {
		Name: "aio-held", Unit: "servers", Channel: "pipe",
		Summary:       "servers that poll the write end of a router child's pipe by io_submit, and closed it",
		Outcome:       "every router wakes, when a worker of the kernel's has cancelled the poll",
		Late:          true,
		Unpredictable: "a request's file is in no descriptor table, and it is not the dying process that lets it go",
		needs:         needAIO,
		build:         func(b *builder, n int) { b.trees(n, b.readsFromHolder(b.submitPoll)) },
	},
}

const (
	ioringRegisterFiles   = 2
	ioringRegisterEventfd = 4
	ioringOpPollAdd       = 6
	ioringOpWrite         = 23
	ioringOpRecv          = 27
	ioringGetEvents       = 1
	ioringOffsetEntries   = 0x10000000 // where the submission entries are mapped

	ioringTailOffset = 44 // sq_off.tail in struct io_uring_params
)

func needIOUring() error {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	switch {
	case errno == 0:
		return unix.Close(int(fd))
	case errors.Is(errno, unix.ENOSYS), errors.Is(errno, unix.EPERM):
		return fmt.Errorf("io_uring: %w (Linux 5.1 or later with CONFIG_IO_URING, and not forbidden by kernel.io_uring_disabled)", errno)
	}
	return fmt.Errorf("io_uring: %w", errno)
}

// needIOUringWrite: until v6.3 a worker of the ring's does a write that has to wait.
func needIOUringWrite() error {
	if err := needIOUring(); err != nil {
		return err
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if _, err := unix.Pwritev2(fds[1], [][]byte{{0}}, -1, unix.RWF_NOWAIT); err != nil {
		return fmt.Errorf("RWF_NOWAIT on pipes: %w (Linux 6.4 or later)", err)
	}
	return nil
}

// ring sets up an io_uring of one entry, with its parameters in scratchStruct.
func (b *builder) ring(fd int) {
	b.must(fd, unix.SYS_IO_URING_SETUP, imm(1), imm(b.scratch+scratchStruct))
}

// readsFromHolder is a server that has something else hold the write end of its child's
// pipe, and closes it.
func (b *builder) readsFromHolder(hold func(fd int)) *node {
	return &node{
		comm: Target, role: "server",
		open: func() { b.pipe(regIn, regOut) },
		shut: func() { b.closeFD(regIn); hold(regOut); b.closeFD(regOut) },
		children: []*node{{
			role: "reader", wakes: dies("server"),
			open: func() { b.closeFD(regOut) },
			wait: func() { b.read(regIn) },
		}},
	}
}

// ringHolds has a ring hold a descriptor.
func (b *builder) ringHolds(fd int) {
	b.ring(regFD)
	b.ringRegister(ioringRegisterFiles, fd)
	// The register is free for others; the descriptor stays.
}

// ringRegister gives the ring in regFD a descriptor to use.
func (b *builder) ringRegister(what, fd int) {
	b.store(imm(b.scratch), scratchPipe, reg(fd))
	b.must(regTemp, unix.SYS_IO_URING_REGISTER, reg(regFD), imm(what), imm(b.scratch+scratchPipe), imm(1))
}

// ringPoll puts a poll of fd into the ring in regFD, of which that is the first request.
func (b *builder) ringPoll(fd int) { b.ringPollFor(fd, unix.POLLIN) }

func (b *builder) ringPollFor(fd, events int) {
	b.ringRequest(ioringOpPollAdd, fd, func() { b.store(reg(regPtr), 28, imm(events)) }) // poll32_events
}

// ringReceive and ringWrite are ringPoll for a recv and a write of a byte.
func (b *builder) ringReceive(fd int) { b.ringTransfer(ioringOpRecv, fd) }
func (b *builder) ringWrite(fd int)   { b.ringTransfer(ioringOpWrite, fd) }

func (b *builder) ringTransfer(opcode uintptr, fd int) {
	b.ringRequest(opcode, fd, func() {
		b.store64(reg(regPtr), 16, imm(b.scratch+scratchBuffer)) // addr
		b.store(reg(regPtr), 24, imm(1))                         // len
	})
}

// ringRequest puts the first request into the ring in regFD. rest adds to the struct
// io_uring_sqe in regPtr.
func (b *builder) ringRequest(opcode uintptr, fd int, rest func()) {
	mapped := func(dst int, offset uintptr) {
		b.must(dst, unix.SYS_MMAP, imm(0), imm(unix.Getpagesize()), imm(unix.PROT_READ|unix.PROT_WRITE),
			imm(unix.MAP_SHARED), reg(regFD), imm(offset))
	}
	mapped(regPtr, ioringOffsetEntries)
	b.store(reg(regPtr), 0, imm(opcode))
	b.store(reg(regPtr), 4, reg(fd))
	rest()
	// The index array says 0 for the first entry; the tail says that it is there.
	mapped(regPtr, 0)
	b.load(regTemp, imm(b.scratch), scratchStruct+ioringTailOffset)
	b.add(regPtr, reg(regPtr), reg(regTemp))
	b.store(reg(regPtr), 0, imm(1))
}

// ringSubmit submits that request.
func (b *builder) ringSubmit() {
	b.must(regTemp, unix.SYS_IO_URING_ENTER, reg(regFD), imm(1), imm(0), imm(0), imm(0), imm(0))
}

// ringWait submits that request and waits for its completion.
func (b *builder) ringWait() {
	b.block(unix.SYS_IO_URING_ENTER, reg(regFD), imm(1), imm(1), imm(ioringGetEvents), imm(0), imm(0))
}

func needAIO() error {
	var context uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&context)), 0); errno != 0 {
		return fmt.Errorf("io_setup: %w (CONFIG_AIO)", errno)
	}
	unix.Syscall(unix.SYS_IO_DESTROY, context, 0, 0)
	return nil
}

// submitPoll submits a poll of fd for errors alone.
func (b *builder) submitPoll(fd int) {
	const opcodePoll = 5 // IOCB_CMD_POLL
	context, list, request := b.scratch+scratchStruct, b.scratch+scratchInfo, b.scratch+scratchControl
	b.store64(imm(context), 0, imm(0))
	b.must(regTemp, unix.SYS_IO_SETUP, imm(1), imm(context))
	// struct iocb: aio_lio_opcode at 16, aio_fildes at 20.
	for at := 0; at < 64; at += 8 {
		b.store64(imm(request), at, imm(0))
	}
	b.store(imm(request), 16, imm(opcodePoll))
	b.store(imm(request), 20, reg(fd))
	b.store64(imm(list), 0, imm(request))
	b.load64(regPtr, imm(context), 0)
	b.must(regTemp, unix.SYS_IO_SUBMIT, reg(regPtr), imm(1), imm(list))
}
