package storm

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The runtime's own preparation for a fork: all signals blocked, stack growth
// forbidden. The same hooks serve package syscall.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// birth is what a directly forked process is born with.
type birth struct {
	script uintptr
	regs   [registers]uintptr
	// keep are the descriptors that it inherits, ascending; 0 for none.
	// Everything else above 2 is closed.
	keep [2]uintptr
	null uintptr // descriptor of /dev/null
	// pgid is the process group to join, 0 to lead a new one.
	pgid uintptr
	zero uintptr // 32 bytes of zeroes: SIG_DFL's sigaction, the empty signal set
	// signalStack is the stack_t of the stack that handlers run on.
	signalStack uintptr
	// memory is what it needs of its parent's, ascending and in whole pages; all else up
	// to top is unmapped. No top keeps everything.
	memory [keptRanges]addressRange
	top    uintptr
	// stack is the end of the stack that it runs on, where forkRaw puts a copy of
	// this, and local the end of memory that may pass for thread-local.
	stack, local uintptr
}

// fork forks one process that runs a script, and returns its pid.
func fork(b *birth) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Descriptors that other goroutines create meanwhile without close-on-exec
	// would not hurt (the child closes them), but processes that they fork
	// must not hold our pipes' ends for longer than until their exec.
	syscall.ForkLock.Lock()
	pid, errno := forkRaw(b)
	syscall.ForkLock.Unlock()
	if errno != 0 {
		return 0, errno
	}
	return int(pid), nil
}

// forkRaw does not return in the child. From clone on, the child is a single
// thread whose Go runtime is dead: only system calls and plain stores to memory
// outside the heap are possible, on a stack that the storm has mapped.
//
//go:noinline
//go:norace
//go:nocheckptr
func forkRaw(b *birth) (uintptr, syscall.Errno) {
	own := (b.stack - unsafe.Sizeof(*b)) &^ 15
	*(*birth)(pointer(own)) = *b
	flags := uintptr(unix.SIGCHLD)
	if b.slim() {
		// Go code that assembly has called loads its g from there, used or not.
		flags |= unix.CLONE_SETTLS
	}
	beforeFork()
	pid := cloneOnto(flags, own, own, b.local)
	afterFork()
	if int(pid) < 0 {
		return 0, syscall.Errno(-pid)
	}
	return pid, 0
}

// cloneOnto makes a task that begins with birth on the stack that ends at stackTop, and
// returns its id or a negative errno. tls is for CLONE_SETTLS.
func cloneOnto(flags, stackTop, birth, tls uintptr) uintptr

// begin is where a direct child of the owner begins, and a thread.
//
//lint:ignore U1000 cloneOnto calls it
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func begin(at uintptr) {
	b := (*birth)(pointer(at))
	if b.forked() {
		bear(b)
	}
	if b.slim() {
		shed(b)
	}
	interpret(b)
}

// forked tells a direct child of the owner from a thread.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (b *birth) forked() bool { return b.zero != 0 }

// slim is whether it is to have but little of its parent's memory.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (b *birth) slim() bool { return b.top != 0 }

// bear turns the copy of a Go process into a process of the storm's own.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func bear(b *birth) {
	slot := b.regs[regSlot]
	// The Go runtime's handlers would run on a runtime that is not there.
	for sig := uintptr(1); sig <= 64; sig++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, b.zero, 0, 8, 0, 0)
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, b.zero, 0, 8, 0, 0)
	syscall.RawSyscall6(unix.SYS_SIGALTSTACK, b.signalStack, 0, 0, 0, 0, 0)
	syscall.RawSyscall6(unix.SYS_SETPGID, 0, b.pgid, 0, 0, 0, 0)
	for fd := uintptr(0); fd < 3; fd++ {
		if _, _, e := syscall.RawSyscall6(unix.SYS_DUP3, b.null, fd, 0, 0, 0, 0); e != 0 {
			fail(slot, unix.SYS_DUP3, uintptr(e))
		}
	}
	low := uintptr(3)
	for i := 0; i < 2; i++ {
		if k := b.keep[i]; k != 0 {
			if k > low {
				closeRange(slot, low, k-1)
			}
			low = k + 1
		}
	}
	closeRange(slot, low, 1<<32-1)
	pid, _, _ := syscall.RawSyscall6(unix.SYS_GETPID, 0, 0, 0, 0, 0, 0)
	poke(slot+slotPID, uint32(pid))
}

//go:nosplit
//go:norace
//go:nocheckptr
func closeRange(slot, first, last uintptr) {
	if _, _, e := syscall.RawSyscall6(unix.SYS_CLOSE_RANGE, first, last, 0, 0, 0, 0); e != 0 {
		fail(slot, unix.SYS_CLOSE_RANGE, uintptr(e))
	}
}

// fail records why a process cannot play its part, and ends it.
//
//go:nosplit
//go:norace
//go:nocheckptr
func fail(slot, number, errno uintptr) {
	if slot != 0 {
		poke(slot+slotCall, uint32(number))
		poke(slot+slotErrno, uint32(errno))
	}
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 1, 0, 0, 0, 0, 0)
	}
}

// pointer is the memory at an address outside the Go heap.
//
//go:nosplit
//go:norace
//go:nocheckptr
func pointer(address uintptr) unsafe.Pointer {
	return *(*unsafe.Pointer)(unsafe.Pointer(&address))
}

