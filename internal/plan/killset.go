package plan

import (
	"strconv"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// What the kill does to a source.
const (
	held        uint8 = 1 << iota // some holder is in the kill set
	fires                         // all are, and all are accounted for
	soft                          // all that were found are, but some were not found
	unaccounted                   // as in the graph
	partly                        // some holder dies of the kill without being in it
	follows                       // fires, but for those
)

// killSet is the set of processes to kill, and what follows for each source.
type killSet struct {
	g       *waitgraph.Graph
	options Options

	in     []bool  // by process
	target []bool  // by process
	cause  []int32 // by process: the source that made a dependent join
	under  []int32 // by process: its nearest target ancestor, or -1; not under DependentsNone
	state  []uint8 // by source
	alive  []int32 // by source: holders outside the kill set
	fired  []int32 // sources that fire or follow, in the order found
	lost   []bool  // by process: outside the set, and dies of it; nil: nobody
	size   int
	hides  answer // whether some member may hold what no descriptor shows
}

// answer is one that is looked for when it is first asked for.
type answer uint8

const (
	unknown answer = iota
	no
	yes
)

func newKillSet(g *waitgraph.Graph, targets []int32, o Options) *killSet {
	k := &killSet{
		g: g, options: o,
		in:     make([]bool, len(g.Processes)),
		target: make([]bool, len(g.Processes)),
		cause:  make([]int32, len(g.Processes)),
		state:  make([]uint8, len(g.Sources)),
		alive:  make([]int32, len(g.Sources)),
		fired:  make([]int32, 0, len(g.Sources)),
	}
	for _, t := range targets {
		if k.killable(t) && !k.in[t] {
			k.in[t], k.target[t] = true, true
			k.size++
		}
	}
	if o.Dependents != DependentsNone {
		k.markDescendants()
	}
	// Sources in order rather than through the targets: the memory is then
	// read in order too.
	for i := range g.Sources {
		s := int32(i)
		if g.Sources[i].Unaccounted {
			k.state[s] = unaccounted
		}
		holders, dead := g.Holders(s), int32(0)
		for _, h := range holders {
			if k.in[h] {
				dead++
			}
		}
		k.alive[s] = int32(len(holders)) - dead
		if dead > 0 {
			k.state[s] |= held
			k.settle(s)
		}
	}
	return k
}

// killable reports whether p may be killed at all, whatever the policy.
func (k *killSet) killable(p int32) bool {
	if int(p) < len(k.options.Protected) && k.options.Protected[p] {
		return false
	}
	process := &k.g.Processes[p]
	return process.PID != 0 && !process.KernelThread && !process.NamespaceInit && process.Alive()
}

// joins reports whether p joins the kill set when source s would wake it. To
// descend from a dependent adds nothing: under the policy that asks, every
// dependent descends from a target itself. Who waits for the exit itself, as
// shells and supervisors do, does not depend on the process: it is not killed
// for being told, unless it descends from a target.
func (k *killSet) joins(p, s int32) bool {
	switch k.options.Dependents {
	case DependentsAll:
		c := k.g.Sources[s].Channel
		return (k.under[p] >= 0 || c != waitgraph.ChannelChild && c != waitgraph.ChannelPidfd) && k.killable(p)
	case DependentsDescendants:
		return k.under[p] >= 0 && k.killable(p)
	}
	return false
}

// markDescendants fills in under. Each target marks what is below it and
// leaves what is below another target to that one, so each process is marked
// once, even where the parents form a cycle.
func (k *killSet) markDescendants() {
	n := len(k.in)
	k.under = make([]int32, n)
	child, sibling := make([]int32, n), make([]int32, n)
	for i := range child {
		k.under[i], child[i] = -1, -1
	}
	for i := n - 1; i >= 0; i-- { // backwards: each list comes out ascending
		if parent := k.g.Parent(int32(i)); parent >= 0 {
			sibling[i], child[parent] = child[parent], int32(i)
		}
	}
	var stack []int32
	for i := range k.target {
		if !k.target[i] {
			continue
		}
		for stack = append(stack[:0], int32(i)); len(stack) > 0; {
			top := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			for c := child[top]; c >= 0; c = sibling[c] {
				if k.under[c] < 0 {
					k.under[c] = int32(i)
					if !k.target[c] {
						stack = append(stack, c)
					}
				}
			}
		}
	}
}

// settle notes what follows once no holder of s is left alive.
func (k *killSet) settle(s int32) {
	switch {
	case k.alive[s] > 0:
	case k.state[s]&unaccounted != 0:
		k.state[s] |= soft
	case k.state[s]&partly != 0:
		k.state[s] |= follows
		k.fired = append(k.fired, s)
	default:
		k.state[s] |= fires
		k.fired = append(k.fired, s)
	}
}

// lose notes that p dies of a signal that source s sends: what it holds goes,
// too, though not by our hand. Its place in the order is nobody's to choose.
func (k *killSet) lose(p int32) {
	if k.lost == nil {
		k.lost = make([]bool, len(k.in))
	}
	if k.lost[p] {
		return
	}
	k.lost[p] = true
	for _, s := range k.g.Held(p) {
		k.alive[s]--
		k.state[s] |= partly
		k.settle(s)
	}
}

// close adds dependents until nothing changes.
func (k *killSet) close() {
	for i := 0; i < len(k.fired); i++ { // grows meanwhile
		for _, w := range k.g.Waiters(k.fired[i]) {
			switch {
			case k.in[w]:
			case k.joins(w, k.fired[i]):
				k.join(w, k.fired[i])
			case k.g.Sources[k.fired[i]].Deadly:
				k.lose(w)
			}
		}
	}
}

// join adds a dependent because of source s.
func (k *killSet) join(p, s int32) {
	k.in[p], k.cause[p] = true, s
	k.size++
	if k.lost != nil && k.lost[p] { // what it holds is gone already
		k.lost[p] = false
		for _, s := range k.g.Held(p) {
			k.state[s] |= held
		}
		return
	}
	for _, s := range k.g.Held(p) {
		k.alive[s]--
		k.state[s] |= held
		k.settle(s)
	}
}

// dies reports whether the kill ends p: as one of the set, or outside of it.
func (k *killSet) dies(p int32) bool { return k.in[p] || k.lost != nil && k.lost[p] }

// naive counts who would wake if only the targets died, and their swapped-out
// bytes. It is called before close, when the set is the targets.
func (k *killSet) naive() (wakes int, swap uint64) {
	turns := takeTurns(k, nil)
	for i := range k.in {
		if k.in[i] {
			continue
		}
		for _, s := range k.g.Waits(int32(i)) {
			if k.state[s]&fires == 0 {
				continue
			}
			if woken, _ := turns.wakes(int32(i), s); woken {
				wakes++
				swap += k.g.Processes[i].SwapBytes
				break
			}
		}
	}
	return wakes, swap
}

// member says who p is and why it is here.
func (k *killSet) member(p int32) Member {
	if k.target[p] {
		return Member{Process: p, Role: RoleTarget}
	}
	s := k.cause[p]
	name := k.g.Sources[s].Name
	because := ""
	if k.options.Dependents == DependentsDescendants {
		because = "descendant of " + label(k.g, k.under[p]) + ", waits on " + name
	} else {
		holders := k.g.Holders(s)
		because = "waits on " + name + ", held by " + label(k.g, holders[0])
		if others := len(holders) - 1; others > 0 {
			because += " and " + strconv.Itoa(others) + " more"
		}
	}
	return Member{Process: p, Role: RoleDependent, Because: because}
}

// label is Process.String without fmt: it is called for each dependent.
func label(g *waitgraph.Graph, p int32) string {
	return g.Processes[p].Comm + "[" + strconv.Itoa(int(g.Processes[p].PID)) + "]"
}
