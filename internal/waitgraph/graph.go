package waitgraph

import (
	"cmp"
	"slices"
)

// Source is one event that wakes: a side of an object loses its last holder.
type Source struct {
	Channel Channel

	// Unaccounted is set when the kernel counts more references than the
	// snapshot found holders for (a descriptor in flight in a socket, a
	// holder outside the pid namespace). Such a source is taken never to
	// fire. Found and Counted say by how much: files, or references of one
	// file, whichever did not add up first.
	Unaccounted    bool
	Found, Counted int64

	// Deadly is set where the waiters do not only wake, but die: by a signal.
	Deadly bool

	// Relayed is set where not the event wakes, but somebody whom it reaches and who
	// lives: that one stops, goes on, or reaps when it gets to run, and only then are
	// the waiters told.
	Relayed bool

	// Name says it to the user: "pipe:[4263]" for the write side,
	// "pipe:[4263] (read end)" for the read side.
	Name string

	// Holders are the processes that keep the source alive, ascending and
	// without duplicates. The waiters of this source wake when the last goes.
	Holders []int32
	// Waiters are the processes that would wake then, ascending and without
	// duplicates; a process that is itself a holder is not listed.
	Waiters []int32
}

// Graph answers who wakes when a set of processes dies. It is immutable once
// built and safe for concurrent use. The slices that its methods return are
// the graph's own: read them, never write.
type Graph struct {
	Processes []Process
	Sources   []Source

	// The same relation four times over, so that each question is one slice
	// of one array. Walking Sources instead would cost a cache miss for each
	// of a million sources.
	holders, waiters rows // by source
	held, waits      rows // by process

	lines [][]int32
	turns map[int32]turns // by source

	byPID  []int32 // visible processes, by pid, then start time
	parent []int32 // by process, -1 where unknown
}

// Held returns the sources that process p keeps alive, ascending.
func (g *Graph) Held(p int32) []int32 { return g.held.row(p) }

// Waits returns the sources whose last holder's death wakes process p,
// ascending. None of them is held by p.
func (g *Graph) Waits(p int32) []int32 { return g.waits.row(p) }

// Holders is Sources[s].Holders, without a visit to the Source itself.
func (g *Graph) Holders(s int32) []int32 { return g.holders.row(s) }

// Waiters is Sources[s].Waiters, without a visit to the Source itself.
func (g *Graph) Waiters(s int32) []int32 { return g.waiters.row(s) }

// Turn says how a source wakes those in a line.
type Turn struct {
	Line     int32
	Wakes    int  // so many are woken: the first who live and still sleep
	PassedOn bool // each wakes the next when it runs
}

// turns are what a source does to lines, and which of its waiters wake whoever
// is first there: those that sleep elsewhere, too.
type turns struct {
	list   []Turn
	anyway []int32 // ascending
}

// Turns lists the lines that a source wakes, by number.
func (g *Graph) Turns(s int32) []Turn { return g.turns[s].list }

// Line lists those who wait in a line, in the order of their turns, a process
// once for each of its threads there.
func (g *Graph) Line(l int32) []int32 { return g.lines[l] }

// InLine reports whether waiter w of source s sleeps only in lines that s wakes,
// so that it depends on those before it whether s wakes it.
func (g *Graph) InLine(s, w int32) bool {
	t, ok := g.turns[s]
	if !ok {
		return false
	}
	_, anyway := slices.BinarySearch(t.anyway, w)
	return !anyway
}

// Conditions is the number of wait conditions: one for each waiter of each
// source.
func (g *Graph) Conditions() int { return len(g.waiters.list) }

// Cost is what one wake of process p may cost: the bytes that it may bring
// back from swap, plus one, so that no wake is free.
func (g *Graph) Cost(p int32) uint64 { return g.Processes[p].SwapBytes + 1 }

// Parent returns the index of the real parent of process p, or -1 where it is
// not visible. Parents may form a cycle when pids were reused under the
// snapshot: whoever follows them must mark where it has been.
func (g *Graph) Parent(p int32) int32 { return g.parent[p] }

// Index returns the process that the caller's pid namespace numbers pid. Of
// two with the same number, because it was reused under the snapshot, it is
// the one that started last.
func (g *Graph) Index(pid int32) (int32, bool) {
	// The first that is beyond pid: its predecessor is the last that is pid.
	i, _ := slices.BinarySearchFunc(g.byPID, pid, func(p, pid int32) int {
		if g.Processes[p].PID <= pid {
			return -1
		}
		return 1
	})
	if i == 0 || g.Processes[g.byPID[i-1]].PID != pid {
		return -1, false
	}
	return g.byPID[i-1], true
}

// indexPIDs fills byPID and parent.
func (g *Graph) indexPIDs() {
	g.byPID = make([]int32, 0, len(g.Processes))
	for p := range g.Processes {
		if g.Processes[p].PID != 0 {
			g.byPID = append(g.byPID, int32(p))
		}
	}
	slices.SortStableFunc(g.byPID, func(a, b int32) int {
		x, y := &g.Processes[a], &g.Processes[b]
		return cmp.Or(cmp.Compare(x.PID, y.PID), cmp.Compare(x.StartNS, y.StartNS))
	})

	g.parent = make([]int32, len(g.Processes))
	lastPID, last := int32(0), int32(-1) // siblings are often neighbours
	for p := range g.Processes {
		child := &g.Processes[p]
		g.parent[p] = -1
		if child.PPID == 0 || child.PID == 0 {
			continue
		}
		if child.PPID != lastPID {
			lastPID, last = child.PPID, -1
			if i, ok := g.Index(lastPID); ok {
				last = i
			}
		}
		// A parent is its child's elder, and so is whoever adopts it: one
		// that is younger got the pid after the child was looked at.
		if last >= 0 && last != int32(p) && g.Processes[last].StartNS <= child.StartNS {
			g.parent[p] = last
		}
	}
}

// rows is a jagged array of int32 in two allocations: row i is
// list[start[i]:start[i+1]].
type rows struct {
	start, list []int32
}

func (r rows) row(i int32) []int32 {
	a, b := r.start[i], r.start[i+1]
	return r.list[a:b:b]
}

// offsets turns counts into where each row starts. start has two entries more
// than there are rows, with the count of row i in start[i+2]; afterwards row
// i begins at start[i+1], and whoever fills it moves that along to its end,
// which is where row i+1 begins. Once all are filled, start[:n+1] is as in
// rows: a counting sort, linear and stable.
func offsets(start []int32) {
	for i := 2; i < len(start); i++ {
		start[i] += start[i-1]
	}
}

// transpose turns rows of sources by process into rows of processes by
// source, or the other way round; n is the number of rows to come.
func transpose(r rows, n int) rows {
	start := make([]int32, n+2)
	for _, v := range r.list {
		start[v+2]++
	}
	offsets(start)
	list := make([]int32, len(r.list))
	for i := range len(r.start) - 1 {
		for _, v := range r.list[r.start[i]:r.start[i+1]] {
			list[start[v+1]] = int32(i)
			start[v+1]++
		}
	}
	return rows{start[:n+1], list}
}
