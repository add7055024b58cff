package plan

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// spec is a wait problem as a test states it, with none of the code under test
// in between: for each source who holds it and who waits on it. A waiter that
// is a holder too is allowed, and cannot be woken by that source.
type spec struct {
	processes int
	parent    []int // by process, -1 for none; nil for none at all
	swap      []uint64
	sources   []specSource
	lines     []*specLine
	targets   []int32
	options   Options
}

type specSource struct {
	holders, waiters []int
	unaccounted      bool
	line             *specLine // where waiters sleep; nil: each by itself
	calls            int       // of the line
	stays            bool      // and is passed on in the line
}

// specLine is an epoll instance on which processes sleep, in their order. Sources
// that name the same line wake the same sleepers.
type specLine struct{ asleep []int }

func (s *specSource) waits(p int) bool {
	waits := slices.Contains(s.waiters, p) || s.line != nil && slices.Contains(s.line.asleep, p)
	return waits && !slices.Contains(s.holders, p)
}

// snapshot states the problem as pipes: each source is a write end, and its
// waiters have the read end and sleep in epoll_wait.
func (s *spec) snapshot() *waitgraph.Snapshot {
	snap := &waitgraph.Snapshot{}
	for p := range s.processes {
		process := waitgraph.Process{
			Identity: waitgraph.Identity{PID: int32(100 + p), StartNS: uint64(p)},
			Comm:     string(rune('a' + p%26)), State: 'S', Threads: 1, KernelPID: int32(100 + p),
		}
		if s.parent != nil && s.parent[p] >= 0 {
			process.PPID = int32(100 + s.parent[p])
		}
		if s.swap != nil {
			process.SwapBytes = s.swap[p]
		}
		snap.Processes = append(snap.Processes, process)
	}
	for i, src := range s.sources {
		snap.Objects = append(snap.Objects, waitgraph.Object{
			Channel: waitgraph.ChannelPipe, Name: fmt.Sprintf("pipe:[%d]", i), Readers: 1, Writers: 1})
		file := waitgraph.File{Object: int32(i), End: waitgraph.EndWrite, Refs: int64(len(src.holders))}
		if src.unaccounted {
			file.Refs++
		}
		snap.Files = append(snap.Files, file)
		for _, h := range src.holders {
			snap.Descriptors = append(snap.Descriptors, waitgraph.Descriptor{
				Process: int32(h), File: int32(i), Table: int32(h), FD: 1})
		}
		for _, w := range src.waiters {
			snap.Sleepers = append(snap.Sleepers, waitgraph.Sleeper{
				Object: int32(i), Process: int32(w), Via: waitgraph.ViaEpoll, File: -1})
		}
		if src.line == nil {
			continue
		}
		for range src.calls {
			for _, w := range src.line.asleep {
				snap.Sleepers = append(snap.Sleepers, waitgraph.Sleeper{
					Object: int32(i), Process: int32(w), Via: waitgraph.ViaEpoll, File: -1,
					Line: s.lineNumber(src.line), PassedOn: src.stays})
			}
		}
	}
	for i, src := range s.sources {
		file := int32(len(snap.Files))
		snap.Files = append(snap.Files, waitgraph.File{Object: int32(i), End: waitgraph.EndRead})
		for w := range s.processes {
			if slices.Contains(src.waiters, w) || src.line != nil && slices.Contains(src.line.asleep, w) {
				snap.Files[file].Refs++
				snap.Descriptors = append(snap.Descriptors, waitgraph.Descriptor{
					Process: int32(w), File: file, Table: int32(w), FD: 0})
			}
		}
	}
	for i, line := range s.lines {
		snap.Lines = append(snap.Lines, nil)
		for _, w := range line.asleep {
			snap.Lines[i] = append(snap.Lines[i], int32(w))
		}
	}
	return snap
}

func (s *spec) lineNumber(line *specLine) int32 { return int32(slices.Index(s.lines, line)) + 1 }

// wake is one wake in a simulated kill: sources go by number in the spec.
type wake struct{ waiter, source int }

