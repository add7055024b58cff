package window

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shot is the window itself, from the store that opens it to the last signal,
// with everything that it needs. Nothing in it allocates, faults or lets the Go
// scheduler in: it consists of raw system calls in functions without stack checks,
// and the thread's signals are blocked, that of the runtime's preemption among
// them.
type shot struct {
	engine Engine
	// In memory shared with the kernel side, CLOCK_MONOTONIC; see [Kernel].
	opened, delivered, released *uint64

	batch     unsafe.Pointer // bpf(2)'s attributes
	batchSize uintptr
	fds       []int // pidfds in plan order, -1: gone
	errs      []unix.Errno
	cgroup    int // descriptor of cgroup.kill
	failed    unix.Errno

	beganNS, endedNS uint64
	before, after    unix.Rusage
}

var one = [1]byte{'1'}

// fire opens the window and delivers.
//
//go:nosplit
func (s *shot) fire() {
	usage(&s.before)
	s.beganNS = clock()
	switch s.engine {
	case EngineBatch:
		const bpfProgTestRun = 10 // it opens the window itself
		_, _, s.failed = unix.RawSyscall(unix.SYS_BPF, bpfProgTestRun, uintptr(s.batch), s.batchSize)
	case EngineCgroup:
		atomic.StoreUint64(s.opened, clock())
		_, _, s.failed = unix.RawSyscall(unix.SYS_WRITE, uintptr(s.cgroup), uintptr(unsafe.Pointer(&one)), 1)
		atomic.StoreUint64(s.delivered, clock())
	default:
		atomic.StoreUint64(s.opened, clock())
		for i, fd := range s.fds {
			s.errs[i] = pidfdKill(fd)
		}
		atomic.StoreUint64(s.delivered, clock())
	}
	s.endedNS = clock()
	usage(&s.after)
}

// clock is CLOCK_MONOTONIC, that of bpf_ktime_get_ns().
//
//go:nosplit
func clock() uint64 {
	var ts unix.Timespec
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	return uint64(ts.Sec)*1e9 + uint64(ts.Nsec)
}

// usage reads the thread's page faults and context switches.
//
//go:nosplit
func usage(u *unix.Rusage) {
	unix.RawSyscall(unix.SYS_GETRUSAGE, unix.RUSAGE_THREAD, uintptr(unsafe.Pointer(u)), 0)
}

// blockSignals keeps every signal from the calling thread, and returns what was
// blocked before.
func blockSignals() (old uint64) {
	all := ^uint64(0)
	setSignals(&all, &old)
	return old
}

func setSignals(set, old *uint64) {
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}
