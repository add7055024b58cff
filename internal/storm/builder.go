package storm

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Target is the name of the processes that a test or a demonstration kills, in
// every topology.
const Target = "smtpserver"

// member is one process of a storm, as planned.
type member struct {
	comm string
	role string
	// call is the system call that the process ends up blocked in, or
	// restless for one that never settles.
	call int
	// state is the one that it has there, as /proc shows it; 0 means S.
	state byte
	// aside is the system call that a second thread ends up blocked in, 0 where
	// there is none.
	aside  int
	parent int // member that forks it, or -1 for the storm's owner
	wakes  []wake
	// after are members that must be asleep before it may go on to its blocking
	// call; see builder.turn.
	after []int
}

const restless = -1

func (m *member) stateThere() byte {
	if m.state == 0 {
		return 'S'
	}
	return m.state
}

// direct is a process that the owner forks itself.
type direct struct {
	slot   int
	script label
	// in and out number the pipes whose read and write end it inherits, from
	// 0; -1 for none. The owner opens a pipe for its first user and closes
	// each end after its last, so it holds few at any time.
	in, out int
	// The rest is for the script: the first member that it forks and how
	// many, a second one, and a number that the topology gives its own sense.
	next, count, extra, number int
}

// Offsets in the scratch page, which every process gets a private copy of.
const (
	scratchPipe    = 0
	scratchPoll    = 16
	scratchEvent   = 32
	scratchBuffer  = 64
	scratchRobust  = 128
	scratchAddress = 192 // a socket's address
	scratchLength  = 320 // its length
	scratchMessage = 384 // msghdr and its iovec
	scratchControl = 512 // a control message
	scratchInfo    = 640 // siginfo_t, 128 bytes
	scratchStruct  = 1024
)

// builder turns a topology into members, scripts and direct forks.
type builder struct {
	*assembler
	opts    Options
	scratch uintptr
	comms   map[string]uintptr
	members []member
	direct  []direct
	pipes   int
	fifos   bool // the owner opens FIFOs, not pipes
	groups  int  // of wakes of which one happens
	// blocked is the call that the last script ends in, and state what its
	// process is in there.
	blocked int
	state   byte
	// asideCall is the same of its second thread.
	asideCall int
}

// member plans one process, which runs when all of waitsOn have died, and
// returns its number.
func (b *builder) member(comm, role string, call, parent int, waitsOn ...int) int {
	m := member{comm: comm, role: role, call: call, parent: parent}
	if len(waitsOn) > 0 {
		m.wakes = []wake{{deaths: waitsOn}}
	}
	b.members = append(b.members, m)
	return len(b.members) - 1
}

func (b *builder) bear(d direct) { b.direct = append(b.direct, d) }

func (b *builder) comm(name string) uintptr {
	if _, ok := b.comms[name]; !ok {
		b.comms[name] = b.constant(append([]byte(name), 0))
	}
	return b.comms[name]
}

// prologue gives a process its name, its descriptors and its memory. A process forks its
// children first: memory shared by copy-on-write is nobody's to swap out.
func (b *builder) prologue(comm string) {
	b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_NAME), imm(b.comm(comm)))
	if b.opts.ParentDeathSignal != 0 {
		b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_PDEATHSIG), imm(int(b.opts.ParentDeathSignal)))
	}
	if b.opts.RobustList {
		// An empty list points at itself. The store also makes the page the
		// process's own, so that exit_robust_list has something to page in.
		head := b.scratch + scratchRobust
		b.store64(imm(head), 0, imm(head))
		b.must(regTemp, unix.SYS_SET_ROBUST_LIST, imm(head), imm(24))
	}
	for n := 0; n < b.opts.Descriptors; n += 2 {
		b.must(regTemp, unix.SYS_PIPE2, imm(b.scratch+scratchPipe), imm(0))
	}
	if n := b.opts.MemBytes; n > 0 {
		b.must(regMem, unix.SYS_MMAP, imm(0), imm(n), imm(unix.PROT_READ|unix.PROT_WRITE),
			imm(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS), imm(^uintptr(0)), imm(0))
		// A huge page swaps as a whole or not at all; count small ones.
		b.try(regTemp, unix.SYS_MADVISE, reg(regMem), imm(n), imm(unix.MADV_NOHUGEPAGE))
		b.store64(reg(regSlot), slotMem, reg(regMem))
		b.emit(opFill, regTemp, 0, reg(regMem), imm(n))
	}
}

// block marks the process ready, blocks in a system call, and marks it woken
// as its first act afterwards. Then it touches what it filled and stays: what
// a process does once awake is not the storm's subject, and a storm whose
// members exited would have no survivors to look at.
func (b *builder) block(number uintptr, args ...arg) {
	b.ready(number)
	b.try(regTemp, number, args...)
	b.awake()
}

// blockAside is block for a second thread. It says nothing of being ready: its
// leader does, and the storm looks at both.
func (b *builder) blockAside(number uintptr, args ...arg) {
	b.asideCall = int(number)
	b.try(regTemp, number, args...)
	b.awake()
}

// ready marks the process ready to block in a system call.
func (b *builder) ready(number uintptr) {
	b.blocked = int(number)
	b.store(reg(regSlot), slotReady, imm(1))
}

// awake is what a process does when its blocking call has returned.
func (b *builder) awake() {
	b.store(reg(regSlot), slotWoken, imm(1))
	b.store64(reg(regSlot), slotValue, reg(regTemp))
	if b.opts.MemBytes > 0 {
		b.emit(opSum, regTemp, 0, reg(regMem), imm(b.opts.MemBytes))
	}
	b.forever()
}

