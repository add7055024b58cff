package storm

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The handler's slot in each process's own copy of this binary's data, and where
// the assembly lies. No restorer means that the kernel has one.
var (
	handlerSlot                     uintptr
	handlerAddress, restorerAddress uintptr
)

// What package unix does not export.
const (
	saNoChildWait = 0x00000002
	saSigInfo     = 0x00000004
	saRestorer    = 0x04000000
	saOnStack     = 0x08000000
	saRestart     = 0x10000000
	sigDefault    = 0
	sigIgnore     = 1
)

// action sets what a signal does. Children inherit it, so a process sets it
// after its forks.
func (b *builder) action(sig unix.Signal, handler, flags uintptr) {
	sa := make([]byte, 0, 32)
	restorer := uintptr(0)
	if handler != sigDefault && handler != sigIgnore {
		// A process's own stack has no room for it.
		flags |= saOnStack
		if restorer = restorerAddress; restorer != 0 {
			flags |= saRestorer
		}
	}
	for _, word := range [4]uintptr{handler, flags, restorer, 0} {
		sa = binary.NativeEndian.AppendUint64(sa, uint64(word))
	}
	b.must(regTemp, unix.SYS_RT_SIGACTION, imm(int(sig)), imm(b.constant(sa)), imm(0), imm(8))
}

// catch has a handler mark the process woken when the signal comes.
func (b *builder) catch(sig unix.Signal, flags uintptr) {
	b.store64(imm(uintptr(unsafe.Pointer(&handlerSlot))), 0, reg(regSlot))
	b.action(sig, handlerAddress, flags)
}

func (b *builder) ignore(sig unix.Signal) { b.action(sig, sigIgnore, 0) }

// signalSet is the set of one signal, for the kernel.
func (b *builder) signalSet(sig unix.Signal) arg {
	return imm(b.constant(binary.NativeEndian.AppendUint64(nil, 1<<(sig-1))))
}

// hold blocks a signal: it stays pending.
func (b *builder) hold(sig unix.Signal) {
	b.must(regTemp, unix.SYS_RT_SIGPROCMASK, imm(unix.SIG_BLOCK), b.signalSet(sig), imm(0), imm(8))
}

// release unblocks a signal.
func (b *builder) release(sig unix.Signal) {
	b.must(regTemp, unix.SYS_RT_SIGPROCMASK, imm(unix.SIG_UNBLOCK), b.signalSet(sig), imm(0), imm(8))
}

// signalFD holds a signal and opens a descriptor that it can be read from.
func (b *builder) signalFD(fd int, sig unix.Signal) {
	b.hold(sig)
	b.must(fd, unix.SYS_SIGNALFD4, imm(^uintptr(0)), b.signalSet(sig), imm(8), imm(unix.SFD_CLOEXEC))
}

// awaitSignal holds a signal and waits for it in rt_sigtimedwait.
func (b *builder) awaitSignal(sig unix.Signal) {
	b.hold(sig)
	b.block(unix.SYS_RT_SIGTIMEDWAIT, b.signalSet(sig), imm(b.scratch+scratchInfo), imm(0), imm(8))
}

// aside are the ways in which a second thread gets a signal that its leader
// blocks.
func (b *builder) aside(sig unix.Signal) []way {
	return []way{
		{"awaited by a thread", func() {
			b.blockAside(unix.SYS_RT_SIGTIMEDWAIT, b.signalSet(sig), imm(b.scratch+scratchInfo), imm(0), imm(8))
		}},
		{"caught by a thread", func() {
			b.release(sig)
			b.blockAside(unix.SYS_PPOLL)
		}},
	}
}
