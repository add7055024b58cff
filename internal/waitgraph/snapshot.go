// Package waitgraph says who would wake when processes die.
//
// It is pure: a [Snapshot] of what the kernel said goes in, a [Graph] of wait
// conditions comes out, and nothing here touches the system. Process pointers
// are replaced by indexes into [Snapshot.Processes]; kernel addresses never
// get this far.
package waitgraph

import "fmt"

// Identity names one process for its whole life. A bare pid is not an
// identity: the kernel hands the number out again.
type Identity struct {
	// PID is the thread group id as the caller's pid namespace numbers it,
	// or 0 for a process that is not visible there.
	PID int32
	// StartNS is task_struct.start_boottime of the thread group leader:
	// nanoseconds since boot, suspend included.
	StartNS uint64
}

// KernelIdentity is an identity as BPF programs see it: KernelPID is the thread
// group id in the initial pid namespace.
type KernelIdentity struct {
	KernelPID int32
	StartNS   uint64
}

// SignalDisposition says what a process does with a signal.
type SignalDisposition uint8

const (
	SignalDefault SignalDisposition = iota // SIG_DFL
	SignalIgnored                          // SIG_IGN
	SignalCaught                           // a handler is installed
)

// SignalSet is a set of signal numbers from 1 to 64.
type SignalSet uint64

// With returns the set with one more signal.
func (s SignalSet) With(sig int32) SignalSet { return s | 1<<uint(sig-1) }

// Has reports whether sig is in the set; 0 never is.
func (s SignalSet) Has(sig int32) bool { return sig > 0 && s>>uint(sig-1)&1 != 0 }

// Signals is what a process does with those signals that a death can send: SIGHUP,
// SIGCHLD, SIGCONT, SIGPIPE, a parent-death signal, and what its children send at their
// exits. It depends on the thread that the kernel sends a signal to: that one
// gets it, unless it blocks it or takes none; then some other thread does
// (complete_signal).
type Signals struct {
	// Accepted are the signals that are queued when they are sent: they are
	// blocked, or not ignored, or there is a tracer to show them to.
	Accepted SignalSet
	// Interruptible are those among them that end a sleep: a thread that gets
	// them is asleep.
	Interruptible SignalSet
	// Deadly are those that end the process, once it is not stopped: a thread
	// gets them and their action is the default one.
	Deadly SignalSet
	// Stopping are those that stop it, and Trapped those that stop a thread of
	// it for its tracer to look at.
	Stopping, Trapped SignalSet
}

// Process is one thread group at the time of the snapshot. Every field comes
// from kernel memory; none of the process's own pages was touched to read it.
type Process struct {
	Identity

	// KernelPID is the thread group id in the initial pid namespace, which
	// is the number BPF programs see. Never show it to the user.
	KernelPID int32

	// PPID, PGID and SID are numbered by the caller's pid namespace, 0 where
	// the other process is not visible there. PPID is the real parent (the
	// one that forked or adopted it), not a tracer.
	PPID, PGID, SID int32

	UID, EUID, SUID uint32
	CapKill         bool   // has CAP_KILL, in its own user namespace
	Comm            string // at most 15 bytes

	// CgroupID is the inode number of the process's cgroup v2 directory.
	CgroupID uint64

	// State is the leader's state as ps letters it: R, S, D, T, t, Z, X, I.
	State   byte
	Threads int32 // live threads
	Stopped bool  // all of it, by a signal

	RSSBytes  uint64 // resident: file, anonymous and shmem pages
	SwapBytes uint64 // anonymous memory on a swap device

	SIGCHLD           SignalDisposition
	ParentDeathSignal int32 // prctl(PR_SET_PDEATHSIG), 0 for none

	// Signals are those sent to the process as such, which are the leader's
	// before any other thread's.
	Signals
	// AnyThread is the same for signals that are sent to one of its threads,
	// nobody knows which.
	AnyThread Signals

	// HoldsUnseen is set where the process may hold open files that are in no
	// descriptor table: it has an io_uring, a socket with unread messages, or a thread
	// in a call on a pipe that it has no descriptor of.
	HoldsUnseen bool

	KernelThread bool
	// NamespaceInit is set for pid 1 of any pid namespace.
	NamespaceInit bool
}

