package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"structs"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// ReapSince is the first kernel with process_mrelease(2) (commit 884a7e5964e0).
const ReapSince = "5.15"

// HaveReap returns nil where the kernel has process_mrelease(2), an error
// wrapping [ErrUnsupported] where it has not.
func HaveReap() error {
	_, _, errno := unix.Syscall(unix.SYS_PROCESS_MRELEASE, ^uintptr(0), 0, 0)
	if errno == unix.ENOSYS {
		return fmt.Errorf("early reaping needs process_mrelease(2), Linux %s or later: %w", ReapSince, ErrUnsupported)
	}
	return nil
}

// Why a process may not be reaped early.
var (
	// ErrSharesMemory: a robust mutex in that memory would not be marked as its
	// owner's death leaves it.
	ErrSharesMemory = errors.New("shares writable memory with a process outside the kill set")
	ErrMapLocked    = errors.New("has a memory map whose lock somebody holds")
	ErrUnaccounted  = errors.New("shares writable memory, and not every memory map could be read in time")
)

// SharedMemory looks which of the candidates, processes of the kill set named by
// one thread each, share writable memory with a process outside the kill set: with
// one that rest, the others of the kill set, does not account for. Whoever is not
// in the result does not. It reads kernel memory only, but takes the lock of each
// memory map: what could not be read when ctx ends, or when none could be for half
// a second, is in the result, too. Linux 5.15 or later.
func (e *Executor) SharedMemory(ctx context.Context, candidates, rest []affinity.Thread) (map[waitgraph.KernelIdentity]error, error) {
	found := newShares()
	unread, err := e.readMappings(ctx, candidates, found)
	if err != nil {
		return nil, err
	}
	complete := len(unread) == 0
	if found.unaccounted() {
		// The others of the kill set may account for what is missing.
		others, err := e.readMappings(ctx, rest, found)
		if err != nil {
			return nil, err
		}
		complete = complete && len(others) == 0
	}
	out := found.outside(complete)
	for _, t := range unread {
		out[t.Process] = ErrMapLocked
	}
	return out, nil
}

// shares collects the mappings of the kill set by what they map.
type shares struct {
	mutex    sync.Mutex
	objects  map[uint64]*sharedObject
	mappings map[mappingKey]bool
}

type sharedObject struct {
	count   int32 // the largest that the kernel had
	found   int32
	holders map[waitgraph.KernelIdentity]bool
}

type mappingKey struct {
	process waitgraph.KernelIdentity
	address uint64
}

func newShares() *shares {
	return &shares{objects: make(map[uint64]*sharedObject), mappings: make(map[mappingKey]bool)}
}

func (s *shares) add(r *executeMappingRecord) {
	process := waitgraph.KernelIdentity{KernelPID: r.Tgid, StartNS: r.StartNs}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	key := mappingKey{process, r.Address}
	if s.mappings[key] {
		return
	}
	s.mappings[key] = true
	o := s.objects[r.ObjectId]
	if o == nil {
		o = &sharedObject{holders: make(map[waitgraph.KernelIdentity]bool)}
		s.objects[r.ObjectId] = o
	}
	o.found++
	o.count = max(o.count, r.Count)
	o.holders[process] = true
}

// accounted reports whether all mappings of the object were found in the kill
// set. A count that is no count, of a file that denies writing, accounts for
// nothing.
func (o *sharedObject) accounted() bool { return o.count == o.found }

func (s *shares) unaccounted() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, o := range s.objects {
		if !o.accounted() {
			return true
		}
	}
	return false
}

// outside says who shares with somebody outside of what was read, which is all of
// the kill set where it is complete.
func (s *shares) outside(complete bool) map[waitgraph.KernelIdentity]error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	why := ErrSharesMemory
	if !complete {
		why = ErrUnaccounted
	}
	out := make(map[waitgraph.KernelIdentity]error)
	for _, o := range s.objects {
		if o.accounted() {
			continue
		}
		for p := range o.holders {
			out[p] = why
		}
	}
	return out
}

const (
	// mappingReaders is how many memory maps are read at a time: one that is stuck
	// must not hold up the rest.
	mappingReaders = 4
	// mappingStall is how long not one of them may get on.
	mappingStall = 500 * time.Millisecond
)