// blockInVfork forks a child and blocks until that has ended. Unlike vfork's own,
// the child has memory of its own.
func (b *builder) blockInVfork(child label, slot arg) {
	b.state = 'D'
	b.ready(unix.SYS_CLONE)
	b.emit(opFork, regTemp, 0, at(child), slot, imm(unix.CLONE_VFORK|int(unix.SIGCHLD)))
	b.awake()
}

// thread starts a thread that runs what body emits, which must not end.
func (b *builder) thread(body func()) { b.clone(threadFlags, body) }

// forkSharing forks a child that shares this process's memory.
func (b *builder) forkSharing(child label, slot int) {
	b.clone(unix.CLONE_VM|int(unix.SIGCHLD), func() {
		b.become(child, slot)
	})
}

// become has a process that has just been made be the member with a slot.
func (b *builder) become(child label, slot int) {
	b.add(regSlot, reg(slot), imm(0))
	b.must(regPID, unix.SYS_GETPID)
	b.store(reg(regSlot), slotPID, reg(regPID))
	b.jump(child)
}

// clone makes a task with memory in common, which runs what body emits.
func (b *builder) clone(flags int, body func()) {
	start, past := b.newLabel(), b.newLabel()
	b.must(regPtr, unix.SYS_MMAP, imm(0), imm(threadStack), imm(unix.PROT_READ|unix.PROT_WRITE),
		imm(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS), imm(^uintptr(0)), imm(0))
	b.emit(opThread, regTemp, 0, at(start), reg(regPtr), imm(threadStack), imm(flags))
	b.jump(past)
	b.place(start)
	body()
	b.place(past)
}

const threadStack = 64 << 10

// turn waits until those that this process comes after are asleep.
func (b *builder) turn() {
	check, wait, done := b.newLabel(), b.newLabel(), b.newLabel()
	b.add(regPtr, reg(regSlot), imm(slotTurn))
	b.place(check)
	b.load(regTemp, reg(regPtr), 0)
	b.jumpZero(regTemp, wait)
	b.jump(done)
	b.place(wait)
	b.try(regTemp, unix.SYS_FUTEX, reg(regPtr), imm(futexWait), imm(0), imm(0))
	b.jump(check)
	b.place(done)
}

// forever sleeps until killed.
func (b *builder) forever() {
	again := b.here()
	b.try(regTemp, unix.SYS_PPOLL)
	b.jump(again)
}

// compute never sleeps.
func (b *builder) compute() {
	b.blocked = restless
	b.store(reg(regSlot), slotReady, imm(1))
	again := b.here()
	b.jump(again)
}

// forkMany forks one child for each of count slots from next on.
func (b *builder) forkMany(child label, next, count int) {
	done, again := b.newLabel(), b.here()
	b.jumpZero(count, done)
	b.fork(child, reg(next))
	b.add(next, reg(next), imm(slotSize))
	b.add(count, reg(count), imm(^uintptr(0)))
	b.jump(again)
	b.place(done)
}

// arenaSize is ample for scripts, and more than fits into any pipe or socket:
// see builder.send.
const arenaSize = 1 << 20

// arenas are the mappings that a storm's processes share with their owner (the
// scripts) or copy when they write (scratch memory).
type arenas struct {
	file             *os.File // of the scripts
	scripts, scratch []byte
}

func newArenas() (*arenas, error) {
	fd, err := unix.MemfdCreate("wakestorm-scripts", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memory for the scripts: %w", err)
	}
	a := &arenas{file: os.NewFile(uintptr(fd), "memfd:wakestorm-scripts")}
	if err := a.file.Truncate(arenaSize); err != nil {
		return nil, errors.Join(fmt.Errorf("size the scripts: %w", err), a.file.Close())
	}
	// Shared, because fork copies no page tables for it.
	if a.scripts, err = mapNear(scriptsPlace, fd, arenaSize, unix.MAP_SHARED); err != nil {
		return nil, errors.Join(fmt.Errorf("map the scripts: %w", err), a.file.Close())
	}
	if a.scratch, err = mapNear(scratchPlace, -1, scratchSize, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, errors.Join(fmt.Errorf("map the scratch memory: %w", err), unmapNear(a.scripts), a.file.Close())
	}
	return a, nil
}

// seal ends the writing of scripts. Call it before the first fork.
func (a *arenas) seal() error { return mapForReading(a.file, a.scripts) }

func (a *arenas) close() {
	a.file.Close()
	unmapNear(a.scripts)
	unmapNear(a.scratch)
}

// mapForReading maps f anew where mem maps it, from a descriptor that cannot write:
// then it is no memory that can be written, and is shared with nobody in that sense.
func mapForReading(f *os.File, mem []byte) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s for reading: %w", f.Name(), err)
	}
	defer unix.Close(fd)
	if _, err := unix.MmapPtr(fd, 0, unsafe.Pointer(&mem[0]), uintptr(len(mem)), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return fmt.Errorf("map %s for reading: %w", f.Name(), err)
	}
	return nil
}

func (a *arenas) builder(opts Options) *builder {
	return &builder{
		assembler: newAssembler(a.scripts),
		opts:      opts,
		scratch:   uintptr(unsafe.Pointer(&a.scratch[0])),
		comms:     map[string]uintptr{},
	}
}
