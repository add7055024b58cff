package loader

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// When the space for a snapshot turns out too small, Take starts over with four
// times as much, up to growths times.
const (
	growths      = 4
	growthFactor = 4
)

// snapshotLimits is the space for one snapshot.
type snapshotLimits struct {
	sleepersBytes uint32 // ring buffer between two reads of the iterator
	queues        uint32 // wait queues visited
	pending       uint32 // wait queues that wait for the walk
}

var firstLimits = snapshotLimits{sleepersBytes: 1 << 20, queues: 64 << 10, pending: 32 << 10}

func (l snapshotLimits) times(n uint32) snapshotLimits {
	return snapshotLimits{n * l.sleepersBytes, n * l.queues, n * l.pending}
}

// Snapshotter reads processes, descriptors and wait queues out of the kernel
// through BPF iterators (Linux 5.10 or later with BTF). It attaches nothing
// that stays, can signal nobody, and reads no page of any process.
//
// It is not safe for concurrent use.
type Snapshotter struct {
	objs    snapshotObjects
	ring    *ringbuf.Reader
	consts  snapshotConsts
	limits  snapshotLimits
	scratch ringbuf.Record
	sleeper []snapshotSleeperRecord
	link    []snapshotLinkRecord
}

type snapshotConsts struct {
	cpus       uint32
	queueLimit uint64
}

// SnapshotOptions change the limits of a [Snapshotter].
type SnapshotOptions struct {
	// QueueLimit is how many sleepers of one wait queue are read, 32768 when
	// zero. Queues that are longer are counted in Incomplete.Queues.
	QueueLimit int
}

// NewSnapshotter loads the iterators. The caller closes it.
func NewSnapshotter(o SnapshotOptions) (*Snapshotter, error) {
	s := &Snapshotter{limits: firstLimits, consts: snapshotConsts{queueLimit: uint64(o.QueueLimit)}}
	if s.consts.queueLimit == 0 {
		s.consts.queueLimit = 32768
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count possible CPUs: %w", err)
	}
	s.consts.cpus = uint32(cpus)
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Snapshotter) load() error {
	spec, err := loadSnapshot()
	if err != nil {
		return fmt.Errorf("parse snapshot object: %w", err)
	}
	spec.Maps["sleepers"].MaxEntries = s.limits.sleepersBytes
	spec.Maps["visited"].MaxEntries = s.limits.queues
	spec.Maps["pending"].MaxEntries = s.limits.pending
	if err := setVariables(spec, map[string]any{
		"cpus":               s.consts.cpus,
		"sleepers_per_queue": s.consts.queueLimit,
	}); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&s.objs, collectionOptions()); err != nil {
		return fmt.Errorf("load snapshot programs: %w", err)
	}
	if s.ring, err = ringbuf.NewReader(s.objs.Sleepers); err != nil {
		s.objs.Close()
		return fmt.Errorf("open sleeper buffer: %w", err)
	}
	return nil
}

// Close unloads the iterators.
func (s *Snapshotter) Close() error {
	return errors.Join(s.ring.Close(), s.objs.Close())
}

