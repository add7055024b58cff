// Package storm stages real processes that block on each other in known ways,
// so that a kill can be measured against the truth.
//
// Each process says in shared memory, and nowhere else, that it was about to
// block and that it ran user code after its blocking call returned. The
// processes are raw forks of the calling one that run small scripts of system
// calls: no exec, no Go runtime, and nothing of their parent's memory that they do not
// need, which leaves 75 KiB of memory each, the kernel's own with it. (In a binary that
// links libc all of it stays: build with CGO_ENABLED=0. Coverage counters go with it:
// go test -cover ends them.)
//
// Linux 5.9 or later (close_range). The caller's /proc must be that of its pid
// namespace.
package storm

import (
	"context"
	"errors"
	"fmt"
	"os"
	ossignal "os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/procfs"
)

// Options say what to stage. Topology and Processes are required.
type Options struct {
	Topology  string // a name from Topologies
	Processes int    // in the topology's Unit; at least 1
	// MemBytes is the incompressible private memory that each process fills
	// before it blocks and reads back after it woke; rounded up to a page.
	MemBytes int64
	// Descriptors is how many more descriptors each process opens before it
	// blocks: both ends of pipes of its own, which nobody waits on. Rounded up to
	// an even number.
	Descriptors int
	// Marks is the file that holds the marks, created or truncated; see
	// ReadMarks. Empty means memory that only this process can read.
	Marks string
	// IgnoreChildren sets SIGCHLD to SIG_IGN in the calling process while the
	// storm lives: its members are reaped by the kernel and their deaths do
	// not wake the caller. It holds for all of the caller's children: waiting
	// for one, as os/exec does, then fails with ECHILD.
	IgnoreChildren bool
	// RobustList registers an empty robust futex list, as glibc does for every
	// thread: dying then reads user memory.
	RobustList bool
	// ParentDeathSignal is PR_SET_PDEATHSIG of every process. It is a wake
	// channel of its own; 0 for none.
	ParentDeathSignal syscall.Signal
	// ForkLimit bounds the forks of each forker; 0 means 1,000,000.
	ForkLimit int
}

// Proc is one process of a storm. Those that come and go under a forker are
// not listed.
type Proc struct {
	PID        int
	StartTicks uint64 // /proc/PID/stat's start time, known once WaitReady has returned
	Comm       string
	Role       string // its part in the topology
	Parent     int    // pid
	// Wakes are the ways in which deaths of other members wake it: any of them.
	Wakes []Wake
	// WaitsOn are the pids that these are about, each once.
	WaitsOn []int
}

// Storm is a set of staged processes. Its methods may be called from one
// goroutine at a time. The caller must Stop it: nothing else ends the processes,
// short of the death of their pid namespace.
type Storm struct {
	opts      Options
	topology  *Topology
	members   []member
	marks     *marks
	arenas    *arenas
	direct    map[int]bool // slots forked by this process and not reaped yet
	starts    []uint64     // by slot, 0 while unknown
	asleep    []bool       // by slot, as WaitReady saw it
	pgid      int
	since     uint64 // this process's own start: members are younger
	ownerComm string
	stopped   bool
	woken     []bool // at Stop
}

