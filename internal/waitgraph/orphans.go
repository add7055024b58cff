package waitgraph

import "slices"

// maxTies bounds the ties of one process group that are looked at one by one.
const maxTies = 4

// tie is what keeps a process group from being orphaned: members whose parent is
// in another group of the same session. It ends when the parent has exited, and
// with it whoever adopts the members and is a tie as well; or when the members
// have.
type tie struct{ parents, members []int32 }

// orphanedGroups adds process groups with stopped members. Once nobody is left
// in their session who could continue them, the kernel sends them SIGHUP and
// SIGCONT (kill_orphaned_pgrp).
func (e *exits) orphanedGroups() {
	for i := range e.processes { // maps have no order
		p := int32(i)
		members := e.groups[e.processes[p].PGID]
		if len(members) > 0 && members[0] == p && slices.ContainsFunc(members, e.stopped) {
			e.orphanedGroup(members)
		}
	}
}

func (e *exits) stopped(p int32) bool { return e.processes[p].Stopped }

// orphanedGroup adds each way in which all ties of a group end. Beyond maxTies,
// the rest end all in one way.
func (e *exits) orphanedGroup(members []int32) {
	ties := e.ties(members)
	if len(ties) == 0 {
		return // it is orphaned
	}
	for way := range 1 << min(len(ties), maxTies) {
		var holders []int32
		for i, t := range ties {
			if way>>min(i, maxTies-1)&1 == 0 {
				holders = append(holders, t.parents...)
			} else {
				holders = append(holders, t.members...)
			}
		}
		e.orphan(sortDistinct(holders), members)
	}
}

func (e *exits) ties(members []int32) []tie {
	var ties []tie
	for _, m := range members {
		parents := e.tiedTo(m)
		if len(parents) == 0 {
			continue
		}
		i := slices.IndexFunc(ties, func(t tie) bool { return slices.Equal(t.parents, parents) })
		if i < 0 {
			i = len(ties)
			ties = append(ties, tie{parents: parents})
		}
		ties[i].members = append(ties[i].members, m)
	}
	return ties
}

// tiedTo are the parent of m and those who adopt it one after the other, as long
// as they tie its group to the session (will_become_orphaned_pgrp).
func (e *exits) tiedTo(m int32) []int32 {
	const globalInit = 1
	var parents []int32
	for a := e.kin[m].Parent; a >= 0 && len(parents) < maxReapers; a = e.reaper(a) {
		q := &e.processes[a]
		if !e.alive[a] || q.KernelPID == globalInit || slices.Contains(parents, a) ||
			q.PGID == e.processes[m].PGID || q.SID != e.processes[m].SID {
			break
		}
		parents = append(parents, a)
	}
	return parents
}

// orphan adds what SIGHUP and SIGCONT do to the members of a group once holders
// have exited. A stopped member acts on SIGHUP when SIGCONT has let it go on.
func (e *exits) orphan(holders, members []int32) {
	left := slices.DeleteFunc(slices.Clone(members), func(m int32) bool {
		_, gone := slices.BinarySearch(holders, m)
		return gone
	})
	if !slices.ContainsFunc(left, e.stopped) {
		return
	}
	f := e.begin()
	for _, m := range left {
		reaction := &e.processes[m].Signals
		switch {
		case !reaction.Deadly.Has(sigHUP):
			e.signal(f, m, sigHUP, reaction)
			e.signal(f, m, sigCONT, reaction)
		case e.stopped(m):
			f.ended, f.moved = append(f.ended, m), append(f.moved, m)
		default:
			f.ended = append(f.ended, m)
		}
	}
	e.emit(ChannelSignal, holders, f)
}
