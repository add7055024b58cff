package window

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

const (
	// fifoLimit is how long the killer may have a processor to itself, up to the end
	// of the early reap: the kernel takes it away after 950 ms
	// (kernel.sched_rt_runtime_us; from Linux 6.12 on the fair server). See awaitTime.
	fifoLimit = 800 * time.Millisecond
	// sharedLimit bounds the look at memory maps, which takes a second for thousands
	// of processes, and longer on a machine that is busy.
	sharedLimit = 5 * time.Second
	reapers     = 8
)

// Reap says whose memory was freed before its process could run again. A dying
// process reads its own memory, which costs a swap-in where it is swapped out.
type Reap struct {
	Swapped int // processes with memory on swap
	Reaped  int // of those, before the corral opened
	// LeftOut were not even tried.
	LeftOut []Failure
}

// reaper frees the memory of the killed while they are in the corral:
// process_mrelease(2), Linux 5.15. The killer and threads on other CPUs do it
// together. The call sleeps where the process holds the lock of its own memory
// map: then the killer must not make it, others would run on its processor.
//
// Each process that is left costs a page, whatever its size: the smallest come
// first.
type reaper struct {
	fds     []int // pidfds: those that slept, who has least on swap first; then the rest
	asleep  int   // how many slept
	helpers []int // their thread ids
	early   int   // how many of them begin with the killer; the others when it waits for them
	working sync.WaitGroup
	start   int // eventfd
	cpus    affinity.Set
	procs   int    // GOMAXPROCS before
	mover   *mover // nil: the corral stays where it is

	next, done, reaped, stop uint32
	out                      Reap
}

// prepareReap finds who is to be reaped. It takes some time: nobody is confined
// yet.
func (r *run) prepareReap(ctx context.Context) (*reaper, error) {
	p := &reaper{start: -1}
	var swapped []*waitgraph.Process
	for i := range r.victims {
		if r.swapped[r.victims[i].KernelIdentity()] > 0 {
			swapped = append(swapped, &r.victims[i])
		}
	}
	p.out.Swapped = len(swapped)
	if len(swapped) == 0 || r.guardian == nil { // no corral, no early reap
		return p, nil
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_PROCESS_MRELEASE, ^uintptr(0), 0, 0); errno == unix.ENOSYS {
		return p, errors.New("process_mrelease(2) needs Linux 5.15 or later")
	}
	threads, err := r.kernel.Threads()
	if err != nil {
		return p, err
	}
	sharing, err := r.sharedMemory(ctx, swapped, threads)
	if err != nil {
		return p, err
	}
	awake := make(map[waitgraph.KernelIdentity]int)
	for i := range threads {
		if !threads[i].Asleep {
			awake[threads[i].Process] = 1
		}
	}
	slices.SortStableFunc(swapped, func(a, b *waitgraph.Process) int {
		a1, b1 := a.KernelIdentity(), b.KernelIdentity()
		return cmp.Or(cmp.Compare(awake[a1], awake[b1]), cmp.Compare(r.swapped[a1], r.swapped[b1]))
	})
	for _, victim := range swapped {
		k := victim.KernelIdentity()
		if why := sharing[k]; why != nil {
			p.out.LeftOut = append(p.out.LeftOut, Failure{*victim, why})
		} else if fd, ok := r.pidfds.get(victim); ok && fd >= 0 {
			p.fds = append(p.fds, fd)
			p.asleep += 1 - awake[k]
		}
	}
	return p, nil
}

// sharedMemory says which of the swapped may not be reaped, and why.
func (r *run) sharedMemory(ctx context.Context, swapped []*waitgraph.Process, threads []affinity.Thread) (map[waitgraph.KernelIdentity]error, error) {
	one := make(map[waitgraph.KernelIdentity]affinity.Thread, len(threads)) // of each process
	for i := range threads {
		one[threads[i].Process] = threads[i]
	}
	var candidates, rest []affinity.Thread
	for _, victim := range swapped {
		if t, ok := one[victim.KernelIdentity()]; ok {
			candidates = append(candidates, t)
			delete(one, victim.KernelIdentity())
		}
	}
	for _, t := range one {
		rest = append(rest, t)
	}
	ctx, cancel := context.WithTimeout(ctx, sharedLimit)
	defer cancel()
	return r.kernel.SharedMemory(ctx, candidates, rest)
}

// ready starts the helpers, on every CPU of the killer's own but one. On a machine
// with one the killer does it all. The memory is locked, so that they take no page
// faults either.
//
// One CPU is left to others for as long as the killer has work itself. Whoever wakes
// on the corral's CPU is put on an idle one: with no such CPU one waited there for as
// long as the killer reaped, SCHED_IDLE helpers or not (Linux 6.12).
func (p *reaper) ready(own affinity.Set, corralCPU int) error {
	p.cpus = own.Without(corralCPU)
	n := min(p.cpus.Count(), reapers, len(p.fds))
	if n == 0 {
		return nil
	}
	p.early = min(n, p.cpus.Count()-1)
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	p.start = fd
	// Each helper needs one of the Go runtime's processors beside those of the killer, the
	// mover and the lookout. Saying how many also keeps the runtime from stopping the world
	// when it finds that another number would do.
	p.procs = runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(p.procs, n+4))
	p.working.Add(n)
	started := make(chan int)
	for range n {
		go p.help(started)
	}
	for range n {
		if tid := <-started; tid != 0 {
			p.helpers = append(p.helpers, tid)
		}
	}
	return nil
}

