package window

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
)

const (
	// turn is how long the corral stays on one CPU, where a move takes no more than a
	// fifth of that. Whoever waits for that CPU and finds no other waits as long as
	// that, a move, and the call of process_mrelease that comes before it.
	turn = 20 * time.Millisecond
	// restPerMove is how many times as long as a move the corral stays at least: on the
	// way it has both CPUs.
	restPerMove = 5
	// standInPatience is how long the killer waits for its stand-in to come on. A task
	// of a higher real-time priority may have the CPU.
	standInPatience = 50 * time.Millisecond
)

// mover takes the corral from one CPU to another and back while the killer reaps.
// The kernel finds those who wait for the corral's CPU only late, or not at all: its
// load balancer looks at 32 threads of a run queue, and those of the kill set, which
// may not go, are before them (can_migrate_task, Linux 5.10 … 7.2).
//
// No target may run on the way. So the new CPU is taken first, by a thread that
// stands in for the killer there; then the threads move, then the killer, which
// goes before its stand-in. Until the next move that one is runnable, and does not
// run.
//
// Nobody is moved who runs: the killer would sleep until the kernel has stopped him,
// and leave its CPU to the targets. It would also for one who was preempted in the
// kernel where he must not be moved (migrate_disable, Linux 5.11): in a BPF program, of
// a kernel that can be preempted there, or wherever one with PREEMPT_RT holds a lock.
// There the corral stays.
type mover struct {
	corral  *corral
	helpers []int
	cpus    [2]int
	others  [2]affinity.Set // the killer's own without that one: for the helpers
	at      int             // which of the two the corral is on
	next    uint64          // when it is to move, on CLOCK_MONOTONIC
	moves   int

	// Of the stand-in:
	tid           int32
	start         int // eventfd: it sleeps until it is called
	ended         chan struct{}
	failed        error  // why it does not serve; once it has ended
	want          int32  // the CPU that it is to hold, and 1; 0: none
	here          int32  // the same of the one that it holds; it writes that itself
	serving, stop uint32 // whether it serves; whether it is to end
}

const never = ^uint64(0)

// newMover starts the stand-in. The killer must have a higher priority than that one.
//
// The stand-in sleeps until it is called. It has no use for the Go scheduler, whose
// threads may have to wait for the killer's CPU: it keeps its place there while it
// sleeps, and the world cannot be stopped until it ends. It serves before the killer has
// a CPU for itself: on the way there it may need the scheduler.
//
// Its thread ends with its goroutine, unless it is the process's first, which the Go
// runtime keeps.
func newMover(c *corral, helpers []int, priority uint32) (*mover, error) {
	start, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	m := &mover{corral: c, helpers: helpers, cpus: [2]int{c.cpu, c.other}, start: start, ended: make(chan struct{})}
	for i, cpu := range m.cpus {
		m.others[i] = c.own.Without(cpu)
	}
	go m.runStandIn(priority)
	for atomic.LoadUint32(&m.serving) == 0 {
		select {
		case <-m.ended:
			m.end()
			return nil, m.failed
		case <-time.After(100 * time.Microsecond):
		}
	}
	return m, nil
}

func (m *mover) runStandIn(priority uint32) {
	defer close(m.ended)
	runtime.LockOSThread()
	blockSignals()
	atomic.StoreInt32(&m.tid, int32(unix.Gettid()))
	// The killer's first: there may be a limit (RLIMIT_RTPRIO).
	for _, p := range []uint32{priority + 1, priority} {
		fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: p}
		if err := unix.SchedSetAttr(0, &fifo, 0); err != nil {
			m.failed = fmt.Errorf("SCHED_FIFO: %w", err)
			return
		}
	}
	ordinary := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	defer affinity.Apply(0, &m.corral.own)
	defer unix.SchedSetAttr(0, &ordinary, 0)
	// It waits where nobody of a higher priority is: there the killer will be.
	if errno := affinity.Apply(0, &m.corral.sets[0]); errno != 0 {
		m.failed = fmt.Errorf("CPU %d: %w", m.cpus[0], errno)
		return
	}
	m.serve()
}

