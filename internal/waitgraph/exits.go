package waitgraph

import (
	"fmt"
	"slices"
)

// Signals that a death can send.
const (
	sigHUP  = 1
	sigKILL = 9
	sigPIPE = 13
	sigCHLD = 17
	sigCONT = 18
)

// maxReapers bounds the adopters that are followed for one orphan.
const maxReapers = 16

// exits turns the ties between processes into sources: whom an exit wakes that
// is not a matter of descriptors.
type exits struct {
	*builder
	processes []Process
	kin       []Kin
	threads   []Thread
	threadsOf map[int32][]int32 // by process: those of threads
	queued    [][]ChildWait     // by process
	init      map[int32]int32   // by namespace
	groups    map[int32][]int32 // living members by process group
	effects   effects           // scratch
}

func newExits(b *builder, s *Snapshot) *exits {
	e := &exits{builder: b, processes: s.Processes, kin: s.Kin, threads: s.Threads, init: map[int32]int32{},
		groups: map[int32][]int32{}, queued: make([][]ChildWait, len(s.Processes))}
	e.threadsOf = make(map[int32][]int32, len(s.Threads))
	for i := range s.Threads {
		e.threadsOf[s.Threads[i].Process] = append(e.threadsOf[s.Threads[i].Process], int32(i))
	}
	for _, w := range s.ChildWaits {
		e.queued[w.Process] = append(e.queued[w.Process], w)
	}
	for p := range s.Processes {
		if s.Processes[p].NamespaceInit {
			e.init[s.Kin[p].Namespace] = int32(p)
		}
		if pgid := s.Processes[p].PGID; pgid != 0 && e.alive[p] {
			e.groups[pgid] = append(e.groups[pgid], int32(p))
		}
	}
	return e
}

// bereft is who gets a parent-death signal.
type bereft struct {
	process, signal int32
	reaction        *Signals
}

// tracee is a thread that somebody traces.
type tracee struct {
	process int32
	stopped bool // for its tracer
	killed  bool // with it
}

func (e *exits) all() {
	bereaved := make(map[int32][]bereft) // by parent
	tracees := make(map[int32][]tracee)  // by tracer
	for i := range e.kin {
		p := int32(i)
		if !e.alive[p] {
			e.zombie(p)
			continue
		}
		k, proc := &e.kin[p], &e.processes[p]
		e.notify(p)
		e.queue(ChannelPidfd, p, k.ExitQueue)
		if k.VforkCaller >= 0 {
			e.source(ChannelChild, []int32{p}, []int32{k.VforkCaller})
		}
		if k.Parent >= 0 && proc.ParentDeathSignal != 0 {
			bereaved[k.Parent] = append(bereaved[k.Parent], bereft{p, proc.ParentDeathSignal, &proc.Signals})
		}
		if k.Tracer >= 0 {
			tracees[k.Tracer] = append(tracees[k.Tracer], tracee{p, proc.State == 't', k.KilledByTracer})
		}
		if k.Foreground != 0 {
			e.hangup(p, k.Foreground)
		}
		if proc.NamespaceInit && proc.Deadly.Has(proc.ParentDeathSignal) && e.visible(k.Parent) &&
			e.maySend(k.Parent, p, proc.ParentDeathSignal) {
			e.namespace(p)
		}
	}
	for i := range e.threads {
		t := &e.threads[i]
		parent := e.kin[t.Process].Parent
		e.queue(ChannelPidfd, t.Process, t.ExitQueue)
		if parent >= 0 && t.ParentDeathSignal != 0 {
			bereaved[parent] = append(bereaved[parent], bereft{t.Process, t.ParentDeathSignal, &t.Signals})
		}
		if t.Tracer < 0 {
			continue
		}
		tracees[t.Tracer] = append(tracees[t.Tracer], tracee{t.Process, t.State == 't', t.KilledByTracer})
		if t.Tracer != e.kin[t.Process].Tracer {
			e.source(ChannelChild, []int32{t.Process}, e.told(t.Tracer, t.Process))
		}
	}
	for i := range e.kin { // maps have no order
		if p := int32(i); e.alive[p] {
			e.bereave(p, bereaved[p])
			e.detach(p, tracees[p])
		}
	}
	for _, s := range e.brokenTracees {
		tracer, holders := e.kin[s.process].Tracer, e.holders.row(s.source)
		if tracer >= 0 && len(holders) > 0 {
			e.relayed(slices.Clone(holders), e.notice(tracer, s.process))
		}
	}
	e.orphanedGroups()
}