//go:nosplit
//go:norace
//go:nocheckptr
func poke(address uintptr, v uint32) { *(*uint32)(pointer(address)) = v }

// interpret runs a script for ever, in the child.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func interpret(b *birth) {
	var r [16]uintptr
	for i := 0; i < registers; i++ {
		r[i&15] = b.regs[i]
	}
	for pc := b.script; ; {
		o := (*op)(pointer(pc))
		pc += opSize
		var v [6]uintptr
		for i := range v {
			v[i] = o.args[i]
			if o.regs>>i&1 != 0 {
				v[i] = r[v[i]&15]
			}
		}
		switch o.code {
		case opSyscall, opMust:
			n, _, e := syscall.RawSyscall6(o.number, v[0], v[1], v[2], v[3], v[4], v[5])
			if e != 0 {
				if o.code == opMust {
					fail(r[regSlot], o.number, uintptr(e))
				}
				n = -uintptr(e)
			}
			r[o.dst&15] = n
		case opFork:
			if born(v[1], v[2]) {
				pc, r[regSlot] = v[0], v[1]
			}
		case opThread:
			if e := thread(&r, v[0], v[1], v[2], v[3]); e != 0 {
				fail(r[regSlot], unix.SYS_CLONE, e)
			}
		case opStore:
			poke(v[0]+v[1], uint32(v[2]))
		case opStore64:
			*(*uint64)(pointer(v[0] + v[1])) = uint64(v[2])
		case opLoad:
			r[o.dst&15] = uintptr(*(*int32)(pointer(v[0] + v[1])))
		case opLoad64:
			r[o.dst&15] = uintptr(*(*uint64)(pointer(v[0] + v[1])))
		case opAdd:
			r[o.dst&15] = v[0] + v[1]
		case opJump:
			pc = v[0]
		case opJumpZero:
			if v[0] == 0 {
				pc = v[1]
			}
		case opJumpMinus:
			if int(v[0]) < 0 {
				pc = v[1]
			}
		case opFill:
			fill(v[0], v[1], uint64(*(*uint32)(pointer(r[regSlot] + slotIndex))))
		case opSum:
			*(*uint64)(pointer(r[regSlot] + slotSum)) = sum(v[0], v[1])
		}
	}
}

// shed unmaps the memory of the parent that a process has no use for, and with it page
// tables, which are most of what a small process takes.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func shed(b *birth) {
	slot, low := b.regs[regSlot], uintptr(0)
	for i := 0; i < keptRanges && b.memory[i].end != 0; i++ {
		unmap(slot, low, b.memory[i].start)
		low = b.memory[i].end
	}
	unmap(slot, low, b.top)
}

//go:nosplit
//go:norace
//go:nocheckptr
func unmap(slot, start, end uintptr) {
	if start >= end {
		return
	}
	if _, _, e := syscall.RawSyscall6(unix.SYS_MUNMAP, start, end-start, 0, 0, 0, 0); e != 0 {
		fail(slot, unix.SYS_MUNMAP, uintptr(e))
	}
}

// born forks for a script and reports whether this is the child. Both sides
// write the child's pid into its slot, so that neither is ahead of the record.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func born(slot, flags uintptr) bool {
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	child := e == 0 && pid == 0
	if slot == 0 {
		return child // too short-lived to be recorded
	}
	if e != 0 {
		poke(slot+slotCall, unix.SYS_CLONE)
		poke(slot+slotErrno, uint32(e))
		return false
	}
	if child {
		pid, _, _ = syscall.RawSyscall6(unix.SYS_GETPID, 0, 0, 0, 0, 0, 0)
	}
	poke(slot+slotPID, uint32(pid))
	return child
}

// threadFlags make a thread as pthread_create does, but for thread-local memory:
// a script has none.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
	unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// thread starts a thread, or what else flags make of a clone that shares memory. It
// continues at start with the same registers. thread returns an errno, 0 for success.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func thread(r *[16]uintptr, start, stack, size, flags uintptr) uintptr {
	// The bottom of the stack is as good a place as any to hand over.
	b := (*birth)(pointer(stack))
	b.script = start
	for i := 0; i < registers; i++ {
		b.regs[i] = r[i&15]
	}
	if n := int(cloneOnto(flags, stack+size, stack, 0)); n < 0 {
		return uintptr(-n)
	}
	return 0
}

// fill writes incompressible words: zram must not swap them for free.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func fill(address, length uintptr, index uint64) {
	x := xorshiftSeed(index)
	for end := address + length; address < end; address += 8 {
		x = xorshift(x)
		*(*uint64)(pointer(address)) = x
	}
}

//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func sum(address, length uintptr) uint64 {
	var total uint64
	for end := address + length; address < end; address += 8 {
		total += *(*uint64)(pointer(address))
	}
	return total
}

//go:nosplit
//go:norace
func xorshiftSeed(index uint64) uint64 { return (index + 1) * 0x9e3779b97f4a7c15 }

//go:nosplit
//go:norace
func xorshift(x uint64) uint64 {
	x ^= x << 13
	x ^= x >> 7
	x ^= x << 17
	return x
}

// expectedSum is what sum finds in memory that fill wrote.
func expectedSum(length uintptr, index uint64) uint64 {
	x, total := xorshiftSeed(index), uint64(0)
	for n := uintptr(0); n < length; n += 8 {
		x = xorshift(x)
		total += x
	}
	return total
}
