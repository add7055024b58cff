package plan

import (
	"cmp"
	"slices"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// turns say which wakes come to whom, where several sleep in one line.
type turns struct {
	g     *waitgraph.Graph
	taken map[Wait]bool // whether at once, or passed on by others; nil: there is no line
}

// wakes reports whether source s, which fires, wakes w, at once or through others.
func (t *turns) wakes(w, s int32) (wakes, indirect bool) {
	if t.taken == nil || !t.g.InLine(s, w) {
		return true, false
	}
	direct, wakes := t.taken[Wait{w, s}]
	return wakes, wakes && !direct
}

// event is what a source that fires does to a line.
type event struct {
	source int32
	waitgraph.Turn
}

// takeTurns deals the wakes of all sources that fire, in the order in which order
// ends them: each goes to the first in the line who is not to die and was not woken
// by an earlier one. Who is to die takes none: it is signalled before.
func takeTurns(k *killSet, order []Member) turns {
	t := turns{g: k.g}
	events := make(map[int32][]event) // by line
	for _, s := range k.fired {
		for _, turn := range k.g.Turns(s) {
			events[turn.Line] = append(events[turn.Line], event{s, turn})
		}
	}
	if len(events) == 0 {
		return t
	}
	place := make([]int, len(k.in)) // by process
	for i, m := range order {
		place[m.Process] = i
	}
	ends := func(s int32) int {
		if k.state[s]&follows != 0 {
			return len(order)
		}
		last := 0
		for _, h := range k.g.Holders(s) {
			last = max(last, place[h])
		}
		return last
	}
	t.taken = make(map[Wait]bool)
	for line, list := range events {
		slices.SortFunc(list, func(a, b event) int {
			return cmp.Or(cmp.Compare(ends(a.source), ends(b.source)), cmp.Compare(a.source, b.source))
		})
		t.deal(list, k.sleepers(line))
	}
	return t
}

// deal gives the wakes of one line's events, in their order, to those who sleep in it.
func (t *turns) deal(events []event, asleep []int32) {
	first := asleep
	for _, e := range events {
		n := min(e.Wakes, len(first))
		for _, w := range first[:n] {
			t.taken[Wait{w, e.source}] = true
		}
		first = first[n:]
		if !e.PassedOn {
			continue
		}
		for _, w := range asleep {
			if wait := (Wait{w, e.source}); !t.taken[wait] {
				t.taken[wait] = false
			}
		}
	}
}

// sleepers are those in a line whom the kill does not end.
func (k *killSet) sleepers(line int32) []int32 {
	return slices.DeleteFunc(slices.Clone(k.g.Line(line)), func(p int32) bool {
		return k.dies(p) || !k.g.Processes[p].Alive()
	})
}
