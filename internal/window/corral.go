package window

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

const (
	// guardianPatience is how long a guardian may take to start: it is this
	// program, and its pages are in memory.
	guardianPatience = 20 * time.Second
	// closeLimit bounds the time in which the corral is closed. The killer has a
	// processor to itself meanwhile, and the kernel takes it away after 950 ms
	// (kernel.sched_rt_runtime_us).
	closeLimit = 300 * time.Millisecond
	// sweeps bounds how often close looks for newcomers: those that are left out
	// may start threads for ever.
	sweeps = 16
)

// corral confines every thread of the kill set to the one CPU on which the killer
// runs as SCHED_FIFO: none of them runs until the killer yields.
type corral struct {
	kernel     Kernel
	guardian   *guardian
	table      *table
	cpu        int // on which it is closed
	other      int // where it may move to, -1: nowhere
	sets       corralSets
	limit      time.Duration // for how long the kernel leaves it that CPU, at most what it wants
	otherTaken bool          // by real-time threads
	here       int           // the CPU that it is on, once it does not move any more
	moves      int           // until then
	own        affinity.Set  // the killer's, before

	threads []corralled
	next    int // the first that was not tried yet
	known   map[threadKey]bool
	births  uint64
	seenNS  uint64

	closed  bool // nobody of the kill set runs outside
	leftOut map[waitgraph.KernelIdentity]unix.Errno
	failed  error // there is no corral after all
}

// corralled is a thread, and what to give it back.
type corralled struct {
	affinity.Thread
	inside bool
}

type threadKey struct {
	process waitgraph.KernelIdentity
	tid     int32
}

func (t *corralled) key() threadKey { return threadKey{t.Process, t.TID} }

// prepareCorral lists the threads of the kill set and writes them into the
// guardian's table. Nothing is changed yet.
func prepareCorral(ctx context.Context, k Kernel, g *guardian) (*corral, error) {
	if err := g.awaitReady(ctx, guardianPatience); err != nil {
		return nil, err
	}
	c := &corral{kernel: k, guardian: g, known: map[threadKey]bool{}, leftOut: map[waitgraph.KernelIdentity]unix.Errno{}}
	var err error
	if c.own, err = affinity.Get(0); err != nil {
		return nil, err
	}
	c.births, c.seenNS = k.Births(), bootTimeNS()
	threads, err := k.Threads()
	if err != nil {
		return nil, err
	}
	if err := visible(threads); err != nil {
		return nil, err
	}
	if c.cpu, err = chooseCPU(c.own, threads); err != nil {
		return nil, err
	}
	c.here, c.other = c.cpu, -1
	if others := c.own.Without(c.cpu); others.Count() > 0 {
		if c.other, err = chooseCPU(others, threads); err != nil {
			return nil, err
		}
	}
	c.sets = setsOf(c.cpu, c.other)
	// Room for those that are born until the corral is closed.
	capacity := len(threads) + len(threads)/4 + 1024
	if g.table, err = newTable(g.memfd, capacity, c.cpu, c.other, c.seenNS); err != nil {
		return nil, err
	}
	c.table = g.table
	c.threads = make([]corralled, 0, capacity)
	for i := range threads {
		c.add(&threads[i], &threads[i].Wanted)
	}
	return c, nil
}

// visible returns an error where /proc hides processes (hidepid=) that are in the kill
// set: who the guardian does not see it does not let out. From root nothing is hidden.
func visible(threads []affinity.Thread) error {
	if unix.Geteuid() == 0 {
		return nil
	}
	for i := range threads {
		t := &threads[i]
		if t.TID != t.PID {
			continue
		}
		_, err := readStat(int(t.PID))
		if err == nil {
			continue
		}
		if _, gone := affinity.Get(int(t.PID)); gone == nil {
			return fmt.Errorf("process %d is hidden in /proc (hidepid; CAP_SYS_PTRACE sees all): %w", t.PID, err)
		}
	}
	return nil
}

// chooseCPU takes the CPU of the killer's own that most of the threads may run
// on, the one it is on if that is as good as any.
func chooseCPU(own affinity.Set, threads []affinity.Thread) (int, error) {
	here, err := affinity.CPU()
	if err != nil {
		return 0, err
	}
	votes := make(map[affinity.Set]int)
	for i := range threads {
		votes[threads[i].Allowed]++
	}
	best, most := -1, -1
	own.Each(func(cpu int) {
		n := 0
		for allowed, count := range votes {
			if allowed.Has(cpu) {
				n += count
			}
		}
		if n > most || n == most && cpu == here {
			best, most = cpu, n
		}
	})
	if best < 0 {
		return 0, fmt.Errorf("this machine has more than %d CPUs", affinity.MaxCPUs)
	}
	return best, nil
}

// add records a thread before it is touched.
func (c *corral) add(t *affinity.Thread, wanted *affinity.Set) bool {
	if !c.table.add(t, wanted, c.seenNS) {
		return false
	}
	thread := corralled{Thread: *t}
	thread.Wanted = *wanted
	c.threads = append(c.threads, thread)
	c.known[thread.key()] = true
	return true
}

// priority is what the killer needs to run before every thread of the kill set
// that has a real-time priority itself.
func (c *corral) priority() uint32 {
	p := uint32(fifoPriority)
	for i := range c.threads {
		if rt := c.threads[i].RTPriority; rt >= p {
			p = min(rt+1, maxPriority)
		}
	}
	return p
}

