package plan

import (
	"math"
	"math/bits"
	"slices"
)

// A knot may spend this many times its size, and at least minimumBudget, on
// being taken apart again after each placement. On random graphs more of it
// lowered the number of exposed conditions by less than one in a hundred.
const (
	budgetFactor  = 1
	minimumBudget = 1 << 12
)

// tangle is a set of processes that wait on nothing unplaced outside the set,
// once the tangles on top of it in the stack are gone.
type tangle struct {
	members []int32
	knot    int32 // the knot that it is, or is left of
	tick    int32 // when it was found to be strongly connected; -1: not yet
}

// knots unties what no order satisfies.
type knots struct {
	*orderer
	inner queue // members of the current knot that qualify

	knotOf  []int32 // by process: its knot, -1 until found
	current int32   // the knot being placed, -1 between knots
	last    int32   // the number of the latest knot found
	budget  int     // what the current knot may still spend

	// tick counts placements by violation; loosenedAt says, by process, when
	// it last lost a condition. A tangle none of whose members changed since
	// it was found is still strongly connected.
	tick       int32
	loosenedAt []int32

	components *components
	work       int  // nodes and edges that components looked at, in all
	heap       heap // members of the current tangle, if it goes by cost
}

func newKnots(o *orderer) *knots {
	n := len(o.done)
	k := &knots{
		orderer: o,
		knotOf:  make([]int32, n), current: -1, last: -1,
		loosenedAt: make([]int32, n), heap: heap{position: make([]int32, n)},
		components: newComponents(o),
	}
	for i := range k.knotOf {
		k.knotOf[i] = -1
	}
	return k
}

// open reports whether p belongs to the knot being placed.
func (k *knots) open(p int32) bool { return k.current >= 0 && k.knotOf[p] == k.current }

// loosened notes that p, still waiting, lost a condition.
func (k *knots) loosened(p int32) {
	k.loosenedAt[p] = k.tick
	if k.heap.contains(p) {
		k.heap.lower(priced{k.cost(p), p})
	}
}

// untie places everything that is left.
func (k *knots) untie() {
	var rest []int32
	for i := range k.done {
		if k.set.in[i] && !k.done[i] {
			rest = append(rest, int32(i))
		}
	}
	stack := k.apart(nil, rest, -1)
	for len(stack) > 0 {
		t := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if t.knot != k.current {
			k.enter(t)
		}
		members := k.unplaced(t.members)
		switch {
		case len(members) == 0:
		case t.tick >= 0 && len(members) == len(t.members) && !k.changed(t):
			k.violate(k.cheapest(members))
			stack = append(stack, tangle{members, t.knot, -1})
		case k.budget > 0:
			stack = k.apart(stack, members, t.knot)
		default:
			k.byCost(members)
			stack = k.apart(stack, k.unplaced(members), t.knot)
		}
	}
	k.current = -1
	k.drain(&k.queue)
}

// enter closes the current knot: what it freed elsewhere goes next, then the
// knot that t is of.
func (k *knots) enter(t tangle) {
	k.current = -1
	k.drain(&k.queue)
	k.current = t.knot
	size := 0
	for _, p := range t.members {
		size += 1 + len(k.g.Waits(p)) + len(k.g.Held(p))
	}
	k.budget = max(budgetFactor*size, minimumBudget)
}

// apart pushes the strongly connected components of members, so that those
// that wait on others come out of the stack after them. Components of one
// process are no knots: once what it waits on is placed, it qualifies.
func (k *knots) apart(stack []tangle, members []int32, knot int32) []tangle {
	list, ends, work := k.components.find(members)
	k.budget -= work
	k.work += work
	for i := len(ends) - 1; i >= 0; i-- {
		begin := int32(0)
		if i > 0 {
			begin = ends[i-1]
		}
		component := list[begin:ends[i]]
		if len(component) < 2 {
			continue
		}
		t := tangle{component, knot, k.tick}
		if knot < 0 {
			k.last++
			t.knot = k.last
			for _, p := range component {
				k.knotOf[p] = k.last
			}
		}
		stack = append(stack, t)
	}
	return stack
}

// unplaced drops from members those that are placed, in place.
func (k *knots) unplaced(members []int32) []int32 {
	return slices.DeleteFunc(members, func(p int32) bool { return k.done[p] })
}

// changed reports whether t may have come apart since it was found.
func (k *knots) changed(t tangle) bool {
	for _, p := range t.members {
		if k.loosenedAt[p] > t.tick {
			return true
		}
	}
	return false
}

// cost is what placing p now would cost: one wake for each unmet condition.
func (k *knots) cost(p int32) uint64 {
	hi, lo := bits.Mul64(uint64(k.unmet[p]), k.g.Cost(p))
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

// cheapest is the member whose unmet conditions cost least; of several, the
// first by identity.
func (k *knots) cheapest(members []int32) int32 {
	best, least := members[0], k.cost(members[0])
	for _, p := range members[1:] {
		if c := k.cost(p); c < least || c == least && p < best {
			best, least = p, c
		}
	}
	return best
}

// violate places p against its unmet conditions, then whatever of the same
// knot that frees.
func (k *knots) violate(p int32) {
	k.tick++
	for _, s := range k.g.Waits(p) {
		if k.set.state[s]&fires != 0 && !k.settled[s] {
			k.exposed = append(k.exposed, Wait{p, s})
		}
	}
	k.place(p)
	k.drain(&k.inner)
}

// byCost places members cheapest first, until half of them are placed: to take
// the rest apart then is worth its price, since it halves each time.
func (k *knots) byCost(members []int32) {
	for _, p := range members {
		k.heap.push(priced{k.cost(p), p})
	}
	for enough := len(k.placed) + (len(members)+1)/2; len(k.placed) < enough; {
		p, ok := k.heap.pop()
		if !ok {
			break
		}
		if !k.done[p] {
			k.violate(p)
		}
	}
	k.heap.clear()
}
