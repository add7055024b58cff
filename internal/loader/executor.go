package loader

import (
	"errors"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Executor holds the programs that can signal: the fork tracker with
// inheritance, the tripwire, and the batch engine where the kernel has it.
//
// Loading attaches the fork tracker only. Nothing is signalled before
// the window is opened (see Clocks); after the deadline given to Arm the tripwire
// signals nobody. The executor's file descriptors are the only references to its
// programs: when the process dies, at whatever moment, the kernel drops them all.
//
// It is not safe for concurrent use.
type Executor struct {
	coll    *ebpf.Collection
	links   []link.Link
	victims []executeVictim
	batch   *batchCall
	words   *words

	forgiven uint64 // of LostForks

	isolated affinity.Set // see affinity.Undo

	tracker string // the program that records forks

	filtersTasks bool // see readMappings
}

// ExecutorOptions size an [Executor]. The zero value is the default.
type ExecutorOptions struct {
	// Processes is how many processes may be doomed, children forked in the
	// race included. 0 takes twice the number of tasks on the machine.
	Processes int
	// Batch loads the batch engine. Probe with [HaveBatch] first.
	Batch bool
}

// forksMin is the least number of forks on the whole machine that can be
// recorded. Those that end childless are forgotten.
const forksMin = 32 << 10

// NewExecutor loads the programs and attaches the fork tracker: from its
// return on, every process is in a snapshot taken later, or has its fork
// recorded. The caller closes it.
func NewExecutor(o ExecutorOptions) (*Executor, error) {
	var errs []error
	for _, tracker := range trackers() {
		e, err := loadExecutor(o, tracker)
		if err == nil {
			return e, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", tracker, err))
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOMEM) {
			break // the other one would fail, too
		}
	}
	return nil, errors.Join(errs...)
}

// trackers are the programs that can record forks here, the best one first: where
// tracepoints are preemptible that is an fexit, which needs the kernel's function tracer.
// With PREEMPT_RT it is preemptible itself, and has no copies.
func trackers() []string {
	if preemptible() && !affinity.PreemptRT() {
		return []string{executeProgTrackAttach, executeProgTrackFork}
	}
	return []string{executeProgTrackFork}
}

func loadExecutor(o ExecutorOptions, tracker string) (*Executor, error) {
	spec, err := loadExecute()
	if err != nil {
		return nil, fmt.Errorf("parse execute object: %w", err)
	}
	if o.Processes == 0 {
		o.Processes = 2*taskCount() + 4096
	}
	for _, name := range []string{executeMapDoomed, executeMapVictims} {
		spec.Maps[name].MaxEntries = uint32(o.Processes)
	}
	spec.Maps[executeMapForks].MaxEntries = uint32(max(o.Processes, forksMin))
	if !o.Batch {
		delete(spec.Programs, executeProgDeliver)
	}
	if !atLeast(5, 14) {
		delete(spec.Programs, executeProgCpuLeft)
	}
	if HaveReap() != nil {
		delete(spec.Programs, executeProgMappings)
	}
	for _, program := range []string{executeProgTrackFork, executeProgTrackAttach} {
		if program != tracker {
			delete(spec.Programs, program)
		}
	}
	if tracker == executeProgTrackFork {
		addSpares(spec, tracker)
	}
	addSeconds(spec, executeProgForgetFork, executeProgTripwire)
	capKill, err := hasCapability(unix.CAP_KILL)
	if err != nil {
		return nil, err
	}
	bytesOfCPUs, err := cpuBytes()
	if err != nil {
		return nil, err
	}
	if err := setVariables(spec, map[string]any{
		"tripwire_enabled": tripwireEnabled,
		"killer_uid":       uint32(unix.Getuid()),
		"killer_euid":      uint32(unix.Geteuid()),
		"killer_cap_kill":  capKill,
		"cpu_bytes":        bytesOfCPUs,
	}); err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, *collectionOptions())
	if err != nil {
		return nil, fmt.Errorf("load execute programs: %w", err)
	}
	e := &Executor{coll: coll, tracker: tracker, filtersTasks: filtersTasks(), isolated: affinity.Isolated()}
	if e.words, err = mapWords(coll, spec); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	for _, program := range []string{tracker, executeProgForgetFork} {
		if err := e.attach(program); err != nil {
			return nil, errors.Join(err, e.Close())
		}
	}
	if tracker == executeProgTrackAttach && !e.tracks() {
		return nil, errors.Join(errors.New("it does not run when a process forks"), e.Close())
	}
	return e, nil
}