// simulate kills in order and says who wakes: early are processes of the
// order that were not signalled yet, others are the rest. In a line anybody
// may come first before its signal, but the others wake in turn, each once.
func (s *spec) simulate(order []int32) (early, others []wake) {
	dead, doomed := map[int]bool{}, map[int]bool{}
	for _, p := range order {
		doomed[int(p)] = true
	}
	asleep := map[*specLine][]int{}
	for _, line := range s.lines {
		asleep[line] = slices.DeleteFunc(slices.Clone(line.asleep), func(p int) bool { return doomed[p] })
	}
	for _, p := range order {
		dead[int(p)] = true
		for i := range s.sources {
			src := &s.sources[i]
			if src.unaccounted || !slices.Contains(src.holders, int(p)) ||
				slices.ContainsFunc(src.holders, func(h int) bool { return !dead[h] }) {
				continue
			}
			woken := map[int]bool{}
			for _, w := range src.waiters {
				woken[w] = true
			}
			for range src.calls {
				if line := asleep[src.line]; len(line) > 0 {
					woken[line[0]] = true
					asleep[src.line] = line[1:]
				}
			}
			for w := range s.processes {
				switch {
				case !src.waits(w) || dead[w]:
				case doomed[w]:
					early = append(early, wake{w, i})
				case woken[w] || src.stays:
					others = append(others, wake{w, i})
				}
			}
		}
	}
	return early, others
}

// masks are the sources that can fire when everybody dies, as bit sets.
func (s *spec) masks() (holders, waiters []uint16) {
	for i := range s.sources {
		src := &s.sources[i]
		if src.unaccounted {
			continue
		}
		var h, w uint16
		for _, p := range src.holders {
			h |= 1 << p
		}
		for _, p := range src.waiters {
			w |= 1 << p
		}
		if w &^= h; w != 0 && h != 0 {
			holders, waiters = append(holders, h), append(waiters, w)
		}
	}
	return holders, waiters
}

// leastCost is the cost of the cheapest order over all orders in which all
// processes can be killed: each early wake costs what waking costs. It goes
// forward over the sets of dead processes, which covers every order.
func (s *spec) leastCost() uint64 {
	holders, waiters := s.masks()
	n := s.processes
	best := make([]uint64, 1<<n)
	for dead := 1; dead < 1<<n; dead++ {
		best[dead] = ^uint64(0)
		for p := range n {
			bit := uint16(1) << p
			if uint16(dead)&bit == 0 {
				continue
			}
			cost := best[dead&^int(bit)]
			for i, h := range holders {
				if h&bit != 0 && h&^uint16(dead) == 0 {
					cost += s.price(waiters[i] &^ uint16(dead))
				}
			}
			best[dead] = min(best[dead], cost)
		}
	}
	return best[1<<n-1]
}

// price is the cost of waking all of a set.
func (s *spec) price(woken uint16) uint64 {
	if s.swap == nil {
		return uint64(bits.OnesCount16(woken))
	}
	cost := uint64(0)
	for ; woken != 0; woken &= woken - 1 {
		cost += s.swap[bits.TrailingZeros16(woken)] + 1
	}
	return cost
}

// feasible reports whether some order wakes nobody early, trying every one
// and leaving off where the first violation occurs.
func (s *spec) feasible() bool {
	holders, waiters := s.masks()
	all := uint16(1)<<s.processes - 1
	var tried [256]bool
	var try func(dead uint16) bool
	try = func(dead uint16) bool {
		if dead == all {
			return true
		}
		if tried[dead] {
			return false
		}
		tried[dead] = true
	next:
		for p := range s.processes {
			bit := uint16(1) << p
			if dead&bit != 0 {
				continue
			}
			for i, h := range holders {
				if h&bit != 0 && h&^(dead|bit) == 0 && waiters[i]&^(dead|bit) != 0 {
					continue next
				}
			}
			if try(dead | bit) {
				return true
			}
		}
		return false
	}
	return try(0)
}

