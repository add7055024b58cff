package plan

import "github.com/bpfkill/bpfkill/internal/waitgraph"

// queue holds processes that qualify for the next place, first in, first out.
// Those in spare have an unmet soft condition and go when nobody else can.
type queue struct {
	ready, spare []int32
}

// orderer builds the order backwards: the doc of the package says how.
type orderer struct {
	g   *waitgraph.Graph
	set *killSet

	unmet     []int32 // by process: conditions that fire, without a holder placed
	unmetSoft []int32 // by process: soft ones
	done      []bool  // by process: placed
	settled   []bool  // by source: a holder is placed

	queue   queue   // whoever qualifies, unless it belongs to the open knot
	placed  []int32 // last to be signalled first
	exposed []Wait

	knots *knots // nil until one is met
}

func newOrderer(k *killSet) *orderer {
	o := &orderer{
		g: k.g, set: k,
		unmet:     make([]int32, len(k.in)),
		unmetSoft: make([]int32, len(k.in)),
		done:      make([]bool, len(k.in)),
		settled:   make([]bool, len(k.state)),
		placed:    make([]int32, 0, k.size),
	}
	for s, state := range k.state {
		counter := o.unmet
		if state&fires == 0 {
			counter = o.unmetSoft
		}
		if state&(fires|soft) != 0 {
			for _, w := range k.g.Waiters(int32(s)) {
				counter[w]++
			}
		}
	}
	o.queue.ready = make([]int32, 0, k.size)
	return o
}

// run places every member of the kill set.
func (o *orderer) run() {
	for i := len(o.set.in) - 1; i >= 0; i-- {
		if o.set.in[i] && o.unmet[i] == 0 {
			o.qualify(int32(i))
		}
	}
	o.drain(&o.queue)
	if len(o.placed) < o.set.size {
		o.knots = newKnots(o)
		o.knots.untie()
	}
}

// qualify queues a process that has no unmet condition left.
func (o *orderer) qualify(p int32) {
	q := &o.queue
	if o.knots != nil && o.knots.open(p) {
		q = &o.knots.inner
	}
	if o.unmetSoft[p] == 0 {
		q.ready = append(q.ready, p)
	} else {
		q.spare = append(q.spare, p)
	}
}

// drain places whatever q holds and whatever that adds to it.
func (o *orderer) drain(q *queue) {
	ready, spare := 0, 0
	for {
		var p int32
		switch {
		case ready < len(q.ready):
			p = q.ready[ready]
			ready++
		case spare < len(q.spare):
			p = q.spare[spare]
			spare++
			if o.done[p] { // its soft conditions were met meanwhile
				continue
			}
		default:
			q.ready, q.spare = q.ready[:0], q.spare[:0]
			return
		}
		o.place(p)
	}
}

// place gives p the last free place and settles the sources that it holds.
func (o *orderer) place(p int32) {
	o.done[p] = true
	o.placed = append(o.placed, p)
	for _, s := range o.g.Held(p) {
		if o.settled[s] {
			continue
		}
		o.settled[s] = true
		switch state := o.set.state[s]; {
		case state&fires != 0:
			o.meet(o.g.Waiters(s))
		case state&soft != 0:
			o.meetSoft(o.g.Waiters(s))
		}
	}
}

// meet takes one condition off each waiter. Backwards, because the order is.
func (o *orderer) meet(waiters []int32) {
	for i := len(waiters) - 1; i >= 0; i-- {
		w := waiters[i]
		o.unmet[w]--
		switch {
		case o.done[w] || !o.set.in[w]:
		case o.unmet[w] == 0:
			o.qualify(w)
		case o.knots != nil:
			o.knots.loosened(w)
		}
	}
}

func (o *orderer) meetSoft(waiters []int32) {
	for i := len(waiters) - 1; i >= 0; i-- {
		w := waiters[i]
		o.unmetSoft[w]--
		if o.unmetSoft[w] == 0 && o.unmet[w] == 0 && !o.done[w] && o.set.in[w] {
			o.qualify(w)
		}
	}
}