// bereave adds the parent-death signals that the exit of p sends.
func (e *exits) bereave(p int32, children []bereft) {
	if len(children) == 0 {
		return
	}
	f := e.begin()
	for _, c := range children {
		if e.maySend(p, c.process, c.signal) {
			e.signal(f, c.process, c.signal, c.reaction)
		}
	}
	e.emit(ChannelParentDeath, []int32{p}, f)
}

// maySend reports whether the kernel lets p send a signal to another: of all that a
// death sends, parent-death signals alone are asked about (check_kill_permission()).
// CAP_KILL is taken to be that of a user namespace that the other is in.
func (e *exits) maySend(p, to, signal int32) bool {
	a, b := &e.processes[p], &e.processes[to]
	return a.CapKill || a.EUID == b.SUID || a.EUID == b.UID || a.UID == b.SUID || a.UID == b.UID ||
		signal == sigCONT && a.SID != 0 && a.SID == b.SID
}

// detach adds what the exit of a tracer does: it lets stopped tracees go on, and
// kills those that are to die with it.
func (e *exits) detach(p int32, tracees []tracee) {
	if len(tracees) == 0 {
		return
	}
	f := e.begin()
	for _, t := range tracees {
		switch {
		case t.killed:
			f.ended = append(f.ended, t.process)
		case t.stopped:
			f.woken = append(f.woken, t.process)
		}
	}
	e.emit(ChannelSignal, []int32{p}, f)
}

// notify says who is told of the exit of p: its tracer, or its parent; once its
// parent has exited, whoever adopted it; and so on.
func (e *exits) notify(p int32) {
	k := &e.kin[p]
	holders, reaped := []int32{p}, false
	if k.Tracer >= 0 && k.Tracer != k.Parent {
		e.source(ChannelChild, holders, e.told(k.Tracer, p))
		// Who waits for it reaps it, and that tells the parent (wait_task_zombie); else
		// the end of the tracer does.
		if reaped = e.reaps(k.Tracer, p); !reaped {
			holders = append(holders, k.Tracer)
		}
	}
	if k.Parent < 0 {
		return
	}
	n := len(e.sources)
	e.tell(holders, k.Parent, p, k.ExitSignal, e.hears(p))
	for i := n; reaped && i < len(e.sources); i++ {
		e.sources[i].Relayed = true
	}
	e.adopt(p, append(holders, k.Parent))
}

// hears is how the parent of p reacts to signals that are meant for it.
func (e *exits) hears(p int32) *Signals {
	parent := &e.processes[e.kin[p].Parent]
	if e.kin[p].OfThread {
		return &parent.AnyThread
	}
	return &parent.Signals
}

// zombie says who is told of a zombie once its parent, who was told, exits
// without having reaped it. Where it has a tracer, who was told instead, the parent
// is told when that exits, and of who adopts it likewise.
func (e *exits) zombie(p int32) {
	k := &e.kin[p]
	if k.Parent < 0 || !e.alive[k.Parent] {
		return
	}
	var holders []int32
	if k.Tracer >= 0 && k.Tracer != k.Parent && e.alive[k.Tracer] {
		holders = []int32{k.Tracer}
		e.tell(holders, k.Parent, p, k.ExitSignal, e.hears(p))
	}
	e.adopt(p, append(holders, k.Parent))
}