// tracks forks, and reports whether the tracker has seen it.
func (e *Executor) tracks() bool {
	// The child cannot become a directory, and exits.
	_, _ = syscall.ForkExec("/", []string{"/"}, nil)
	return e.words.load(executeVarTracked) != 0
}

func (e *Executor) attach(program string) error {
	links, err := attachTracepoint(e.coll, program)
	e.links = append(e.links, links...)
	return err
}

// Close detaches and unloads everything, and reports every error on the way.
func (e *Executor) Close() error {
	errs := []error{unload(e.coll, e.links)}
	if e.words != nil {
		errs = append(errs, e.words.close())
	}
	return errors.Join(errs...)
}

// HasBatch reports whether the batch engine is loaded.
func (e *Executor) HasBatch() bool { return e.coll.Programs[executeProgDeliver] != nil }

// Doom writes down the kill set, in the order of the signals. From then on
// children of its members are doomed at their fork. Nobody is signalled yet.
func (e *Executor) Doom(procs []waitgraph.Process) error {
	m := e.coll.Maps[executeMapDoomed]
	if len(procs) > int(m.MaxEntries()) {
		return fmt.Errorf("doom %d processes: no more than %d fit", len(procs), m.MaxEntries())
	}
	if e.HasBatch() {
		e.batch = newBatchCall(e.coll.Programs[executeProgDeliver].FD(), len(procs))
	}
	e.victims = make([]executeVictim, len(procs))
	if len(procs) == 0 {
		return nil
	}
	slots, tgids := make([]uint32, len(procs)), make([]int32, len(procs))
	doomed := make([]executeDoomed, len(procs))
	for i := range procs {
		p := &procs[i]
		slots[i], tgids[i] = uint32(i), p.KernelPID
		e.victims[i] = executeVictim{StartNs: p.StartNS, Tgid: p.KernelPID}
		doomed[i] = executeDoomed{StartNs: p.StartNS}
	}
	if _, err := m.BatchUpdate(tgids, doomed, nil); err != nil {
		return fmt.Errorf("doom %d processes: %w", len(procs), err)
	}
	if e.HasBatch() {
		if _, err := e.coll.Maps[executeMapVictims].BatchUpdate(slots, e.victims, nil); err != nil {
			return fmt.Errorf("write the plan: %w", err)
		}
	}
	return nil
}

// Arm attaches the tripwire and sets the deadline after which no program
// signals any more. The tripwire stays silent until the window is opened.
func (e *Executor) Arm(deadline time.Duration) error {
	e.words.store(executeVarDeadlineNs, monotonicNS()+uint64(deadline))
	for _, program := range []string{executeProgTripwire, executeProgCountSwitch} {
		if err := e.attach(program); err != nil {
			return err
		}
	}
	return nil
}

// Clocks returns where the times of the window belong, in memory shared with the
// kernel side, on the monotonic clock in nanoseconds. A store to opened opens the
// window: for engines that deliver from user space. delivered says that the last
// signal was sent, released that the targets may run again: the counts of
// [Executor.Switches] go by them. The batch engine stores the first two itself.
//
// They must not be used after Close.
func (e *Executor) Clocks() (opened, delivered, released *uint64) {
	return e.words.at(executeVarOpenedNs), e.words.at(executeVarDeliveredNs), e.words.at(executeVarReleasedNs)
}

// Batch returns the attributes of the BPF_PROG_TEST_RUN that opens the window and
// signals the kill set in order, in one system call, and their size. Linux 6.13
// or later, after [Executor.Doom]; they live as long as the executor.
func (e *Executor) Batch() (attr unsafe.Pointer, size uintptr) {
	return unsafe.Pointer(&e.batch.attr), unsafe.Sizeof(e.batch.attr)
}

// Disarm ends the tripwire: no program signals after it. Children of the kill set are
// still written down.
func (e *Executor) Disarm() error {
	e.words.store(executeVarOpenedNs, 0)
	return nil
}

// DeliveryErrors returns, after Deliver, what became of each process in
// the order of Doom: nil where it was signalled, else the errno.
func (e *Executor) DeliveryErrors() ([]error, error) {
	if len(e.victims) == 0 {
		return nil, nil
	}
	slots := make([]uint32, len(e.victims))
	var cursor ebpf.MapBatchCursor
	n, err := e.coll.Maps[executeMapVictims].BatchLookup(&cursor, slots, e.victims, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("read delivery status: %w", err)
	}
	errs := make([]error, len(e.victims))
	for i := range errs {
		switch {
		case i >= n || e.victims[i].Status == 0:
			errs[i] = errNotReached
		case e.victims[i].Status < 0:
			errs[i] = unix.Errno(-e.victims[i].Status)
		}
	}
	return errs, nil
}

