package plan

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// decode reads a spec from bytes: a header, then for each process its parent
// and whether it is a target, then sources until the bytes end. Each byte
// string is some spec, so that the fuzzer wastes none.
func decode(data []byte) *spec {
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	head := next()
	s := &spec{processes: 1 + head%16}
	s.options.Dependents = Dependents(head / 16 % 3)
	everybody := head >= 128
	s.options.Protected = make([]bool, s.processes)
	for p := range s.processes {
		b := next()
		s.parent = append(s.parent, b%(s.processes+1)-1)
		s.options.Protected[p] = !everybody && b >= 240
		s.swap = append(s.swap, uint64(b/16))
		if (everybody || b&16 != 0) && !s.options.Protected[p] {
			s.targets = append(s.targets, int32(p))
		}
	}
	for len(data) > 0 {
		b := next()
		src := specSource{unaccounted: b >= 250}
		for range 1 + b%3 {
			src.holders = append(src.holders, next()%s.processes)
		}
		for range 1 + b/3%4 {
			src.waiters = append(src.waiters, next()%s.processes)
		}
		slices.Sort(src.holders)
		src.holders = slices.Compact(src.holders)
		s.sources = append(s.sources, src)
	}
	return s
}

// shuffled is the snapshot with descriptors and sleepers in another order.
func shuffled(s *waitgraph.Snapshot, r *rand.Rand) *waitgraph.Snapshot {
	d, sl := s.Descriptors, s.Sleepers
	r.Shuffle(len(d), func(i, j int) { d[i], d[j] = d[j], d[i] })
	r.Shuffle(len(sl), func(i, j int) { sl[i], sl[j] = sl[j], sl[i] })
	return s
}

// closed checks that the kill set is what the policy says, by the words of
// its definition: no process outside it would wake and may join, and each one
// inside is a target or may join and would wake without itself.
func (s *spec) closed(t testing.TB, g *waitgraph.Graph, p *Plan) {
	t.Helper()
	in := map[int32]bool{}
	for _, m := range p.Order {
		in[m.Process] = true
		if s.options.Protected != nil && s.options.Protected[m.Process] {
			t.Fatalf("protected process %d is killed: %+v", m.Process, s)
		}
	}
	for _, target := range s.targets {
		if !in[target] {
			t.Fatalf("target %d is not killed: %+v", target, s)
		}
	}
	for w := range int32(s.processes) {
		wakes := false
		for i := range s.sources {
			src := &s.sources[i]
			wakes = wakes || !src.unaccounted && src.waits(int(w)) &&
				!slices.ContainsFunc(src.holders, func(h int) bool { return !in[int32(h)] })
		}
		may := s.options.Dependents == DependentsAll ||
			s.options.Dependents == DependentsDescendants && s.descends(g, w, in)
		may = may && !s.options.Protected[w]
		if slices.Contains(s.targets, w) {
			continue
		}
		if want := wakes && may; want != in[w] {
			t.Fatalf("process %d killed: %v, want %v (wakes %v, may join %v): %+v", w, in[w], want, wakes, may, s)
		}
	}
}

// descends follows the graph's parents, at most as many as there are.
func (s *spec) descends(g *waitgraph.Graph, p int32, in map[int32]bool) bool {
	for range s.processes {
		if p = g.Parent(p); p < 0 {
			return false
		}
		if in[p] {
			return true
		}
	}
	return false
}

func FuzzMake(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 16, 1, 0, 0, 1})                                     // a child on its parent's pipe
	f.Add([]byte{129, 0, 0, 0, 0, 1, 0, 1, 0})                           // a mutual pair
	f.Add([]byte{131, 0, 0, 0, 0, 4, 0, 1, 2, 3, 4, 2, 3, 0, 1})         // shared sources
	f.Add([]byte{19, 16, 0, 0, 255, 0, 0, 1, 0, 1, 2, 0, 2, 3})          // a chain to a protected process
	f.Add([]byte{130, 0, 1, 2, 253, 0, 1, 251, 1, 0, 2, 0, 1, 2, 0})     // unaccounted
	f.Add([]byte{143, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 22, 33, 44, 55}) // many processes
	r := rand.New(rand.NewPCG(11, 12))
	for range 200 {
		data := make([]byte, 10+r.IntN(100))
		for i := range data {
			data[i] = byte(r.IntN(256))
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1000 {
			t.Skip("longer inputs only make the simulator slow")
		}
		s := decode(data)
		g, p, numbers := s.plan(t)
		s.check(t, p, numbers)
		s.closed(t, g, p)
		if s.processes <= 8 && len(p.Order) == s.processes {
			if feasible := s.feasible(); feasible != (len(p.Exposed) == 0) {
				t.Fatalf("feasible %v, exposed %v: %+v", feasible, p.Exposed, s)
			}
		}
		other := shuffled(s.snapshot(), rand.New(rand.NewPCG(uint64(len(data)), 13)))
		slices.Reverse(s.targets)
		if again := Make(waitgraph.New(other), s.targets, s.options); !reflect.DeepEqual(p, again) {
			t.Fatalf("the order of the input matters:\n%+v\n%+v", p, again)
		}
	})
}
