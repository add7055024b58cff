package loader

import "github.com/bpfkill/bpfkill/internal/waitgraph"

// PROCESS_* of bpf/record.h.
const (
	processKernel    = 1
	processInit      = 2
	processThread    = 8
	processSubreaper = 16
	processExitKill  = 64
	processOutside   = 128
	processStopped   = 256
	processExiting   = 512
	processOfThread  = 1024
	processCapKill   = 2048
)

// noKin is a process of whose ties nothing is known.
var noKin = waitgraph.Kin{Parent: -1, Tracer: -1, VforkCaller: -1, ExitQueue: -1, SignalQueue: -1}

// kinBuilder resolves how processes are tied to each other, once all of them
// are there.
type kinBuilder struct {
	records    []snapshotProcessRecord // by process
	threads    []snapshotProcessRecord // that are not leaders
	pid        map[uint64]int32        // pid_id -> process
	pgid       map[uint64]int32        // pgrp_id -> number
	childQueue map[uint64]int32        // queue -> process whose children are waited for
	namespace  map[uint64]int32
	masters    []terminalMaster
}

// terminalMaster is the master of a pseudo-terminal with a session on it.
type terminalMaster struct {
	object  int32
	session uint64
}

func newKinBuilder() kinBuilder {
	return kinBuilder{
		pid: make(map[uint64]int32), pgid: make(map[uint64]int32),
		childQueue: make(map[uint64]int32), namespace: make(map[uint64]int32),
	}
}

// addProcess takes the records of iter/task: leaders, other threads, and parents
// outside the namespace.
func (b *snapshotBuilder) addProcess(r *snapshotProcessRecord, page uint64) {
	key := taskKey{r.Tgid, r.StartNs}
	proc, known := b.process[key]
	switch {
	case r.Flags&processThread != 0:
		b.kin.threads = append(b.kin.threads, *r)
		if known && r.Tracer != 0 { // who may wait for it alone
			b.kin.pid[r.PidId] = proc
		}
		return
	case known, r.Pid == 0 && r.Flags&processOutside == 0:
		return
	}
	proc = int32(len(b.snap.Processes))
	b.process[key] = proc
	b.snap.Processes = append(b.snap.Processes, r.process(page))
	b.snap.Kin = append(b.snap.Kin, noKin)
	b.kin.records = append(b.kin.records, *r)
	b.kin.pid[r.PidId] = proc
	b.kin.pgid[r.PgrpId] = r.Pgid
	b.kin.childQueue[r.ChildQueue] = proc
}

// finishKin fills in the ties.
func (b *snapshotBuilder) finishKin() {
	for i := range b.kin.records {
		r := &b.kin.records[i]
		ns, _ := intern(b.kin.namespace, r.NamespaceId)
		k := &b.snap.Kin[i]
		*k = waitgraph.Kin{
			Parent: b.indexOf(r.Parent, r.ParentStartNs), Tracer: b.indexOf(r.Tracer, r.TracerStartNs),
			ExitSignal: r.ExitSignal, OfThread: r.Flags&processOfThread != 0, Namespace: ns,
			VforkCaller:    b.indexOf(r.VforkCaller, r.VforkCallerStartNs),
			KilledByTracer: r.Flags&processExitKill != 0,
			Subreaper:      r.Flags&processSubreaper != 0,
			AutoReap:       r.Sigchld&(signalIgnored|signalNoCldWait) != 0,
			NoChildStops:   r.Sigchld&(signalIgnored|signalNoCldStop) != 0,
			Foreground:     b.kin.pgid[r.TtyPgrpId],
			ExitQueue:      -1, SignalQueue: -1,
		}
		if r.ExitQueue != 0 {
			k.ExitQueue = b.queueObject(r.ExitQueue)
		}
		if r.SignalQueue != 0 {
			k.SignalQueue = b.queueObject(r.SignalQueue)
		}
	}
	b.finishSignals()
	for _, m := range b.kin.masters {
		b.hangup(m)
	}
}

// hangup links a terminal's master to the session leader on the other side, who
// gets SIGHUP and SIGCONT when the master goes (tty_signal_session_leader).
func (b *snapshotBuilder) hangup(m terminalMaster) {
	leader, ok := b.kin.pid[m.session]
	if !ok {
		return
	}
	p := &b.snap.Processes[leader]
	if !p.Stopped && !p.Deadly.Has(sigHUP) && !p.Interruptible.Has(sigHUP) && !p.Interruptible.Has(sigCONT) {
		return
	}
	o := b.newLink(m.object, waitgraph.Object{Deadly: p.Deadly.Has(sigHUP)})
	b.snap.Sleepers = append(b.snap.Sleepers, waitgraph.Sleeper{
		Object: o, Process: leader, Via: waitgraph.ViaSignal, File: -1,
	})
}

func (b *snapshotBuilder) indexOf(tgid int32, start uint64) int32 {
	if p, ok := b.process[taskKey{tgid, start}]; ok && tgid != 0 {
		return p
	}
	return -1
}

// addChildWait adds a sleeper in wait4 or waitid.
func (b *snapshotBuilder) addChildWait(r *snapshotSleeperRecord) {
	if r.Via < viaChild {
		return
	}
	parent, ok := b.kin.childQueue[r.QueueId]
	if !ok {
		return
	}
	w := waitgraph.ChildWait{Process: parent, Child: -1, Keeps: r.Keeps != 0}
	switch r.Via {
	case viaChildPID:
		if w.Child, ok = b.kin.pid[r.LinkId]; !ok {
			return
		}
	case viaChildPGRP:
		if w.PGID, ok = b.kin.pgid[r.LinkId]; !ok || w.PGID == 0 {
			return
		}
	}
	b.snap.ChildWaits = append(b.snap.ChildWaits, w)
}