// KernelIdentity returns the process's identity as BPF programs see it.
func (p *Process) KernelIdentity() KernelIdentity {
	return KernelIdentity{p.KernelPID, p.StartNS}
}

// Alive reports whether the process still runs code or will: a zombie holds
// no descriptors and cannot be killed any further.
func (p *Process) Alive() bool {
	return (p.State != 'Z' && p.State != 'X') || p.Threads > 1
}

func (p *Process) String() string { return fmt.Sprintf("%s[%d]", p.Comm, p.PID) }

// Channel is the kind of thing through which a death wakes somebody.
type Channel uint8

const (
	ChannelOther Channel = iota
	ChannelPipe
	ChannelFIFO
	ChannelUnix
	ChannelTCP
	ChannelPTY
	ChannelChild
	ChannelPidfd
	ChannelParentDeath
	ChannelLock
	ChannelFutex
	ChannelSignal
	ChannelEpoll // only where no better channel is known
)

var channelNames = [...]string{"other", "pipe", "fifo", "unix", "tcp", "pty", "child",
	"pidfd", "parent-death", "lock", "futex", "signal", "epoll"}

// String returns the channel's name in reports and JSON.
func (c Channel) String() string {
	if int(c) < len(channelNames) {
		return channelNames[c]
	}
	return "other"
}

// End is a set of sides of an object that a file keeps open.
type End uint8

const (
	EndRead  End = 1 << iota // pipe or FIFO open for reading
	EndWrite                 // pipe or FIFO open for writing
	EndOpen                  // anything else, which is open or is not
)

// Object is something that wakes when it ends, or on whose wait queues
// processes sleep, or both: a pipe, a socket, one side of a terminal, a lock.
type Object struct {
	Channel Channel
	Name    string // "pipe:[4263]", never a kernel address

	// Readers and Writers are the kernel's own counts of files (not
	// descriptors) on each side, to be compared with the files found. Where
	// the only side is EndOpen, Writers counts it.
	Readers, Writers int32

	// Call is set for a call that is blocked on a pipe or FIFO, held by who is in it: it
	// ends as a whole, and has no sides.
	Call bool

	// Deadly is set where who sleeps here is not woken only, but ended: by a
	// signal.
	Deadly bool
}

// Link says that the end of one object wakes the sleepers of another: of a
// socket those of its peer, of a lock those who wait for it. Pipes and FIFOs
// wake their own sleepers without saying so.
type Link struct {
	From, To int32 // indexes into Snapshot.Objects
}

// File is one struct file (an open file description). Several descriptors of
// several processes may share it; its end closes when the last of them goes.
type File struct {
	Object int32 // index into Snapshot.Objects
	End    End

	// Refs is the kernel's reference count of the file, less the reference
	// that the snapshot itself held while looking.
	Refs int64
}

// Descriptor is one entry of one descriptor table.
type Descriptor struct {
	Process int32 // index into Snapshot.Processes
	File    int32 // index into Snapshot.Files

	// Table tells descriptor tables apart. Processes cloned with CLONE_FILES
	// share one: each of them holds the file, which has one reference.
	Table int32
	// TableShared is set when several threads or processes use the table:
	// the kernel then takes a file reference for each system call in flight.
	TableShared bool
	FD          int32
}

// Via is how a sleeper is queued.
type Via uint8

const (
	ViaPlain  Via = iota // blocked in read, write or open
	ViaPoll              // poll, ppoll, select, pselect
	ViaEpoll             // epoll_wait on an epoll instance that watches the object
	ViaOther             // none of these: io_uring, a semaphore, a mutex, a kernel user
	ViaSignal            // wherever it sleeps, a signal wakes it
)

func (v Via) String() string {
	return [...]string{"plain", "poll", "epoll", "other", "signal"}[v]
}

