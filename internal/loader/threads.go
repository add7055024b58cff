package loader

import (
	"fmt"
	"time"

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

// CPULeft is how long a real-time thread may have the CPU that the calling one, an
// ordinary one, is on, before the kernel takes it away. Other real-time threads may have
// used some of that up. It is false where that is not known: before Linux 5.14, which has
// no such programs, in kernels without CONFIG_FAIR_GROUP_SCHED, and where a scheduler
// written in BPF runs the caller (sched_ext). Several threads may call it at a time.
//
// From Linux 6.12 on (dl_server) it is up to a second less 50 ms, and begins anew where
// ordinary threads have the CPU for 50 ms. Before that it is what
// kernel.sched_rt_runtime_us says, and begins anew every kernel.sched_rt_period_us.
func (e *Executor) CPULeft() (left time.Duration, ok bool) {
	p := e.coll.Programs[executeProgCpuLeft]
	if p == nil {
		return 0, false
	}
	ms, err := p.Run(&ebpf.RunOptions{})
	if err != nil || ms == leftUnknown {
		return 0, false
	}
	return time.Duration(ms) * time.Millisecond, true
}

const leftUnknown = ^uint32(0) // LEFT_UNKNOWN

// cpuBytes is how long a mask of this machine's CPUs is.
func cpuBytes() (uint32, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("count CPUs: %w", err)
	}
	return uint32(min(cpus, affinity.MaxCPUs)+63) / 64 * 8, nil
}