var errNotReached = errors.New("the batch engine did not get to it")

// Inherit dooms the children that forked before Doom wrote down their parents
// and that known, the snapshot, does not have; from its first call on the kernel
// side follows forks over dead generations, too. It returns every inherited
// process so far, those doomed at their birth included.
func (e *Executor) Inherit(known func(waitgraph.KernelIdentity) bool) ([]waitgraph.KernelIdentity, error) {
	if err := e.hunt(known); err != nil {
		return nil, err
	}
	doomed, err := e.doomed()
	if err != nil {
		return nil, err
	}
	forks, err := e.forks()
	if err != nil {
		return nil, err
	}
	children := make(map[waitgraph.KernelIdentity][]waitgraph.KernelIdentity)
	for child, f := range forks {
		parent := waitgraph.KernelIdentity{KernelPID: f.Parent, StartNS: f.ParentStartNs}
		children[parent] = append(children[parent], waitgraph.KernelIdentity{KernelPID: child, StartNS: f.StartNs})
	}
	queue := make([]waitgraph.KernelIdentity, 0, len(doomed))
	for tgid, d := range doomed {
		queue = append(queue, waitgraph.KernelIdentity{KernelPID: tgid, StartNS: d.StartNs})
	}
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		for _, child := range children[parent] {
			if d, ok := doomed[child.KernelPID]; known(child) || ok && d.StartNs == child.StartNS {
				continue
			}
			queue = append(queue, child)
			if forks[child.KernelPID].Exited != 0 {
				continue
			}
			d := executeDoomed{StartNs: child.StartNS, Inherited: 1}
			if err := e.coll.Maps[executeMapDoomed].Update(child.KernelPID, d, ebpf.UpdateAny); err != nil {
				return nil, fmt.Errorf("doom a child forked in the race: %w", err)
			}
			doomed[child.KernelPID] = d
		}
	}
	var out []waitgraph.KernelIdentity
	for tgid, d := range doomed {
		if d.Inherited != 0 {
			out = append(out, waitgraph.KernelIdentity{KernelPID: tgid, StartNS: d.StartNs})
		}
	}
	return out, nil
}

// hunt forgets the forks of known processes, whom the plan has judged, and lets
// the kernel side follow all others to their doomed ancestors.
func (e *Executor) hunt(known func(waitgraph.KernelIdentity) bool) error {
	if e.words.load(executeVarHunting) != 0 {
		return nil
	}
	forks, err := e.forks()
	if err != nil {
		return err
	}
	for child, f := range forks {
		if !known(waitgraph.KernelIdentity{KernelPID: child, StartNS: f.StartNs}) {
			continue
		}
		err := e.coll.Maps[executeMapForks].Delete(child)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a fork: %w", err)
		}
	}
	e.words.store(executeVarHunting, 1)
	return nil
}

func (e *Executor) forks() (map[int32]executeForked, error) {
	m, err := readMap[int32, executeForked](e.coll.Maps[executeMapForks])
	if err != nil {
		return nil, fmt.Errorf("read forks: %w", err)
	}
	return m, nil
}

// ForgiveForks has LostForks begin anew. Call it before a snapshot is taken, which shows
// whoever was born till then.
func (e *Executor) ForgiveForks() (err error) {
	e.forgiven, err = e.unrecordedForks()
	return err
}

// LostForks counts forks that were not recorded: those that found no space, and, since
// v5.12 and at most so many, those for which the kernel passed the tracker over. Where
// it is not zero, only a fresh look at all processes shows who is left.
func (e *Executor) LostForks() (n uint64, err error) {
	n, err = e.unrecordedForks()
	return n - min(n, e.forgiven), err
}

func (e *Executor) unrecordedForks() (n uint64, err error) {
	missed, err := missedRuns(e.coll, e.tracker)
	copies := uint64(len(copiesOf(e.coll, e.tracker))) // each of which counts
	return (e.words.load(executeVarLostForks)+copies-1)/copies + missed, err
}

func (e *Executor) doomed() (map[int32]executeDoomed, error) {
	m, err := readMap[int32, executeDoomed](e.coll.Maps[executeMapDoomed])
	if err != nil {
		return nil, fmt.Errorf("read the doomed: %w", err)
	}
	return m, nil
}