// adopt says who is told of the exit of p when all of holders have exited, the
// last of whom was its parent.
//
// Where the parent leaves no zombies, that is so only if it exits before p does;
// the sources say so. Which of them does nobody knows beforehand.
func (e *exits) adopt(p int32, holders []int32) {
	n, parent := len(e.sources), holders[len(holders)-1]
	e.adopters(holders, func(holders []int32, reaper int32) {
		e.tell(holders, reaper, p, sigCHLD, &e.processes[reaper].Signals)
	})
	if !e.alive[p] || !e.kin[parent].AutoReap {
		return
	}
	for i := n; i < len(e.sources); i++ {
		e.sources[i].Name += fmt.Sprintf(", if %d exits first", e.processes[parent].PID)
	}
}

// adopters calls f for whoever adopts the children of the last of holders, once
// all of them have exited; then for who adopts them once that one has, too; and
// so on.
func (e *exits) adopters(holders []int32, f func(holders []int32, reaper int32)) {
	for range maxReapers {
		reaper := e.reaper(holders[len(holders)-1])
		if reaper < 0 || slices.Contains(holders, reaper) {
			return
		}
		f(holders, reaper)
		if e.processes[reaper].NamespaceInit {
			return
		}
		holders = append(slices.Clone(holders), reaper)
	}
}

// reaper is who adopts the children of p (find_new_reaper in kernel/exit.c):
// the nearest ancestor that asked for it, or the init of its pid namespace.
func (e *exits) reaper(p int32) int32 {
	ns := e.kin[p].Namespace
	for a, i := e.kin[p].Parent, 0; a >= 0 && e.kin[a].Namespace == ns && i < len(e.kin); a, i = e.kin[a].Parent, i+1 {
		if e.kin[a].Subreaper && e.alive[a] {
			return a
		}
	}
	if init, ok := e.init[ns]; ok && e.alive[init] {
		return init
	}
	return -1
}

// tell adds that parent is told of the exit of child (do_notify_parent): it wakes
// if it waits for that child, and sig does to it what it does.
func (e *exits) tell(holders []int32, parent, child, sig int32, reaction *Signals) {
	if !e.alive[parent] {
		return
	}
	f := e.begin()
	if e.waitsFor(parent, child) {
		f.woken = append(f.woken, parent)
	}
	if sig == sigCHLD && e.processes[parent].SIGCHLD == SignalDefault && e.traces(child, parent) {
		// exit_notify() has let go of the tracees by then, and nobody is left to show
		// the signal to.
		alone := *reaction
		alone.Interruptible &^= alone.Trapped
		alone.Trapped = 0
		reaction = &alone
	}
	if sig != sigCHLD || e.processes[parent].SIGCHLD != SignalIgnored {
		e.signal(f, parent, sig, reaction)
	}
	e.emit(ChannelChild, holders, f)
}

// traces reports whether p is the only tracer of threads of another process.
func (e *exits) traces(p, other int32) bool {
	if t := e.kin[other].Tracer; t >= 0 && t != p {
		return false
	}
	return !slices.ContainsFunc(e.threadsOf[other], func(t int32) bool { return e.threads[t].Tracer >= 0 && e.threads[t].Tracer != p })
}

// notice is whom do_notify_parent_cldstop() wakes when it tells a parent or a
// tracer that child has stopped or goes on.
func (e *exits) notice(parent, child int32) []int32 {
	return e.wakenBy(parent, child, !e.kin[parent].NoChildStops)
}

// told is whom do_notify_parent() wakes when it tells a tracer of an exit:
// SA_NOCLDSTOP is about stops.
func (e *exits) told(tracer, tracee int32) []int32 { return e.wakenBy(tracer, tracee, true) }

// wakenBy is who wakes of a parent or a tracer that is told something of child.
func (e *exits) wakenBy(parent, child int32, signalled bool) []int32 {
	if !e.alive[parent] {
		return nil
	}
	var f effects
	if e.waitsFor(parent, child) {
		f.woken = append(f.woken, parent)
	}
	if signalled {
		e.signal(&f, parent, sigCHLD, &e.processes[parent].AnyThread)
	}
	return f.woken
}

// waitsFor reports whether somebody sleeps in wait4 or waitid of parent's whom
// news of child wakes.
func (e *exits) waitsFor(parent, child int32) bool {
	return slices.ContainsFunc(e.queued[parent], func(w ChildWait) bool { return e.isFor(&w, child) })
}