// Processes returns every process that the caller's pid namespace shows,
// ascending by KernelPID, without descriptors and wait queues: a cheap second
// look at who is still there.
func (s *Snapshotter) Processes() ([]waitgraph.Process, error) {
	if err := s.objs.Listing.Set(uint64(1)); err != nil {
		return nil, fmt.Errorf("ask for a list of processes: %w", err)
	}
	procs := make([]waitgraph.Process, 0, 1024)
	page := uint64(os.Getpagesize())
	err := iterate(s.objs.Processes, func(r *snapshotProcessRecord) {
		if r.Pid != 0 {
			procs = append(procs, r.process(page))
		}
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	return procs, nil
}

// Take reads the whole snapshot. What could not be read is counted in its
// Incomplete field, never silently dropped.
func (s *Snapshotter) Take() (*waitgraph.Snapshot, error) {
	for grown := 0; ; grown++ {
		snap, err := s.take()
		if err != nil {
			return nil, err
		}
		if snap.Incomplete.Records == 0 || grown == growths {
			return snap, nil
		}
		switch err := s.grow(); {
		case errors.Is(err, unix.ENOMEM):
			return snap, nil // it says that it is incomplete
		case err != nil:
			return nil, err
		}
	}
}

// grow loads the programs again with more space. Those that are loaded stay
// when that fails.
func (s *Snapshotter) grow() error {
	grown := &Snapshotter{consts: s.consts, limits: s.limits.times(growthFactor)}
	if err := grown.load(); err != nil {
		return err
	}
	old := *s
	s.objs, s.ring, s.limits = grown.objs, grown.ring, grown.limits
	return old.Close()
}

func (s *Snapshotter) take() (*waitgraph.Snapshot, error) {
	if err := s.reset(); err != nil {
		return nil, err
	}
	if err := s.objs.Listing.Set(uint64(0)); err != nil {
		return nil, fmt.Errorf("ask for processes: %w", err)
	}
	b := newSnapshotBuilder()
	page := uint64(os.Getpagesize())
	addProcess := func(r *snapshotProcessRecord) { b.addProcess(r, page) }
	if err := iterate(s.objs.Processes, addProcess, s.drain); err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	if err := iterate(s.objs.Descriptors, b.addDescriptor, s.drain); err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	if err := s.drain(); err != nil {
		return nil, err
	}
	snap := b.build(s.sleeper, s.link)
	var counts snapshotWalkCounts
	if err := s.objs.Counts.Get(&counts); err != nil {
		return nil, fmt.Errorf("read walk counts: %w", err)
	}
	snap.Incomplete.Queues = int(counts.Truncated)
	snap.Incomplete.Raced = int(counts.Raced)
	snap.Incomplete.Records = int(counts.Dropped)
	return snap, nil
}

// reset forgets the queues visited by an earlier snapshot.
func (s *Snapshotter) reset() error {
	s.sleeper, s.link = s.sleeper[:0], s.link[:0]
	if err := s.objs.Counts.Set(snapshotWalkCounts{}); err != nil {
		return fmt.Errorf("reset walk counts: %w", err)
	}
	// All keys, then the deletions: to look for the first key again after each takes the
	// kernel through all the buckets that are empty by then.
	var visited []uint64
	var key uint64
	err := s.objs.Visited.NextKey(nil, &key)
	for ; err == nil; err = s.objs.Visited.NextKey(key, &key) {
		visited = append(visited, key)
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("reset visited queues: %w", err)
	}
	for _, key := range visited {
		if err := s.objs.Visited.Delete(key); err != nil {
			return fmt.Errorf("reset visited queues: %w", err)
		}
	}
	return nil
}

// drain empties the ring buffer.
func (s *Snapshotter) drain() error {
	if err := s.ring.Flush(); err != nil {
		return fmt.Errorf("flush sleepers: %w", err)
	}
	for {
		switch err := s.ring.ReadInto(&s.scratch); {
		case errors.Is(err, ringbuf.ErrFlushed):
			return nil
		case err != nil:
			return fmt.Errorf("read sleepers: %w", err)
		}
		switch raw := s.scratch.RawSample; len(raw) {
		case int(unsafe.Sizeof(snapshotSleeperRecord{})):
			s.sleeper = append(s.sleeper, recordOf[snapshotSleeperRecord](raw))
		case int(unsafe.Sizeof(snapshotLinkRecord{})):
			s.link = append(s.link, recordOf[snapshotLinkRecord](raw))
		default:
			return fmt.Errorf("read sleepers: record of %d bytes", len(raw))
		}
	}
}

// recordOf copies a record of the right size out of a sample.
func recordOf[T any](raw []byte) (r T) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), unsafe.Sizeof(r)), raw)
	return r
}

// Bits of task_struct.__state that outlived every renumbering since v4.14,
// lowest first, as fs/proc/array.c letters them.
const (
	stateLetters = "RSDTtXZPI"
	taskReport   = 0x7f
	taskUninterr = 0x02
	taskNoload   = 0x400
	taskFrozen   = 0x8000
)

func stateLetter(state, exit uint32) byte {
	switch {
	case state&taskUninterr != 0 && state&taskNoload != 0:
		return 'I'
	case state&taskFrozen != 0: // since v6.1, f5d39b020809
		return 'D'
	}
	return stateLetters[bits.Len32((state|exit)&taskReport)]
}

func (r *snapshotProcessRecord) process(page uint64) waitgraph.Process {
	return waitgraph.Process{
		Identity:  waitgraph.Identity{PID: r.Pid, StartNS: r.StartNs},
		KernelPID: r.Tgid,
		PPID:      r.Ppid, PGID: r.Pgid, SID: r.Sid,
		UID: r.Uid, EUID: r.Euid, SUID: r.Suid,
		Comm:              comm(r.Comm[:]),
		CgroupID:          r.CgroupId,
		State:             stateLetter(r.State, r.ExitState),
		Threads:           r.Threads,
		RSSBytes:          uint64(r.RssPages) * page,
		SwapBytes:         uint64(r.SwapPages) * page,
		SIGCHLD:           r.sigchld(),
		ParentDeathSignal: r.PdeathSignal,
		Stopped:           r.Flags&processStopped != 0,
		KernelThread:      r.Flags&processKernel != 0,
		NamespaceInit:     r.Flags&processInit != 0,
		CapKill:           r.Flags&processCapKill != 0,
	}
}

// comm converts a NUL-padded task name.
func comm[C int8 | uint8](c []C) string {
	b := make([]byte, 0, len(c))
	for _, x := range c {
		b = append(b, byte(x))
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