// readMappings reads the memory maps of the threads' processes until ctx ends or
// none gets on, and returns those that it could not read by then.
func (e *Executor) readMappings(ctx context.Context, threads []affinity.Thread, found *shares) (unread []affinity.Thread, err error) {
	if !e.filtersTasks {
		// Those of every process on the machine, of which the kernel side keeps the
		// kill set's: before Linux 6.1 an iterator cannot be told whose.
		done, err := getOn(ctx, 1, mappingStall, func(_ int, alive func()) error {
			return e.eachMapping(0, func(r *executeMappingRecord) {
				found.add(r)
				alive()
			})
		})
		if err == nil && !done[0] {
			unread = threads
		}
		return unread, err
	}
	done, err := getOn(ctx, len(threads), mappingStall, func(i int, _ func()) error {
		return e.eachMapping(threads[i].TID, found.add)
	})
	if err != nil {
		return nil, err
	}
	for i := range threads {
		if !done[i] {
			unread = append(unread, threads[i])
		}
	}
	return unread, nil
}

// getOn does n things, some at a time, until all are done, ctx ends, or for the time
// of a stall none was done and none said that it is alive. It returns which were
// done. Those that hang are not waited for.
func getOn(ctx context.Context, n int, stall time.Duration, do func(i int, alive func()) error) (done []bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		index int
		err   error
	}
	todo := make(chan int, n)
	results := make(chan result, n) // room for those that nobody waits for
	signs := make(chan struct{}, 1)
	alive := func() {
		select {
		case signs <- struct{}{}:
		default:
		}
	}
	for i := range n {
		todo <- i
	}
	close(todo)
	for range min(mappingReaders, n) {
		go func() {
			for i := range todo {
				if ctx.Err() != nil {
					return
				}
				results <- result{i, do(i, alive)}
			}
		}()
	}
	done = make([]bool, n)
	stalled := time.NewTimer(stall)
	defer stalled.Stop()
	for left := n; left > 0; {
		select {
		case r := <-results:
			if r.err != nil {
				return nil, r.err
			}
			done[r.index] = true
			left--
		case <-signs:
		case <-stalled.C:
			return done, nil
		case <-ctx.Done():
			return done, nil
		}
		stalled.Reset(stall)
	}
	return done, nil
}

// eachMapping runs the iterator over the mappings of one task, or of all where tid
// is 0. A task that is gone has none.
func (e *Executor) eachMapping(tid int32, each func(*executeMappingRecord)) error {
	file, err := openTaskIterator(e.coll.Programs[executeProgMappings], tid)
	if err != nil {
		return fmt.Errorf("read memory maps: %w", err)
	}
	defer file.Close()
	if err := readRecords(file, make([]executeMappingRecord, 128), each, nil); err != nil {
		return fmt.Errorf("read memory maps: %w", err)
	}
	return nil
}

// linkCreateIterAttr is union bpf_attr of BPF_LINK_CREATE for iterators
// (include/uapi/linux/bpf.h, since Linux 5.8). The library's lacks the task.
type linkCreateIterAttr struct {
	_                                   structs.HostLayout
	progFD, targetFD, attachType, flags uint32
	iterInfo                            uint64
	iterInfoLen, _                      uint32
}

// iterTaskInfo is union bpf_iter_link_info.task (since v6.1, f0d74c4da1f0).
type iterTaskInfo struct {
	_               structs.HostLayout
	tid, pid, pidFD uint32
}

// openTaskIterator opens an iterator over one task, or over all where tid is 0.
func openTaskIterator(prog *ebpf.Program, tid int32) (*os.File, error) {
	const linkCreate, iterCreate = 28, 33
	info := iterTaskInfo{tid: uint32(tid)}
	attr := linkCreateIterAttr{progFD: uint32(prog.FD()), attachType: uint32(ebpf.AttachTraceIter)}
	var pin runtime.Pinner
	defer pin.Unpin()
	if tid != 0 {
		pin.Pin(&info)
		attr.iterInfo, attr.iterInfoLen = uint64(uintptr(unsafe.Pointer(&info))), uint32(unsafe.Sizeof(info))
	}
	link, _, errno := unix.Syscall(unix.SYS_BPF, linkCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return nil, fmt.Errorf("attach iterator: %w", errno)
	}
	defer unix.Close(int(link))
	create := [2]uint32{uint32(link), 0}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, iterCreate, uintptr(unsafe.Pointer(&create)), unsafe.Sizeof(create))
	if errno != 0 {
		return nil, fmt.Errorf("open iterator: %w", errno)
	}
	return os.NewFile(fd, "bpf_iter"), nil
}

// filtersTasks reports whether an iterator can be told which task is meant: older
// kernels take the option and ignore it.
func filtersTasks() bool { return atLeast(6, 1) }