// reaps reports whether one of them reaps it as well.
func (e *exits) reaps(parent, child int32) bool {
	return slices.ContainsFunc(e.queued[parent], func(w ChildWait) bool { return e.isFor(&w, child) && !w.Keeps })
}

func (e *exits) isFor(w *ChildWait, child int32) bool {
	return (w.Child < 0 || w.Child == child) && (w.PGID == 0 || w.PGID == e.processes[child].PGID)
}

// visible reports whether p can be killed at all, as far as its namespace goes.
func (e *exits) visible(p int32) bool { return p >= 0 && e.processes[p].PID != 0 }

// namespace adds what the end of an init does: SIGKILL to all in its pid namespace,
// and in those below it (zap_pid_ns_processes). An init is never in a kill set, but
// it may have asked to die with its parent, as unshare --kill-child has it do.
func (e *exits) namespace(init int32) {
	inside := make([]bool, len(e.kin))
	inside[init] = true
	var ended []int32
	for changed := true; changed; { // a parent may come after its child
		changed = false
		for i := range e.kin {
			k := &e.kin[i]
			if !inside[i] && (k.Namespace == e.kin[init].Namespace || k.Parent >= 0 && inside[k.Parent]) {
				inside[i], changed = true, true
				ended = append(ended, int32(i))
			}
		}
	}
	e.deadly(ChannelParentDeath, []int32{init}, ended)
}

// queue adds the exit of p as a source for those who sleep on an object.
func (e *exits) queue(c Channel, p, object int32) {
	if object < 0 {
		return
	}
	var waiters []int32
	for _, s := range e.sleepersOf(object) {
		waiters = append(waiters, s.process)
	}
	e.source(c, []int32{p}, waiters)
}

// hangup adds what the death of a session leader does to the process group in
// the foreground of its terminal: SIGHUP (disassociate_ctty).
func (e *exits) hangup(leader, pgid int32) {
	f := e.begin()
	for _, p := range e.groups[pgid] {
		e.signal(f, p, sigHUP, &e.processes[p].Signals)
	}
	e.emit(ChannelPTY, []int32{leader}, f)
}

// source adds the exits of holders as a source, if anybody waits who is alive
// and not among them, and returns it until the next is added; or nil.
func (e *exits) source(c Channel, holders, waiters []int32) *Source {
	if len(waiters) == 0 {
		return nil
	}
	holders = sortDistinct(slices.Clone(holders))
	waiters = slices.DeleteFunc(sortDistinct(slices.Clone(waiters)), func(w int32) bool {
		_, holds := slices.BinarySearch(holders, w)
		return holds || !e.alive[w]
	})
	if len(waiters) == 0 {
		return nil
	}
	e.holders.list = append(e.holders.list, holders...)
	e.waiters.list = append(e.waiters.list, waiters...)
	e.sources = append(e.sources, Source{Channel: c, Name: e.exitOf(holders)})
	e.holders.start = append(e.holders.start, int32(len(e.holders.list)))
	e.waiters.start = append(e.waiters.start, int32(len(e.waiters.list)))
	return &e.sources[len(e.sources)-1]
}

// deadly adds a source whose waiters die of it.
func (e *exits) deadly(c Channel, holders, waiters []int32) {
	if src := e.source(c, holders, waiters); src != nil {
		src.Deadly = true
	}
}

// relayed adds a source whose waiters are told by a child of theirs that lives.
func (e *exits) relayed(holders, waiters []int32) {
	if src := e.source(ChannelChild, holders, waiters); src != nil {
		src.Relayed = true
	}
}

// exitOf names the exit of one process, or of several.
func (e *exits) exitOf(holders []int32) string {
	name := fmt.Sprintf("exit of %d", e.processes[holders[0]].PID)
	if n := len(holders) - 1; n == 1 {
		name += fmt.Sprintf(" and %d", e.processes[holders[1]].PID)
	} else if n > 1 {
		name += fmt.Sprintf(" and %d more", n)
	}
	return name
}