// Start stages the processes and returns while they settle; see WaitReady.
// On error, and that is also when ctx ends before all are forked, nothing is
// left behind.
func Start(ctx context.Context, opts Options) (*Storm, error) {
	topology, err := Lookup(opts.Topology)
	if err != nil {
		return nil, err
	}
	if opts.Processes < 1 {
		return nil, fmt.Errorf("%d %s: at least one is needed", opts.Processes, topology.Unit)
	}
	if opts.MemBytes < 0 {
		return nil, fmt.Errorf("%d bytes of memory each: must not be negative", opts.MemBytes)
	}
	if opts.Descriptors < 0 {
		return nil, fmt.Errorf("%d descriptors each: must not be negative", opts.Descriptors)
	}
	if err := topology.Supported(); err != nil {
		return nil, err
	}
	page := int64(unix.Getpagesize())
	opts.MemBytes = (opts.MemBytes + page - 1) / page * page
	if opts.ForkLimit == 0 {
		opts.ForkLimit = 1_000_000
	}
	if err := procfs.CheckOwn(); err != nil {
		return nil, err
	}
	self, err := readStat(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("read this process's start time: %w", err)
	}
	s := &Storm{opts: opts, topology: topology, since: self.start, ownerComm: self.comm, direct: map[int]bool{}}
	if err := s.stage(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Storm) stage(ctx context.Context) error {
	var err error
	if s.arenas, err = newArenas(); err != nil {
		return err
	}
	b := s.arenas.builder(s.opts)
	s.topology.build(b, s.opts.Processes)
	common := b.birth()
	if err := errors.Join(b.finish(), s.arenas.seal()); err != nil {
		return err
	}
	s.members, s.starts = b.members, make([]uint64, len(b.members))
	s.asleep = make([]bool, len(b.members))
	if s.marks, err = newMarks(s.opts.Marks, len(s.members)); err != nil {
		return err
	}
	for i, m := range s.members {
		s.marks.describe(i, m.comm)
	}
	if s.opts.IgnoreChildren {
		ignoreChildren(+1)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	defer unix.Close(null)
	common.null = uintptr(null)
	forking.Lock()
	defer forking.Unlock()
	unwanted, err := common.keepOnly(rangeOf(s.arenas.scripts), rangeOf(s.arenas.scratch), rangeOf(s.marks.mem))
	if err != nil {
		return err
	}
	// Copying its page tables takes most of the time of a fork.
	if err = advise(unwanted, unix.MADV_DONTFORK); err == nil {
		err = s.forkAll(ctx, b, common)
	}
	return errors.Join(err, advise(unwanted, unix.MADV_DOFORK))
}

// forking is held by who has memory of this process left out of its children: another
// storm's would have to do without their stacks.
var forking sync.Mutex

// forkAll forks the direct children. Of the pipes that they inherit, each end
// is open here only from its first user to its last. common is what all are born with.
func (s *Storm) forkAll(ctx context.Context, b *builder, common birth) error {
	const many = 100
	if len(b.direct) >= many && !common.slim() {
		debug.FreeOSMemory() // each child copies the page tables of whatever is in memory
	}
	ends := newPipeEnds(b)
	defer ends.closeAll()
	for n, d := range b.direct {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d of %d processes forked: %w", n, len(b.direct), err)
		}
		in, err := ends.get(d.in, 0)
		if err != nil {
			return err
		}
		out, err := ends.get(d.out, 1)
		if err != nil {
			return err
		}
		birth := common
		birth.script, birth.pgid = b.address(d.script), uintptr(s.pgid)
		birth.keep = [2]uintptr{uintptr(min(in, out)), uintptr(max(in, out))}
		birth.regs[regSlot] = s.marks.address(d.slot)
		birth.regs[regIn], birth.regs[regOut] = uintptr(in), uintptr(out)
		birth.regs[regCount], birth.regs[regNumber] = uintptr(d.count), uintptr(d.number)
		if d.next >= 0 {
			birth.regs[regNext] = s.marks.address(d.next)
		}
		if d.extra >= 0 {
			birth.regs[regExtra] = s.marks.address(d.extra)
		}
		pid, err := fork(&birth)
		if err != nil {
			return fmt.Errorf("fork process %d of %d: %w (%s)", n+1, len(b.direct), err, forkRemedy)
		}
		s.marks.setPID(d.slot, pid)
		s.direct[d.slot] = true
		if s.pgid == 0 {
			s.pgid = pid
			// The child does the same; whoever comes first.
			if err := unix.Setpgid(pid, pid); err != nil {
				return fmt.Errorf("make process %d a process group: %w", pid, err)
			}
		}
		ends.release(n, d)
	}
	return nil
}

const forkRemedy = "raise ulimit -u, the cgroup's pids.max or kernel.pid_max, or stage fewer"

var children struct {
	sync.Mutex
	ignorers int
}

// ignoreChildren counts the storms that want SIGCHLD ignored.
func ignoreChildren(delta int) {
	children.Lock()
	defer children.Unlock()
	children.ignorers += delta
	if delta > 0 {
		ossignal.Ignore(syscall.SIGCHLD)
	} else if children.ignorers == 0 {
		// That puts the runtime's handler back; Reset leaves ignored what is ignored.
		heard := make(chan os.Signal, 1)
		ossignal.Notify(heard, syscall.SIGCHLD)
		ossignal.Stop(heard)
	}
}

// Topology is what was staged.
func (s *Storm) Topology() *Topology { return s.topology }

// Marks decodes the marks of all processes, in the order of Processes.
func (s *Storm) Marks() []Mark {
	out := make([]Mark, len(s.members))
	for i := range out {
		out[i] = decodeMark(s.marks.slot(i))
	}
	return out
}

func (s *Storm) pid(slot int) int {
	if slot == owner {
		return os.Getpid()
	}
	return int(int32(s.marks.load(slot, slotPID)))
}

func (s *Storm) proc(i int) Proc {
	m := &s.members[i]
	p := Proc{PID: s.pid(i), StartTicks: s.starts[i], Comm: m.comm, Role: m.role, Parent: s.pid(m.parent)}
	for _, w := range m.wakes {
		public := Wake{Effect: w.effect, Group: w.group}
		for _, d := range w.deaths {
			pid := s.pid(d)
			public.Deaths = append(public.Deaths, pid)
			if !slices.Contains(p.WaitsOn, pid) {
				p.WaitsOn = append(p.WaitsOn, pid)
			}
		}
		p.Wakes = append(p.Wakes, public)
	}
	return p
}

func (s *Storm) procs(accept func(i int) bool) []Proc {
	var out []Proc
	for i := range s.members {
		if accept(i) {
			out = append(out, s.proc(i))
		}
	}
	return out
}

// Processes lists the members. Pids are complete once WaitReady has returned.
func (s *Storm) Processes() []Proc { return s.procs(func(int) bool { return true }) }

// Targets lists the members named Target.
func (s *Storm) Targets() []Proc {
	return s.procs(func(i int) bool { return s.members[i].comm == Target })
}

// Woken lists the members that ran user code after their blocking call had
// returned. After Stop it is as it was when Stop was called.
func (s *Storm) Woken() []Proc {
	if s.woken != nil {
		return s.procs(func(i int) bool { return s.woken[i] })
	}
	return s.procs(func(i int) bool { return s.marks.load(i, slotWoken) != 0 })
}