// randomSpec draws a problem of at most eight processes, all of them targets.
// The shape is drawn first, so that sparse, dense, shared and mutual ones all
// occur often.
func randomSpec(r *rand.Rand) *spec {
	n := 1 + r.IntN(8)
	s := &spec{processes: n}
	for p := range n {
		s.targets = append(s.targets, int32(p))
	}
	if r.IntN(2) == 0 {
		for range n {
			s.swap = append(s.swap, uint64(r.IntN(50)))
		}
	}
	shape := r.IntN(5)
	sources := 1 + r.IntN(12)
	maxHolders, maxWaiters := 1+r.IntN(3), 1+r.IntN(3)
	rank := r.Perm(n) // for shapes that a hidden good order must satisfy
	for len(s.sources) < sources {
		var src specSource
		for range 1 + r.IntN(maxHolders) {
			src.holders = append(src.holders, r.IntN(n))
		}
		for range 1 + r.IntN(maxWaiters) {
			src.waiters = append(src.waiters, r.IntN(n))
		}
		switch shape {
		case 0: // anything goes
		case 1: // one holder, one waiter
			src.holders, src.waiters = src.holders[:1], src.waiters[:1]
		case 2: // a mutual pair
			a, b := src.holders[0], src.waiters[0]
			s.sources = append(s.sources, specSource{holders: []int{b}, waiters: []int{a}})
			src = specSource{holders: []int{a}, waiters: []int{b}}
		case 3: // a hidden order exists: some holder dies after each waiter
			last := slices.MaxFunc(src.holders, func(a, b int) int { return rank[a] - rank[b] })
			src.waiters = slices.DeleteFunc(src.waiters, func(w int) bool { return rank[w] >= rank[last] })
		case 4: // many holders, all wait
			for p := range n {
				src.waiters = append(src.waiters, p)
			}
		}
		src.unaccounted = r.IntN(16) == 0
		s.sources = append(s.sources, src)
	}
	for i := range s.sources { // a process holds and waits once
		src := &s.sources[i]
		slices.Sort(src.holders)
		src.holders = slices.Compact(src.holders)
	}
	return s
}

// plan plans a spec, and returns the sources' numbers in the spec by their
// index in the graph.
func (s *spec) plan(t testing.TB) (*waitgraph.Graph, *Plan, []int) {
	t.Helper()
	g := waitgraph.New(s.snapshot())
	numbers := make([]int, len(g.Sources))
	for i := range g.Sources {
		if _, err := fmt.Sscanf(g.Sources[i].Name, "pipe:[%d]", &numbers[i]); err != nil {
			t.Fatalf("source %q: %v", g.Sources[i].Name, err)
		}
	}
	return g, Make(g, s.targets, s.options), numbers
}

// order is the plan's order without roles.
func (p *Plan) order() []int32 {
	order := make([]int32, len(p.Order))
	for i, m := range p.Order {
		order[i] = m.Process
	}
	return order
}

func sortWakes(w []wake) []wake {
	slices.SortFunc(w, func(a, b wake) int {
		if a.waiter != b.waiter {
			return a.waiter - b.waiter
		}
		return a.source - b.source
	})
	return w
}

// check compares a plan with what the simulator makes of its order.
func (s *spec) check(t testing.TB, p *Plan, numbers []int) {
	t.Helper()
	early, others := s.simulate(p.order())
	var exposed, bystanders []wake
	for _, w := range p.Exposed {
		exposed = append(exposed, wake{int(w.Waiter), numbers[w.Source]})
	}
	for _, w := range p.Bystanders {
		bystanders = append(bystanders, wake{int(w.Waiter), numbers[w.Source]})
	}
	if !slices.Equal(sortWakes(early), sortWakes(exposed)) {
		t.Fatalf("order %v of %+v\nwakes early %v\nexposed     %v", p.order(), s, early, exposed)
	}
	if !slices.Equal(sortWakes(others), bystanders) {
		t.Fatalf("order %v of %+v\nwakes others %v\nbystanders   %v", p.order(), s, others, bystanders)
	}
	woken := map[int]bool{}
	for _, w := range append(early, others...) {
		woken[w.waiter] = true
	}
	if p.Predicted.Wakes != len(woken) {
		t.Fatalf("predicted %d wakes, simulated %d: %+v", p.Predicted.Wakes, len(woken), s)
	}
	seen := map[int32]bool{}
	for _, m := range p.Order {
		if seen[m.Process] {
			t.Fatalf("process %d signalled twice: %v", m.Process, p.order())
		}
		seen[m.Process] = true
	}
}
