package plan

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestLargeKnots covers knots that are too large to be taken apart after each
// placement. Here the exposed conditions are checked by position: a condition
// is violated when all its holders are signalled before its waiter.
func TestLargeKnots(t *testing.T) {
	const n = 4_000
	for _, test := range []struct {
		name     string
		snapshot *waitgraph.Snapshot
		least    int // exposed conditions at the least, and at the most
		most     int
	}{
		{"no knot", waitsOnEarlier(n), 0, 0},
		{"pairs", mutualPairs(n), n / 2, n / 2},
		{"one knot that is a chain", mutualChain(n), n - 1, n - 1},
		{"two halves on two shared pipes", sharedPipe(n), 1, 1},
		{"one large random knot", waitsOnRandom(n), 1, 10*n/2 - 1}, // a random order has half
	} {
		t.Run(test.name, func(t *testing.T) {
			g := waitgraph.New(test.snapshot)
			p := Make(g, everybody(n), Options{})
			at := make([]int, n)
			for i := range at {
				at[i] = -1
			}
			for i, m := range p.Order {
				at[m.Process] = i
			}
			if i := slices.Index(at, -1); i >= 0 || len(p.Order) != n {
				t.Fatalf("%d in the order, process %d missing", len(p.Order), i)
			}
			var violated [][2]int
			for s := range g.Sources {
				last := -1
				for _, h := range g.Holders(int32(s)) {
					last = max(last, at[h])
				}
				for _, w := range g.Waiters(int32(s)) {
					if at[w] > last {
						violated = append(violated, [2]int{int(w), s})
					}
				}
			}
			exposed := pairs(p.Exposed, func(w Wait) Wait { return w })
			for _, list := range [][][2]int{violated, exposed} {
				slices.SortFunc(list, func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
			}
			if !slices.Equal(violated, exposed) {
				t.Fatalf("%d conditions violated, %d exposed", len(violated), len(exposed))
			}
			if len(exposed) < test.least || len(exposed) > test.most {
				t.Errorf("%d conditions exposed, want %d to %d", len(exposed), test.least, test.most)
			}
			t.Logf("%d of %d conditions exposed", len(exposed), g.Conditions())
		})
	}
}

// TestKnotsStayTogether: the members of each of many knots are neighbours.
func TestKnotsStayTogether(t *testing.T) {
	const n = 1_000
	p := Make(waitgraph.New(mutualPairs(n)), everybody(n), Options{})
	for i := 0; i < n; i += 2 {
		if a, b := p.Order[i].Process, p.Order[i+1].Process; a/2 != b/2 {
			t.Fatalf("processes %d and %d of different pairs are neighbours at %d", a, b, i)
		}
	}
}

// TestUntyingIsLinear counts what is looked at, since time depends on the
// machine: ten times the knot may take ten times the work, and a little more
// for taking it apart at each halving, but not a hundred times.
func TestUntyingIsLinear(t *testing.T) {
	for _, test := range []struct {
		name  string
		build func(n int) *waitgraph.Snapshot
	}{
		{"pairs", mutualPairs}, {"chain", mutualChain}, {"random", waitsOnRandom}, {"shared", sharedPipe},
	} {
		work := func(n int) int {
			g := waitgraph.New(test.build(n))
			k := newKillSet(g, everybody(n), Options{})
			k.close()
			o := newOrderer(k)
			o.run()
			return o.knots.work
		}
		if small, large := work(1_000), work(10_000); large > 15*small {
			t.Errorf("%s: %d steps for 1,000 processes, %d for 10,000", test.name, small, large)
		}
	}
}

func TestHeap(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	for range 200 {
		n := 1 + r.IntN(50)
		h := heap{position: make([]int32, n)}
		want := make([]priced, n)
		for p := range want {
			want[p] = priced{uint64(r.IntN(40)), int32(p)}
			h.push(want[p])
		}
		for range r.IntN(30) {
			if e := &want[r.IntN(n)]; e.cost > 0 {
				e.cost -= 1 + uint64(r.IntN(int(e.cost)))
				h.lower(*e)
			}
		}
		slices.SortFunc(want, func(a, b priced) int {
			return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.process, b.process))
		})
		for i, e := range want {
			if p, ok := h.pop(); !ok || p != e.process || h.contains(p) {
				t.Fatalf("process %d, %v at %d, want %d", p, ok, i, e.process)
			}
		}
		if p, ok := h.pop(); ok {
			t.Fatalf("process %d out of an empty heap", p)
		}
	}
}