// close puts the killer and all threads on the CPU, and then sweeps for threads
// that were started meanwhile, until there are none. From then on those that are
// started are born inside. The calling thread is SCHED_FIFO since began.
func (c *corral) close(began time.Time) error {
	if errno := affinity.Apply(0, &c.sets[0]); errno != 0 {
		return fmt.Errorf("move to CPU %d: %w", c.cpu, errno)
	}
	for range sweeps {
		for ; c.next < len(c.threads); c.next++ {
			c.confine(c.next)
			if limit := min(closeLimit, c.limit); c.next%256 == 0 && time.Since(began) > limit {
				return fmt.Errorf("%d threads are too many to confine in %v", len(c.threads), limit)
			}
		}
		births := c.kernel.Births()
		if births == c.births {
			c.closed = true
			return nil
		}
		c.births, c.seenNS = births, bootTimeNS()
		if err := c.newcomers(); err != nil {
			return err
		}
	}
	return nil
}

// newcomers adds the threads that are not known yet.
func (c *corral) newcomers() error {
	threads, err := c.kernel.Threads()
	if err != nil {
		return err
	}
	for i := range threads {
		t := &threads[i]
		if c.known[threadKey{t.Process, t.TID}] {
			continue
		}
		wanted := c.inherited(t)
		if !c.add(t, &wanted) {
			return errors.New("the targets start threads faster than they can be confined")
		}
	}
	return nil
}

// corralSets are the CPU on which a corral is closed, and the one that it may move to;
// twice the same where there is none.
type corralSets [2]affinity.Set

func setsOf(cpu, other int) corralSets {
	if other < 0 {
		other = cpu
	}
	return corralSets{affinity.Only(cpu), affinity.Only(other)}
}

// has reports whether a thread that may run there and nowhere else was put
// there, or is the child of one who was. Where the corral has moved in the middle of
// a fork, that is where it was.
func (s *corralSets) has(allowed *affinity.Set) bool {
	return *allowed == s[0] || *allowed == s[1]
}

// inherited is what a thread that was born since should have instead of the
// corral: what its process has, or its group, or its session.
func (c *corral) inherited(t *affinity.Thread) affinity.Set {
	if !c.sets.has(&t.Allowed) {
		return t.Wanted
	}
	kin := []func(*affinity.Thread) bool{
		func(k *affinity.Thread) bool { return k.Process == t.Process },
		func(k *affinity.Thread) bool { return k.PGID == t.PGID && t.PGID != 0 },
		func(k *affinity.Thread) bool { return k.SID == t.SID && t.SID != 0 },
	}
	for _, is := range kin {
		for i := range c.threads {
			if is(&c.threads[i].Thread) {
				return c.threads[i].Wanted
			}
		}
	}
	return t.Wanted
}

// confine puts one thread inside. Where that cannot be, its whole process is left
// out.
func (c *corral) confine(i int) {
	t := &c.threads[i]
	if _, out := c.leftOut[t.Process]; out {
		return
	}
	switch errno := affinity.Apply(t.TID, &c.sets[0]); errno {
	case 0:
		t.inside = true
	case unix.ESRCH:
	default:
		c.leftOut[t.Process] = errno
		for j := range c.threads[:i] {
			if c.threads[j].Process == t.Process {
				c.restore(j)
			}
		}
	}
}

func (c *corral) restore(i int) (err error) {
	t := &c.threads[i]
	if !t.inside {
		return nil
	}
	t.inside = false
	switch errno := affinity.Apply(t.TID, &t.Wanted); errno {
	case 0, unix.ESRCH:
		return nil
	default:
		return fmt.Errorf("restore the affinity of thread %d: %w", t.TID, errno)
	}
}

// leave takes the killer to another CPU, where it can: exits begin at once.
func (c *corral) leave() {
	elsewhere := c.own.Without(c.here)
	if c.otherTaken { // who has that might not let it go on
		elsewhere = elsewhere.Without(c.other)
	}
	if elsewhere != (affinity.Set{}) {
		affinity.Apply(0, &elsewhere)
	}
}

// open gives every thread back the CPUs that it had, so that exits run on all of
// them, and the killer, too.
func (c *corral) open() error {
	var first error
	// The last is the last in the queue of its CPU.
	for i := len(c.threads) - 1; i >= 0; i-- {
		if err := c.restore(i); err != nil && first == nil {
			first = err
		}
	}
	if errno := affinity.Apply(0, &c.own); errno != 0 && first == nil {
		first = fmt.Errorf("restore the killer's own affinity: %w", errno)
	}
	return first
}

// stragglers lets out the living who were born inside and were not killed after
// all.
func (c *corral) stragglers() error {
	threads, err := c.kernel.Threads()
	if err != nil {
		return err
	}
	for i := range threads {
		t := &threads[i]
		if !c.sets.has(&t.Allowed) || c.known[threadKey{t.Process, t.TID}] {
			continue
		}
		if wanted := c.inherited(t); wanted != t.Wanted {
			affinity.Apply(t.TID, &wanted) // an error is a thread that has died
		}
	}
	return nil
}

// holds reports whether there is a corral at all.
func (c *corral) holds() bool { return c != nil && c.failed == nil }

// outcome says who is inside, and who of the kill set is not.
func (c *corral) outcome(victims []waitgraph.Process) *Corral {
	if !c.holds() {
		return nil
	}
	out := &Corral{CPU: c.here, Moves: c.moves, Closed: c.closed}
	for i := range c.threads {
		if c.threads[i].inside {
			out.Threads++
		}
	}
	for i := range victims {
		if errno, ok := c.leftOut[victims[i].KernelIdentity()]; ok {
			why := fmt.Errorf("confine it: %w", errno)
			if errno == unix.EINVAL {
				why = fmt.Errorf("a cpuset forbids it CPU %d", c.cpu)
			}
			out.LeftOut = append(out.LeftOut, Failure{victims[i], why})
		}
	}
	return out
}