// wants is how long the killer is going to have the corral's CPU at most.
func (p *reaper) wants() time.Duration {
	if len(p.fds) == 0 {
		return unreapedLimit
	}
	return fifoLimit
}

// prepareMoves lets the corral move while the killer reaps, whose priority is one
// more than this. It stays where there is no other CPU, no priority above, or a kernel
// with PREEMPT_RT.
func (p *reaper) prepareMoves(c *corral, priority uint32) error {
	if len(p.fds) == 0 || c.other < 0 || priority >= maxPriority || affinity.PreemptRT() {
		return nil
	}
	var err error
	p.mover, err = newMover(c, p.helpers, priority)
	if errors.Is(err, unix.EPERM) {
		return nil // nor may the killer, which says so
	}
	return err
}

// help is one helper, and tells its thread id, 0 if it cannot help. Its thread ends
// with it.
//
// No target is where it runs, but others are, and those whom the killer keeps from
// the corral's CPU: it is SCHED_IDLE, and everybody else runs before it.
func (p *reaper) help(started chan<- int) {
	defer p.working.Done()
	runtime.LockOSThread()
	idle := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	if affinity.Apply(0, &p.cpus) != 0 || unix.SchedSetAttr(0, &idle, 0) != nil {
		started <- 0
		return
	}
	started <- unix.Gettid()
	var one [8]byte
	for {
		if _, err := unix.Read(p.start, one[:]); err != unix.EINTR {
			break
		}
	}
	// Unlike the killer's, its calls may take their time: the Go runtime waits for nobody
	// who has told it of that.
	for i := p.take(len(p.fds)); i >= 0; i = p.take(len(p.fds)) {
		_, _, errno := unix.Syscall(unix.SYS_PROCESS_MRELEASE, uintptr(p.fds[i]), 0, 0)
		p.took(errno)
	}
}

// work reaps those before end until nobody is left, some time is over or it is
// told to stop. It reports whether somebody is left to whom it may come back.
//
//go:nosplit
func (p *reaper) work(end int, until uint64) bool {
	for clock() < until {
		i := p.take(end)
		if i < 0 {
			return false
		}
		_, _, errno := unix.RawSyscall(unix.SYS_PROCESS_MRELEASE, uintptr(p.fds[i]), 0, 0)
		p.took(errno)
	}
	return atomic.LoadUint32(&p.stop) == 0 && int(atomic.LoadUint32(&p.next)) < end
}

// take returns which one to reap, -1 where there is none before end, or it is told
// to stop.
//
//go:nosplit
func (p *reaper) take(end int) int {
	for atomic.LoadUint32(&p.stop) == 0 {
		i := atomic.LoadUint32(&p.next)
		if int(i) >= end {
			break
		}
		if atomic.CompareAndSwapUint32(&p.next, i, i+1) {
			return int(i)
		}
	}
	return -1
}

//go:nosplit
func (p *reaper) took(errno unix.Errno) {
	if errno == 0 {
		atomic.AddUint32(&p.reaped, 1)
	}
	atomic.AddUint32(&p.done, 1)
}

// run reaps until the deadline, on CLOCK_MONOTONIC. For what only the helpers do
// the killer waits without giving its processor away.
//
//go:nosplit
func (p *reaper) run(deadline uint64) {
	if len(p.fds) == 0 {
		return
	}
	own := len(p.fds) // that the killer may reap itself
	if len(p.helpers) > 0 {
		own = p.asleep
	}
	p.wake(p.early)
	for p.work(own, min(deadline, p.mover.due())) && clock() < deadline {
		p.mover.move()
	}
	p.favour()
	for atomic.LoadUint32(&p.done) < uint32(len(p.fds)) && clock() < deadline {
		p.mover.move()
	}
	atomic.StoreUint32(&p.stop, 1)
}

// favour has all helpers work, before all ordinary threads: the killer waits for
// them.
//
//go:nosplit
func (p *reaper) favour() {
	if atomic.LoadUint32(&p.done) == uint32(len(p.fds)) {
		return
	}
	for _, tid := range p.helpers {
		unix.RawSyscall(unix.SYS_SCHED_SETATTR, uintptr(tid), uintptr(unsafe.Pointer(&favoured)), 0)
	}
	p.wake(len(p.helpers) - p.early)
}

var favoured = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}

// wake lets n helpers go.
//
//go:nosplit
func (p *reaper) wake(n int) {
	if n > 0 {
		notify(p.start, uint64(n))
	}
}

// end ends the helpers and returns what was done. One that hangs in the kernel is
// not waited for.
func (p *reaper) end() Reap {
	atomic.StoreUint32(&p.stop, 1)
	p.mover.end()
	if p.start >= 0 {
		p.wake(len(p.helpers)) // once too often does no harm
		runtime.GOMAXPROCS(p.procs)
		go func() {
			p.working.Wait()
			unix.Close(p.start)
		}()
	}
	p.out.Reaped = int(atomic.LoadUint32(&p.reaped))
	return p.out
}