// Sleeper is one process found asleep on one of an object's wait queues.
type Sleeper struct {
	Object    int32 // index into Snapshot.Objects
	Process   int32 // index into Snapshot.Processes
	Via       Via
	Exclusive bool

	// File is the file whose reference the wait itself holds (poll and
	// select take one for each entry), or -1.
	File int32

	// Line is not 0 for one who sleeps in Snapshot.Lines[Line-1]: a wake goes to
	// the first there who still sleeps. Everybody in the line is listed once for
	// each wake that the object's end gives it. PassedOn is set where each of
	// them, once it runs, wakes the next: the event is one that stays.
	Line     int32
	PassedOn bool

	// Writes is set for who is blocked in a write to a pipe, and does not block SIGPIPE:
	// once nobody can read any more the write fails, and sends the thread that
	// (anon_pipe_write).
	Writes bool
}

// Kin says how one process is tied to others by its exit and theirs. Indexes
// are into Snapshot.Processes, -1 for nobody.
type Kin struct {
	Parent, Tracer int32 // whom the kernel tells of the exit; the real parent
	ExitSignal     int32 // what the parent is sent, 0 for nothing, -1 for no leader
	// OfThread is set where a thread forked it that is not its process's leader:
	// the kernel sends the signal to that thread.
	OfThread bool
	// VforkCaller waits in a call for the exec or exit (CLONE_VFORK): the parent, or with
	// CLONE_PARENT a sibling.
	VforkCaller int32
	// KilledByTracer is set where the tracer's death kills (PTRACE_O_EXITKILL).
	KilledByTracer bool
	Subreaper      bool  // adopts orphans below it (PR_SET_CHILD_SUBREAPER)
	Namespace      int32 // tells pid namespaces apart
	// AutoReap is set where the process's children leave no zombies: SIGCHLD
	// ignored, or SA_NOCLDWAIT.
	AutoReap bool
	// NoChildStops is set where SIGCHLD tells the process of exits only:
	// ignored, or SA_NOCLDSTOP.
	NoChildStops bool
	// Foreground is the process group that a session leader's death hangs
	// up, 0 for none.
	Foreground int32

	// The objects, -1 for none, on which sleep those who wait for its exit
	// (pidfd), and those who wait for a signal to it (signalfd).
	ExitQueue, SignalQueue int32
}

// Thread is one thread, not the leader, of a process, with ties of its own.
// Indexes are -1 for nobody and none.
type Thread struct {
	Process int32 // index into Snapshot.Processes

	// As in Kin, but for the exit of this thread.
	Tracer         int32
	KilledByTracer bool
	ExitQueue      int32
	State          byte // as ps letters it

	ParentDeathSignal int32   // 0 for none
	Signals           Signals // sent to this thread
}

// ChildWait is a process asleep in wait4 or waitid.
type ChildWait struct {
	Process int32 // whose children, or those of its threads, are waited for
	// Child and PGID narrow the wait to one process or one process group; -1
	// and 0 for any child.
	Child, PGID int32
	// Keeps is set where it does not reap: WNOWAIT, or without WEXITED.
	Keeps bool
}

// Incomplete counts what a snapshot could not read. The zero value means that
// nothing was cut short.
type Incomplete struct {
	Queues  int // wait queues with more sleepers than the walk's limit
	Raced   int // wait queues that changed under the walk until it gave up
	Records int // records dropped for want of buffer space
	// Callbacks are wait queue entries that no task sleeps on: asynchronous polls
	// (io_submit), requests of an io_uring whose task is awake, and the kernel's own
	// users. Whom they would wake is not known.
	Callbacks int
}

// Any reports whether anything is missing.
func (i Incomplete) Any() bool { return i != Incomplete{} }

// Snapshot is what the kernel said at one moment, before any reasoning. The
// caller owns it; nothing in it refers to kernel memory.
//
// Processes holds the visible processes first, in ascending KernelPID, then
// sleepers outside the caller's pid namespace (PID 0): they wake like others,
// and are never killed.
type Snapshot struct {
	Processes   []Process
	Objects     []Object
	Files       []File
	Descriptors []Descriptor
	Sleepers    []Sleeper
	Links       []Link
	// Lines are those who wait for wakes that go to one each, as on an epoll
	// instance: processes in the order of their turns, one for each thread.
	Lines      [][]int32
	Kin        []Kin // by process; nil where nothing is known of exits
	Threads    []Thread
	ChildWaits []ChildWait
	Incomplete Incomplete
}
