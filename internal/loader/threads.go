package loader

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Threads returns the threads of the kill set that have not exited, inherited
// children included, as the kernel has them at that moment. A thread or a child
// that starts meanwhile may be missing; Births tells.
func (e *Executor) Threads() ([]affinity.Thread, error) {
	var threads []affinity.Thread
	err := iterate(e.coll.Programs[executeProgThreads], func(r *executeThreadRecord) {
		if r.Tid == 0 || r.Pid == 0 {
			return
		}
		threads = append(threads, affinity.Thread{
			Process: waitgraph.KernelIdentity{KernelPID: r.Tgid, StartNS: r.StartNs},
			TID:     r.Tid, PID: r.Pid, PGID: r.Pgid, SID: r.Sid,
			Policy: r.Policy, RTPriority: r.RtPriority,
			Asleep:  r.State&taskAsleep != 0 && r.State&taskUninterr == 0,
			Allowed: r.Allowed, Wanted: affinity.Undo(r.Allowed, r.Wanted, e.isolated),
		})
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("read threads: %w", err)
	}
	return threads, nil
}

// taskAsleep are TASK_INTERRUPTIBLE and the two states of the stopped.
const taskAsleep = 0x01 | 0x04 | 0x08

// Births counts the threads and children that the kill set has started since
// the fork tracker knows it.
func (e *Executor) Births() uint64 { return e.words.load(executeVarBirths) }

// Switches counts the context switches to threads of the kill set: from the
// opening of the window to the last signal, and from there to the release.
func (e *Executor) Switches() (window, reap uint64) {
	return e.words.load(executeVarWindowSwitches), e.words.load(executeVarReapSwitches)
}

// cpuBytes is how long a mask of this machine's CPUs is.
func cpuBytes() (uint32, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("count CPUs: %w", err)
	}
	return uint32(min(cpus, affinity.MaxCPUs)+63) / 64 * 8, nil
}
