package plan

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestOrderIsComplete compares Make with every order of up to eight processes:
// wherever an order without early wakes exists, Make's has none, and wherever
// none exists, the exposed conditions are what its order violates.
func TestOrderIsComplete(t *testing.T) {
	graphs := 150_000
	if testing.Short() {
		graphs = 20_000
	}
	r := rand.New(rand.NewPCG(1, 2))
	possible, impossible := 0, 0
	for range graphs {
		s := randomSpec(r)
		_, p, numbers := s.plan(t)
		if len(p.Order) != s.processes {
			t.Fatalf("%d of %d processes ordered: %+v", len(p.Order), s.processes, s)
		}
		s.check(t, p, numbers)
		if s.feasible() {
			possible++
			if len(p.Exposed) > 0 {
				t.Fatalf("an order without early wakes exists, but not in the plan %v: %+v", p.order(), s)
			}
		} else {
			impossible++
			if len(p.Exposed) == 0 {
				t.Fatalf("no order is without early wakes, but nothing is exposed in %v: %+v", p.order(), s)
			}
		}
	}
	// A generator that only makes easy or only hopeless graphs shows nothing.
	if possible < graphs/5 || impossible < graphs/5 {
		t.Fatalf("%d possible and %d impossible graphs: too few of one kind", possible, impossible)
	}
	t.Logf("%d graphs with an order without early wakes, %d without", possible, impossible)
}

// TestKnotsCost compares the cost of what is exposed with the least over all
// orders. The choice within a knot is a heuristic (the best is NP-hard to
// find): it may cost more, by no more in total than is written here.
func TestKnotsCost(t *testing.T) {
	graphs := 30_000
	if testing.Short() {
		graphs = 5_000
	}
	r := rand.New(rand.NewPCG(3, 4))
	var cost, least uint64
	best, all := 0, 0
	for range graphs {
		s := randomSpec(r)
		g, p, _ := s.plan(t)
		if len(p.Exposed) == 0 {
			continue
		}
		mine := uint64(0)
		for _, w := range p.Exposed {
			mine += g.Cost(w.Waiter)
		}
		optimum := s.leastCost()
		if mine < optimum {
			t.Fatalf("order %v costs %d, less than the least %d: %+v", p.order(), mine, optimum, s)
		}
		cost, least, all = cost+mine, least+optimum, all+1
		if mine == optimum {
			best++
		}
	}
	if ratio := float64(cost) / float64(least); ratio > 1.10 {
		t.Errorf("exposed conditions cost %.3f times the least", ratio)
	}
	t.Logf("%d knotted graphs, %d at the least cost, %.3f of it in total", all, best, float64(cost)/float64(least))
}

// TestLines compares Make with the kernel's way to wake those who share an epoll
// instance: each call of it takes the first sleeper off its queue, whichever of the
// things that it watches calls. Some of the processes live.
func TestLines(t *testing.T) {
	graphs := 50_000
	if testing.Short() {
		graphs = 10_000
	}
	r := rand.New(rand.NewPCG(15, 16))
	spared, passedOn := 0, 0
	for range graphs {
		s := randomSpec(r)
		s.options.Dependents = DependentsNone
		s.targets = slices.DeleteFunc(s.targets, func(int32) bool { return r.IntN(3) == 0 })
		for range 1 + r.IntN(2) {
			line := &specLine{}
			for range 2 + r.IntN(6) { // a process of several threads may be there twice
				line.asleep = append(line.asleep, r.IntN(s.processes))
			}
			s.lines = append(s.lines, line)
		}
		for i := range s.sources {
			src := &s.sources[i]
			if r.IntN(4) == 0 {
				continue
			}
			src.line, src.calls, src.stays = s.lines[r.IntN(len(s.lines))], 1+r.IntN(2), r.IntN(4) == 0
			if r.IntN(4) > 0 {
				src.waiters = nil
			}
		}
		_, p, numbers := s.plan(t)
		s.check(t, p, numbers)
		for _, b := range p.Bystanders {
			if b.Indirect {
				passedOn++
			}
		}
		for _, c := range p.Conditions {
			if c.Fires && !slices.ContainsFunc(p.Bystanders, func(b Bystander) bool { return b.Wait == c.Wait }) &&
				!slices.Contains(p.order(), c.Waiter) {
				spared++
			}
		}
	}
	if spared < graphs/10 || passedOn < graphs/10 {
		t.Fatalf("%d waiters whose turn did not come, %d woken by others: too few to show anything", spared, passedOn)
	}
}

// TestBruteForceItself holds the two brute forces, which share work between
// orders, against a plain walk over all permutations.
func TestBruteForceItself(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 3_000 {
		s := randomSpec(r)
		if s.processes > 5 {
			continue
		}
		s.swap = nil
		least := ^uint64(0)
		permute(make([]int32, 0, s.processes), s.processes, func(order []int32) {
			early, _ := s.simulate(order)
			least = min(least, uint64(len(early)))
		})
		if got := s.leastCost(); got != least {
			t.Fatalf("least cost %d, all permutations say %d: %+v", got, least, s)
		}
		if got := s.feasible(); got != (least == 0) {
			t.Fatalf("feasible %v, all permutations say %d: %+v", got, least, s)
		}
	}
}

// permute calls visit with every order of n processes.
func permute(order []int32, n int, visit func([]int32)) {
	if len(order) == n {
		visit(order)
		return
	}
next:
	for p := range int32(n) {
		for _, q := range order {
			if p == q {
				continue next
			}
		}
		permute(append(order, p), n, visit)
	}
}
