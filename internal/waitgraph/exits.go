package waitgraph

import (
	"fmt"
	"slices"
)

// Signals that a death can send.
const (
	sigHUP  = 1
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
	queued    [][]ChildWait     // by process
	init      map[int32]int32   // by namespace
	groups    map[int32][]int32 // living members by process group
}

func newExits(b *builder, s *Snapshot) *exits {
	e := &exits{builder: b, processes: s.Processes, kin: s.Kin, init: map[int32]int32{},
		groups: map[int32][]int32{}, queued: make([][]ChildWait, len(s.Processes))}
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

func (e *exits) all() {
	bereaved := make(map[int32][]int32) // those with a parent-death signal, by parent
	tracees := make(map[int32][]int32)
	for i := range e.kin {
		p := int32(i)
		if !e.alive[p] {
			e.zombie(p)
			continue
		}
		k := &e.kin[p]
		e.notify(p)
		e.queue(ChannelPidfd, p, k.ExitQueue)
		if k.Vfork && k.Parent >= 0 && e.alive[k.Parent] {
			e.source(ChannelChild, []int32{p}, []int32{k.Parent})
		}
		if k.Parent >= 0 && e.processes[p].ParentDeathSignal != 0 {
			bereaved[k.Parent] = append(bereaved[k.Parent], p)
		}
		if k.Tracer >= 0 {
			tracees[k.Tracer] = append(tracees[k.Tracer], p)
		}
		if k.Foreground != 0 {
			e.hangup(p, k.Foreground)
		}
	}
	for i := range e.kin { // maps have no order
		if p := int32(i); e.alive[p] {
			e.bereave(p, bereaved[p])
			e.detach(p, tracees[p])
		}
	}
	e.orphanedGroups()
}

// bereave adds the parent-death signals that the exit of p sends.
func (e *exits) bereave(p int32, children []int32) {
	var told, ended []int32
	for _, c := range children {
		sig := e.processes[c].ParentDeathSignal
		if e.ends(c, sig) {
			ended = append(ended, c)
		} else {
			told = e.signalled(told, c, sig)
		}
	}
	e.source(ChannelParentDeath, []int32{p}, told)
	e.deadly(ChannelParentDeath, []int32{p}, ended)
}

// detach adds what the exit of a tracer does: it lets stopped tracees go on, and
// kills those that are to die with it.
func (e *exits) detach(p int32, tracees []int32) {
	var freed, ended []int32
	for _, t := range tracees {
		switch {
		case e.kin[t].KilledByTracer:
			ended = append(ended, t)
		case e.processes[t].State == 't':
			freed = append(freed, t)
		}
	}
	e.source(ChannelSignal, []int32{p}, freed)
	e.deadly(ChannelSignal, []int32{p}, ended)
}

// notify says who is told of the exit of p: its tracer, or its parent; once its
// parent has exited, whoever adopted it; and so on.
func (e *exits) notify(p int32) {
	k := &e.kin[p]
	holders := []int32{p}
	if k.Tracer >= 0 && k.Tracer != k.Parent {
		e.source(ChannelChild, holders, e.told(nil, k.Tracer, p, sigCHLD))
		holders = append(holders, k.Tracer)
	}
	if k.Parent < 0 {
		return
	}
	sig := k.ExitSignal
	if k.Tracer >= 0 {
		sig = sigCHLD
	}
	e.source(ChannelChild, holders, e.told(nil, k.Parent, p, sig))
	e.adopt(p, append(holders, k.Parent))
}

// zombie says who is told of a zombie once its parent, who was told, exits
// without having reaped it.
func (e *exits) zombie(p int32) {
	if parent := e.kin[p].Parent; parent >= 0 && e.alive[parent] {
		e.adopt(p, []int32{parent})
	}
}

// adopt says who is told of the exit of p when all of holders have exited, the
// last of whom was its parent.
func (e *exits) adopt(p int32, holders []int32) {
	for range maxReapers {
		reaper := e.reaper(holders[len(holders)-1])
		if reaper < 0 || slices.Contains(holders, reaper) {
			return
		}
		e.source(ChannelChild, holders, e.told(nil, reaper, p, sigCHLD))
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

// told appends whom do_notify_parent() wakes when it tells parent of child:
// the parent, if it waits for that child or the signal interrupts it, and
// those who wait for its signals.
func (e *exits) told(waiters []int32, parent, child, sig int32) []int32 {
	if !e.alive[parent] {
		return waiters
	}
	for _, w := range e.queued[parent] {
		if (w.Child < 0 || w.Child == child) && (w.PGID == 0 || w.PGID == e.processes[child].PGID) {
			waiters = append(waiters, parent)
			break
		}
	}
	if sig == sigCHLD && e.processes[parent].SIGCHLD == SignalIgnored {
		return waiters
	}
	return e.signalled(waiters, parent, sig)
}

// signalled appends whom a signal to p wakes: p where it interrupts it, and
// those who read its signals.
func (e *exits) signalled(waiters []int32, p, sig int32) []int32 {
	if !e.alive[p] || !e.processes[p].Accepted.Has(sig) {
		return waiters
	}
	if e.interrupts(p, sig) {
		waiters = append(waiters, p)
	}
	if q := e.kin[p].SignalQueue; q >= 0 {
		for _, s := range e.sleepersOf(q) {
			waiters = append(waiters, s.process)
		}
	}
	return waiters
}

// ends reports whether sig would end p.
func (e *exits) ends(p, sig int32) bool { return e.alive[p] && e.processes[p].Deadly.Has(sig) }

// interrupts reports whether sig would wake p.
func (e *exits) interrupts(p, sig int32) bool {
	return sig > 0 && e.alive[p] && e.processes[p].State == 'S' && e.processes[p].Interruptible.Has(sig)
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
	var told, ended []int32
	for _, p := range e.groups[pgid] {
		if e.ends(p, sigHUP) {
			ended = append(ended, p)
		} else {
			told = e.signalled(told, p, sigHUP)
		}
	}
	e.source(ChannelPTY, []int32{leader}, told)
	e.deadly(ChannelPTY, []int32{leader}, ended)
}

// orphanedGroups adds process groups with stopped members. Once nobody is left
// in their session who could continue them, the kernel sends them SIGHUP and
// SIGCONT (kill_orphaned_pgrp). That is when of each pair of a member and its
// parent in another group of the session one has exited: it is enough that all
// these parents have, or all these members.
func (e *exits) orphanedGroups() {
	for i := range e.processes { // maps have no order
		p := int32(i)
		members := e.groups[e.processes[p].PGID]
		if len(members) == 0 || members[0] != p {
			continue
		}
		if !slices.ContainsFunc(members, func(m int32) bool { return e.processes[m].State == 'T' }) {
			continue
		}
		var parents, linked []int32
		for _, m := range members {
			parent := e.kin[m].Parent
			if parent < 0 || !e.alive[parent] || e.processes[parent].PGID == e.processes[m].PGID || e.processes[parent].SID != e.processes[m].SID {
				continue
			}
			parents, linked = append(parents, parent), append(linked, m)
		}
		if len(parents) == 0 {
			continue
		}
		e.orphan(parents, members)
		if len(linked) < len(members) {
			e.orphan(linked, members)
		}
	}
}

// orphan adds what SIGHUP and SIGCONT do to the members of a group once holders
// have exited.
func (e *exits) orphan(holders, members []int32) {
	var told, ended []int32
	for _, m := range members {
		switch {
		case e.ends(m, sigHUP):
			ended = append(ended, m)
		case e.processes[m].State == 'T':
			told = append(told, m)
		default:
			told = e.signalled(e.signalled(told, m, sigHUP), m, sigCONT)
		}
	}
	e.source(ChannelSignal, holders, told)
	e.deadly(ChannelSignal, holders, ended)
}

// source adds the exits of holders as a source, if anybody waits who is alive
// and not among them.
func (e *exits) source(c Channel, holders, waiters []int32) {
	if len(waiters) == 0 {
		return
	}
	holders = sortDistinct(slices.Clone(holders))
	waiters = slices.DeleteFunc(sortDistinct(slices.Clone(waiters)), func(w int32) bool {
		_, holds := slices.BinarySearch(holders, w)
		return holds || !e.alive[w]
	})
	if len(waiters) == 0 {
		return
	}
	e.holders.list = append(e.holders.list, holders...)
	e.waiters.list = append(e.waiters.list, waiters...)
	e.sources = append(e.sources, Source{Channel: c, Name: e.exitOf(holders)})
	e.holders.start = append(e.holders.start, int32(len(e.holders.list)))
	e.waiters.start = append(e.waiters.start, int32(len(e.waiters.list)))
}

// deadly adds a source whose waiters die of it.
func (e *exits) deadly(c Channel, holders, waiters []int32) {
	n := len(e.sources)
	e.source(c, holders, waiters)
	if len(e.sources) > n {
		e.sources[n].Deadly = true
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
