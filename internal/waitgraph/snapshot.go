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
	Comm            string // at most 15 bytes

	// CgroupID is the inode number of the process's cgroup v2 directory.
	CgroupID uint64

	// State is the leader's state as ps letters it: R, S, D, T, t, Z, X, I.
	State   byte
	Threads int32 // live threads

	RSSBytes  uint64 // resident: file, anonymous and shmem pages
	SwapBytes uint64 // anonymous memory on a swap device

	SIGCHLD           SignalDisposition
	ParentDeathSignal int32 // prctl(PR_SET_PDEATHSIG), 0 for none

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
)

// Object is something whose wait queues were walked: a pipe, a FIFO.
type Object struct {
	Channel Channel
	Name    string // "pipe:[4263]", never a kernel address

	// Readers and Writers are the kernel's own counts of files (not
	// descriptors) on each side, to be compared with the files found.
	Readers, Writers int32
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
	ViaPlain Via = iota // blocked in read, write or open
	ViaPoll             // poll, ppoll, select, pselect
	ViaEpoll            // epoll_wait on an epoll instance that watches the object
	ViaOther            // a callback that is none of these (io_uring, a kernel user)
)

func (v Via) String() string {
	return [...]string{"plain", "poll", "epoll", "other"}[v&3]
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
}

// Incomplete counts what a snapshot could not read. The zero value means that
// nothing was cut short.
type Incomplete struct {
	Queues  int // wait queues with more sleepers than the walk's limit
	Raced   int // wait queues that changed under the walk until it gave up
	Records int // records dropped for want of buffer space
	// Callbacks are wait queue entries that no task sleeps on: io_uring
	// polls and the kernel's own users. Whom they would wake is not known.
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
	Incomplete  Incomplete
}
