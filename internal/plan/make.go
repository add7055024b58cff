package plan

import (
	"slices"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Make plans the kill of targets, which are indexes into g.Processes in any
// order. A target that must not be killed (protected, a kernel thread, the
// init of a pid namespace, outside the caller's pid namespace) or cannot be
// (already dead) is left out of the plan: it neither dies nor causes wakes.
func Make(g *waitgraph.Graph, targets []int32, o Options) *Plan {
	k := newKillSet(g, targets, o)
	p := &Plan{}
	p.Predicted.NaiveWakes, p.Predicted.NaiveSwapInBytes = k.naive()
	k.close()

	order := newOrderer(k)
	order.run()
	p.Exposed = order.exposed
	p.Order = make([]Member, len(order.placed))
	for i, m := range order.placed { // placed is backwards
		p.Order[len(p.Order)-1-i] = k.member(m)
	}
	k.describe(p)
	return p
}

// describe fills in what touches the kill set: conditions, bystanders,
// unaccounted sources, and how many processes wake.
func (k *killSet) describe(p *Plan) {
	turns := takeTurns(k, p.Order)
	n := 0
	for s := range k.state {
		if k.state[s]&held != 0 {
			n += len(k.g.Waiters(int32(s)))
			if k.state[s]&unaccounted != 0 {
				p.Unaccounted = append(p.Unaccounted, int32(s))
			}
		} else if k.state[s]&unaccounted != 0 && k.mayHide(int32(s)) {
			p.Unaccounted = append(p.Unaccounted, int32(s))
		}
	}
	p.Conditions = make([]Condition, 0, n)
	for i := range k.in {
		w, woken := int32(i), false
		for _, s := range k.g.Waits(w) {
			state := k.state[s]
			if k.in[w] || state&held != 0 {
				p.Conditions = append(p.Conditions, Condition{Wait{w, s}, state&(fires|follows) != 0})
			}
			if k.in[w] || state&(fires|follows) == 0 {
				continue
			}
			if wakes, indirect := turns.wakes(w, s); wakes {
				p.Bystanders = append(p.Bystanders, Bystander{
					Wait{w, s}, k.g.Processes[w].SwapBytes, indirect || state&follows != 0 || k.g.Sources[s].Relayed,
					k.g.Sources[s].Deadly,
				})
				woken = true
			}
		}
		if woken {
			p.Predicted.Wakes++
		}
	}
	// A process is placed once, so its exposed conditions are neighbours.
	for i := range p.Exposed {
		if i == 0 || p.Exposed[i].Waiter != p.Exposed[i-1].Waiter {
			p.Predicted.Wakes++
		}
	}
}

// mayHide reports whether source s, of which no holder was found, may end with the
// kill set, and wakes somebody else: a member may hold files that are in no table.
func (k *killSet) mayHide(s int32) bool {
	if len(k.g.Holders(s)) > 0 {
		return false
	}
	if k.hides == unknown {
		k.hides = no
		for p := range k.in {
			if k.dies(int32(p)) && k.g.Processes[p].HoldsUnseen {
				k.hides = yes
				break
			}
		}
	}
	// Who is outside the pid namespace waits for others there.
	return k.hides == yes && slices.ContainsFunc(k.g.Waiters(s), func(w int32) bool {
		return !k.in[w] && k.g.Processes[w].PID != 0
	})
}