// serve takes CPUs until it is told to stop.
//
//go:nosplit
func (m *mover) serve() {
	atomic.StoreUint32(&m.serving, 1)
	for atomic.LoadUint32(&m.stop) == 0 {
		var b [8]byte
		unix.RawSyscall(unix.SYS_READ, uintptr(m.start), uintptr(unsafe.Pointer(&b)), uintptr(len(b)))
		m.hold()
	}
}

// hold has the CPU as long as that is wanted. A mismatch may mean that the thread was
// moved after it had asked where it is: it asks again.
//
//go:nosplit
func (m *mover) hold() {
	for strikes := 0; strikes < 2 && atomic.LoadUint32(&m.stop) == 0; strikes++ {
		var cpu uint32
		unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
		if atomic.LoadInt32(&m.want) == int32(cpu)+1 {
			atomic.StoreInt32(&m.here, int32(cpu)+1)
			strikes = -1
		}
	}
}

// begin says that the corral is closed about now, and when it is to move first.
func (m *mover) begin(now uint64) {
	if m != nil && m.next != never {
		m.next = now + uint64(turn)
	}
}

// due is when the corral is to move, on CLOCK_MONOTONIC.
//
//go:nosplit
func (m *mover) due() uint64 {
	if m == nil {
		return never
	}
	return m.next
}

// move takes the corral to the other CPU when that is due, unless the stand-in cannot
// have it for now. It is the last time where somebody's cpusets have changed meanwhile.
//
//go:nosplit
func (m *mover) move() {
	began := clock()
	if began < m.due() {
		return
	}
	came := m.send()
	went := came && m.carryAll(1-m.at)
	now := clock()
	m.next = now + max(uint64(turn), restPerMove*(now-began))
	switch {
	case went:
		m.at = 1 - m.at
		m.moves++
		return
	case came:
		m.carryAll(m.at)
		m.next = never
	}
	atomic.StoreInt32(&m.want, 0)
}

// send has the stand-in take the other CPU, and reports whether it did.
//
//go:nosplit
func (m *mover) send() bool {
	there := int32(m.cpus[1-m.at]) + 1
	atomic.StoreInt32(&m.here, 0)
	atomic.StoreInt32(&m.want, there)
	affinity.Apply(m.tid, &m.corral.sets[1-m.at])
	notify(m.start, 1) // where it has never run, or was given up
	give := clock() + uint64(standInPatience)
	for atomic.LoadInt32(&m.here) != there {
		if clock() > give {
			return false
		}
	}
	return true
}

// carryAll takes the helpers out of the way, and the threads of the corral and then the
// killer to a CPU. It reports false where one of them may not be there; on the way back
// it takes the others.
//
//go:nosplit
func (m *mover) carryAll(to int) bool {
	for _, tid := range m.helpers {
		affinity.Apply(int32(tid), &m.others[to])
	}
	for i := range m.corral.threads {
		if t := &m.corral.threads[i]; t.inside {
			if errno := affinity.Apply(t.TID, &m.corral.sets[to]); errno != 0 && errno != unix.ESRCH && to != m.at {
				return false
			}
		}
	}
	return affinity.Apply(0, &m.corral.sets[to]) == 0
}

// notify adds to an eventfd, and wakes who waits for it.
//
//go:nosplit
func notify(eventfd int, count uint64) {
	unix.RawSyscall(unix.SYS_WRITE, uintptr(eventfd), uintptr(unsafe.Pointer(&count)), 8)
}

// settle says that the corral stays where it is now. The stand-in, asleep or not, ends
// as soon as it gets a CPU.
//
//go:nosplit
func (m *mover) settle() {
	if m == nil {
		return
	}
	atomic.StoreUint32(&m.stop, 1)
	notify(m.start, 1)
	m.corral.here, m.corral.moves = m.cpus[m.at], m.moves
}

// end ends the stand-in.
func (m *mover) end() {
	if m == nil {
		return
	}
	m.settle()
	if tid := atomic.LoadInt32(&m.tid); tid != 0 {
		affinity.Apply(tid, &m.corral.own) // it may have waited in vain for a CPU
	}
	<-m.ended
	unix.Close(m.start)
}
