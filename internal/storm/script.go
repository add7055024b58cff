package storm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A script is what a staged process does: a slice of ops that is built before
// the first fork, lies in memory of its own outside the Go heap, and is run by
// interpret. After a raw fork nothing of the Go runtime may be used any more,
// so a child's whole life has to be data.

type opcode uint32

const (
	opSyscall   opcode = iota // dst = number(args 1..5 or 6); see op.number
	opMust                    // the same; an error is recorded and ends the process
	opFork                    // fork: the child continues at args[0] with slot args[1]; flags args[2]
	opThread                  // a task that shares memory continues at args[0], on the stack of args[2] bytes at args[1]; flags args[3]
	opStore                   // *(uint32 *)(args[0] + args[1]) = args[2]
	opStore64                 // *(uint64 *)(args[0] + args[1]) = args[2]
	opLoad                    // dst = *(int32 *)(args[0] + args[1])
	opLoad64                  // dst = *(uint64 *)(args[0] + args[1])
	opAdd                     // dst = args[0] + args[1]
	opJump                    // goto args[0]
	opJumpZero                // if args[0] == 0 goto args[1]
	opJumpMinus               // if args[0] < 0 goto args[1]
	opFill                    // fill args[1] bytes at args[0] with xorshift of the slot's index
	opSum                     // add up args[1] bytes at args[0] into the slot
)

// op is one instruction. It holds no Go pointer.
type op struct {
	code   opcode
	dst    uint32 // register that takes the result
	regs   uint32 // bit i: args[i] is a register's number, not a value
	_      uint32
	number uintptr // system call
	args   [6]uintptr
}

const opSize = unsafe.Sizeof(op{})

// Registers. They are copied by fork like everything else, so a child finds
// its parent's descriptors in them.
const (
	regSlot  = iota // address of this process's slot
	regIn           // read end that this process waits on
	regOut          // write end that this process keeps open
	regNext         // address of the next slot to fork into, 0 for none
	regCount        // loop counter
	regIn2          // second pipe
	regOut2
	regExtra  // address of a second child's slot, 0 for none
	regNumber // see direct.number
	regFD     // a descriptor that nobody else gets: a socket, an epoll instance
	regTemp
	regMem  // start of the memory that was filled
	regHome // address of the slot of the first process of its tree
	regPtr  // an address
	regPID  // a process
	registers
)

// arg is an operand: a value, a register, or a label.
type arg struct {
	value uintptr
	reg   bool
	label bool
}

func imm[T ~int | ~int64 | ~uintptr | ~uint64](v T) arg { return arg{value: uintptr(v)} }
func reg(n int) arg                                     { return arg{value: uintptr(n), reg: true} }

// label marks a place in a script: an index into the assembler's table.
type label int

func at(l label) arg { return arg{value: uintptr(l), label: true} }

// assembler lays scripts and their constants out in an arena.
type assembler struct {
	arena   []byte // ops from the front, constants from the back
	used    uintptr
	top     uintptr
	labels  []uintptr // op offsets
	patches []patch
	err     error
}

type patch struct {
	op    uintptr
	index int
	label label
}

func newAssembler(arena []byte) *assembler {
	return &assembler{arena: arena, top: uintptr(len(arena))}
}

func (a *assembler) base() uintptr { return uintptr(unsafe.Pointer(&a.arena[0])) }

// newLabel reserves a label, to be placed later.
func (a *assembler) newLabel() label {
	a.labels = append(a.labels, ^uintptr(0))
	return label(len(a.labels) - 1)
}

func (a *assembler) place(l label) { a.labels[l] = a.used }

// here is a label at the current place.
func (a *assembler) here() label {
	l := a.newLabel()
	a.place(l)
	return l
}

// constant copies b into the arena, 8-byte aligned, and returns its address.
func (a *assembler) constant(b []byte) uintptr {
	need := (uintptr(len(b)) + 7) &^ 7
	if a.used+need > a.top {
		a.err = fmt.Errorf("script arena of %d bytes is full", len(a.arena))
		return 0
	}
	a.top -= need
	copy(a.arena[a.top:], b)
	return a.base() + a.top
}

func (a *assembler) emit(code opcode, dst int, number uintptr, args ...arg) {
	if a.used+opSize > a.top || len(args) > 6 {
		a.err = fmt.Errorf("script arena of %d bytes is full", len(a.arena))
		return
	}
	o := op{code: code, dst: uint32(dst), number: number}
	for i, v := range args {
		o.args[i] = v.value
		if v.reg {
			o.regs |= 1 << i
		}
		if v.label {
			a.patches = append(a.patches, patch{a.used, i, label(v.value)})
		}
	}
	*(*op)(unsafe.Pointer(&a.arena[a.used])) = o
	a.used += opSize
}

// try makes a system call whose failure does not matter, or whose result is
// the point (a blocking one).
func (a *assembler) try(dst int, number uintptr, args ...arg) {
	a.emit(opSyscall, dst, number, args...)
}

// must makes a system call without which the process makes no sense.
func (a *assembler) must(dst int, number uintptr, args ...arg) {
	a.emit(opMust, dst, number, args...)
}

func (a *assembler) fork(child label, slot arg) { a.forkFor(child, slot, unix.SIGCHLD) }

// forkFor forks a child that sends a signal at its end.
func (a *assembler) forkFor(child label, slot arg, sig unix.Signal) {
	a.emit(opFork, regTemp, 0, at(child), slot, imm(int(sig)))
}
func (a *assembler) closeFD(r int)            { a.must(regTemp, unix.SYS_CLOSE, reg(r)) }
func (a *assembler) jump(l label)             { a.emit(opJump, regTemp, 0, at(l)) }
func (a *assembler) jumpZero(r int, l label)  { a.emit(opJumpZero, regTemp, 0, reg(r), at(l)) }
func (a *assembler) jumpMinus(r int, l label) { a.emit(opJumpMinus, regTemp, 0, reg(r), at(l)) }

func (a *assembler) add(dst int, x, y arg)             { a.emit(opAdd, dst, 0, x, y) }
func (a *assembler) store(base arg, off int, v arg)    { a.emit(opStore, regTemp, 0, base, imm(off), v) }
func (a *assembler) load(dst int, base arg, off int)   { a.emit(opLoad, dst, 0, base, imm(off)) }
func (a *assembler) load64(dst int, base arg, off int) { a.emit(opLoad64, dst, 0, base, imm(off)) }
func (a *assembler) store64(base arg, off int, v arg) {
	a.emit(opStore64, regTemp, 0, base, imm(off), v)
}

// finish resolves the labels. The arena is complete afterwards.
func (a *assembler) finish() error {
	for _, p := range a.patches {
		if a.labels[p.label] == ^uintptr(0) {
			return fmt.Errorf("script label %d was never placed", p.label)
		}
		(*op)(unsafe.Pointer(&a.arena[p.op])).args[p.index] = a.base() + a.labels[p.label]
	}
	return a.err
}

// address is where a label's op lies in memory, after finish.
func (a *assembler) address(l label) uintptr { return a.base() + a.labels[l] }
