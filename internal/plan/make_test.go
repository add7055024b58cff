package plan

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// pairs are (waiter, source) as tests write them.
func pairs[T any](list []T, wait func(T) Wait) [][2]int {
	var out [][2]int
	for _, v := range list {
		w := wait(v)
		out = append(out, [2]int{int(w.Waiter), int(w.Source)})
	}
	return out
}

// TestKillSet has one row for each rule of who dies and who merely wakes.
// Processes are a[100], b[101]…; source i is pipe:[i].
func TestKillSet(t *testing.T) {
	// a is the server; b its child and c a stranger, both asleep on a's pipe.
	incident := []specSource{{holders: []int{0}, waiters: []int{1, 2}}}
	// a, then b, then c, then d: each asleep on the one before it.
	chain := []specSource{
		{holders: []int{0}, waiters: []int{1}},
		{holders: []int{1}, waiters: []int{2}},
		{holders: []int{2}, waiters: []int{3}},
	}
	all, none := Options{Dependents: DependentsAll}, Options{Dependents: DependentsNone}
	for _, test := range []struct {
		name string
		spec
		change     func(g *waitgraph.Snapshot)
		order      []int32
		because    []string
		bystanders [][2]int
		naive      int
		wakes      int
	}{
		{name: "a descendant joins, a stranger is a bystander",
			spec:  spec{processes: 3, parent: []int{-1, 0, -1}, sources: incident, targets: []int32{0}},
			order: []int32{1, 0}, because: []string{"descendant of a[100], waits on pipe:[0]", ""},
			bystanders: [][2]int{{2, 0}}, naive: 2, wakes: 1},
		{name: "all dependents join",
			spec:    spec{processes: 3, parent: []int{-1, 0, -1}, sources: incident, targets: []int32{0}, options: all},
			order:   []int32{1, 2, 0},
			because: []string{"waits on pipe:[0], held by a[100]", "waits on pipe:[0], held by a[100]", ""}, naive: 2},
		{name: "all: who waits for its child's exit joins, if it descends from a target",
			spec:   spec{processes: 3, parent: []int{-1, 0, 1}, targets: []int32{0}, options: all, sources: incident[:0]},
			change: both(addPipe(0, 2), awaitsItsChild(-1, 0, 1)),
			order:  []int32{1, 2, 0}, naive: 1,
			because: []string{"waits on exit of 102, held by c[102]", "waits on pipe:[0], held by a[100]", ""}},
		{name: "all: a stranger who does wakes",
			spec:   spec{processes: 3, parent: []int{-1, -1, 1}, targets: []int32{0}, options: all, sources: incident[:0]},
			change: both(addPipe(0, 2), awaitsItsChild(-1, -1, 1)),
			order:  []int32{2, 0}, because: []string{"waits on pipe:[0], held by a[100]", ""},
			bystanders: [][2]int{{1, 2}}, naive: 1, wakes: 1},
		{name: "none joins",
			spec:  spec{processes: 3, parent: []int{-1, 0, -1}, sources: incident, targets: []int32{0}, options: none},
			order: []int32{0}, because: []string{""}, bystanders: [][2]int{{1, 0}, {2, 0}}, naive: 2, wakes: 2},
		{name: "the closure follows a chain",
			spec:  spec{processes: 4, parent: []int{-1, 0, 1, 2}, sources: chain, targets: []int32{0}},
			order: []int32{3, 2, 1, 0},
			because: []string{"descendant of a[100], waits on pipe:[2]", "descendant of a[100], waits on pipe:[1]",
				"descendant of a[100], waits on pipe:[0]", ""}, naive: 1},
		{name: "the chain stops at a bystander",
			spec:  spec{processes: 4, parent: []int{-1, 0, -1, 2}, sources: chain, targets: []int32{0}},
			order: []int32{1, 0}, because: []string{"descendant of a[100], waits on pipe:[0]", ""},
			bystanders: [][2]int{{2, 1}}, naive: 1, wakes: 1},
		{name: "a grandchild descends from the nearest target, past a process that stays",
			spec: spec{processes: 4, parent: []int{-1, 0, 1, 2}, targets: []int32{0, 1},
				sources: []specSource{{holders: []int{0}, waiters: []int{3}}}},
			order: []int32{0 + 3, 0, 1}, because: []string{"descendant of b[101], waits on pipe:[0]", "", ""}, naive: 1},
		{name: "a living holder keeps the source",
			spec: spec{processes: 3, targets: []int32{0}, options: all,
				sources: []specSource{{holders: []int{0, 2}, waiters: []int{1}}}},
			order: []int32{0}, because: []string{""}},
		{name: "a dependent that is the other holder takes the source along",
			spec: spec{processes: 4, targets: []int32{0}, options: all, sources: []specSource{
				{holders: []int{0}, waiters: []int{2}},
				{holders: []int{0, 2}, waiters: []int{1}}}},
			order: []int32{1, 2, 0}, naive: 1,
			because: []string{"waits on pipe:[1], held by a[100] and 1 more", "waits on pipe:[0], held by a[100]", ""}},
		{name: "an unaccounted source never fires",
			spec: spec{processes: 2, targets: []int32{0}, options: all,
				sources: []specSource{{holders: []int{0}, waiters: []int{1}, unaccounted: true}}},
			order: []int32{0}, because: []string{""}},
		{name: "protected: a bystander instead",
			spec: spec{processes: 2, targets: []int32{0}, sources: incident[:0],
				options: Options{Dependents: DependentsAll, Protected: []bool{false, true}}},
			change: addPipe(0, 1), order: []int32{0}, because: []string{""}, bystanders: [][2]int{{1, 0}}, naive: 1, wakes: 1},
		{name: "a protected target lives",
			spec: spec{processes: 2, targets: []int32{0, 1},
				options: Options{Protected: []bool{true}}},
			change: addPipe(0, 1), order: []int32{1}, because: []string{""}},
		{name: "a kernel thread is a bystander", spec: spec{processes: 2, targets: []int32{0}, options: all},
			change: both(addPipe(0, 1), func(s *waitgraph.Snapshot) { s.Processes[1].KernelThread = true }),
			order:  []int32{0}, because: []string{""}, bystanders: [][2]int{{1, 0}}, naive: 1, wakes: 1},
		{name: "the init of a namespace is a bystander", spec: spec{processes: 2, targets: []int32{0}, options: all},
			change: both(addPipe(0, 1), func(s *waitgraph.Snapshot) { s.Processes[1].NamespaceInit = true }),
			order:  []int32{0}, because: []string{""}, bystanders: [][2]int{{1, 0}}, naive: 1, wakes: 1},
		{name: "who is outside the pid namespace is a bystander", spec: spec{processes: 2, targets: []int32{0}, options: all},
			change: both(addPipe(0, 1), func(s *waitgraph.Snapshot) { s.Processes[1].PID = 0 }),
			order:  []int32{0}, because: []string{""}, bystanders: [][2]int{{1, 0}}, naive: 1, wakes: 1},
		{name: "a zombie neither wakes nor dies again", spec: spec{processes: 2, targets: []int32{0, 1}, options: all},
			change: both(addPipe(0, 1), func(s *waitgraph.Snapshot) { s.Processes[1].State, s.Processes[1].Threads = 'Z', 1 }),
			order:  []int32{0}, because: []string{""}},
		{name: "a target named twice dies once", spec: spec{processes: 2, targets: []int32{1, 0, 1}},
			order: []int32{0, 1}, because: []string{"", ""}},
		{name: "nobody", spec: spec{processes: 2}, order: []int32{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			snapshot := test.snapshot()
			if test.change != nil {
				test.change(snapshot)
			}
			p := Make(waitgraph.New(snapshot), test.targets, test.options)
			var because []string
			for _, m := range p.Order {
				because = append(because, m.Because)
				if want := slices.Contains(test.targets, m.Process); (m.Role == RoleTarget) != want {
					t.Errorf("process %d is a %v", m.Process, m.Role)
				}
			}
			if !slices.Equal(p.order(), test.order) || !slices.Equal(because, test.because) {
				t.Errorf("order %v because %q\nwant  %v because %q", p.order(), because, test.order, test.because)
			}
			got := pairs(p.Bystanders, func(b Bystander) Wait { return b.Wait })
			if !reflect.DeepEqual(got, test.bystanders) {
				t.Errorf("bystanders %v, want %v", got, test.bystanders)
			}
			if p.Predicted.NaiveWakes != test.naive || p.Predicted.Wakes != test.wakes {
				t.Errorf("predicted %+v, want %d naively and %d", p.Predicted, test.naive, test.wakes)
			}
		})
	}
}

// awaitsItsChild has process 1 wait for the exit of a child, in a family whose parents
// are these.
func awaitsItsChild(parents ...int32) func(*waitgraph.Snapshot) {
	return func(s *waitgraph.Snapshot) {
		for _, parent := range parents {
			s.Kin = append(s.Kin, waitgraph.Kin{Parent: parent, Tracer: -1, VforkCaller: -1, ExitSignal: int32(unix.SIGCHLD), ExitQueue: -1, SignalQueue: -1})
		}
		s.ChildWaits = []waitgraph.ChildWait{{Process: 1, Child: -1}}
	}
}

// addPipe gives the snapshot, which must have none, one pipe.
func addPipe(writer, reader int) func(*waitgraph.Snapshot) {
	return func(s *waitgraph.Snapshot) {
		one := spec{sources: []specSource{{holders: []int{writer}, waiters: []int{reader}}}}
		from := one.snapshot()
		s.Objects, s.Files, s.Descriptors, s.Sleepers = from.Objects, from.Files, from.Descriptors, from.Sleepers
	}
}

func both(f, g func(*waitgraph.Snapshot)) func(*waitgraph.Snapshot) {
	return func(s *waitgraph.Snapshot) { f(s); g(s) }
}

// TestFigures covers costs, conditions and unaccounted sources.
func TestFigures(t *testing.T) {
	s := spec{
		processes: 5, swap: []uint64{1, 10, 100, 1000, 10000}, targets: []int32{0, 1},
		sources: []specSource{
			{holders: []int{0}, waiters: []int{1, 2}},                 // fires
			{holders: []int{0, 1}, waiters: []int{2, 3}},              // fires
			{holders: []int{1, 4}, waiters: []int{3}},                 // 4 lives
			{holders: []int{0}, waiters: []int{4}, unaccounted: true}, // never fires
			{holders: []int{3}, waiters: []int{4}},                    // does not touch the kill set
			{holders: []int{4}, waiters: []int{0}},                    // its waiter is in the kill set
		},
	}
	_, p, _ := s.plan(t)
	var fires []bool
	for _, c := range p.Conditions {
		fires = append(fires, c.Fires)
	}
	got := pairs(p.Conditions, func(c Condition) Wait { return c.Wait })
	want := [][2]int{{0, 5}, {1, 0}, {2, 0}, {2, 1}, {3, 1}, {3, 2}, {4, 3}}
	if !reflect.DeepEqual(got, want) || !slices.Equal(fires, []bool{false, true, true, true, true, false, false}) {
		t.Errorf("conditions %v firing %v", got, fires)
	}
	if !slices.Equal(p.Unaccounted, []int32{3}) {
		t.Errorf("unaccounted %v", p.Unaccounted)
	}
	wantBystanders := []Bystander{{Wait: Wait{2, 0}, SwapBytes: 100}, {Wait: Wait{2, 1}, SwapBytes: 100}, {Wait: Wait{3, 1}, SwapBytes: 1000}}
	if !slices.Equal(p.Bystanders, wantBystanders) {
		t.Errorf("bystanders %v, want %v", p.Bystanders, wantBystanders)
	}
	if want := (Predicted{NaiveWakes: 2, NaiveSwapInBytes: 1100, Wakes: 2}); p.Predicted != want {
		t.Errorf("predicted %+v, want %+v", p.Predicted, want)
	}
}

// TestHoldersThatWereNotFound: a source of which no holder was found may end with the
// kill set only if a member may hold what is in no descriptor table.
func TestHoldersThatWereNotFound(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*waitgraph.Snapshot)
		want   int
	}{
		{"nobody may hold it", func(*waitgraph.Snapshot) {}, 0},
		{"a member may", func(s *waitgraph.Snapshot) { s.Processes[0].HoldsUnseen = true }, 1},
		{"one that lives may", func(s *waitgraph.Snapshot) { s.Processes[2].HoldsUnseen = true }, 0},
		{"it wakes a stranger", func(s *waitgraph.Snapshot) { s.Processes[0].HoldsUnseen, s.Processes[1].PID = true, 0 }, 0},
		{"another holder lives", func(s *waitgraph.Snapshot) {
			s.Processes[0].HoldsUnseen = true
			s.Descriptors = append(s.Descriptors, waitgraph.Descriptor{Process: 2, Table: 2})
		}, 0},
	} {
		s := spec{processes: 3, sources: []specSource{{waiters: []int{1}, unaccounted: true}}}
		snapshot := s.snapshot()
		test.change(snapshot)
		p := Make(waitgraph.New(snapshot), []int32{0}, Options{Dependents: DependentsNone})
		if len(p.Unaccounted) != test.want || len(p.Bystanders) > 0 {
			t.Errorf("%s: unaccounted %v, bystanders %v", test.name, p.Unaccounted, p.Bystanders)
		}
	}
}

// TestKnots checks which condition of a knot is given up, and that a knot's
// members are signalled one after the other.
func TestKnots(t *testing.T) {
	mutual := func(a, b int) []specSource {
		return []specSource{{holders: []int{a}, waiters: []int{b}}, {holders: []int{b}, waiters: []int{a}}}
	}
	for _, test := range []struct {
		name string
		spec
		order   []int32
		exposed [][2]int
	}{
		{"the cheaper one wakes", spec{processes: 2, swap: []uint64{9, 1}, sources: mutual(0, 1)},
			[]int32{0, 1}, [][2]int{{1, 0}}},
		{"the first by identity, at equal cost", spec{processes: 2, sources: mutual(0, 1)},
			[]int32{1, 0}, [][2]int{{0, 1}}},
		{"two cheap conditions against one dear",
			spec{processes: 2, swap: []uint64{4, 2}, sources: append(mutual(0, 1), specSource{holders: []int{0}, waiters: []int{1}})},
			[]int32{1, 0}, [][2]int{{0, 1}}},
		{"pairs stay together, though all firsts are cheaper",
			spec{processes: 4, swap: []uint64{0, 5, 0, 5}, sources: append(mutual(0, 1), mutual(2, 3)...)},
			[]int32{3, 2, 1, 0}, [][2]int{{0, 1}, {2, 3}}},
		{"a cheap process that waits on the knot is not sacrificed for it",
			spec{processes: 3, swap: []uint64{0, 7, 7}, sources: append(mutual(1, 2), specSource{holders: []int{1, 2}, waiters: []int{0}})},
			[]int32{0, 2, 1}, [][2]int{{1, 1}}},
		{"outsiders that the knot frees wait until it is done",
			spec{processes: 5, sources: append(mutual(3, 4), specSource{holders: []int{3}, waiters: []int{0, 1, 2}})},
			[]int32{0, 1, 2, 4, 3}, [][2]int{{3, 1}}},
		{"a knot that an earlier one loosened is looked at again",
			spec{processes: 5, swap: []uint64{0, 0, 5, 0, 5}, sources: append(mutual(0, 1),
				specSource{holders: []int{0, 3}, waiters: []int{2}}, specSource{holders: []int{2}, waiters: []int{3}},
				specSource{holders: []int{4}, waiters: []int{2}}, specSource{holders: []int{2}, waiters: []int{4}})},
			[]int32{4, 3, 2, 1, 0}, [][2]int{{0, 1}, {2, 4}}},
		{"a cost beyond 64 bits is only very dear",
			spec{processes: 2, swap: []uint64{1 << 63, 1}, sources: append(mutual(0, 1), mutual(0, 1)...)},
			[]int32{0, 1}, [][2]int{{1, 0}, {1, 2}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for p := range test.processes {
				test.targets = append(test.targets, int32(p))
			}
			_, p, numbers := test.plan(t)
			test.check(t, p, numbers)
			if got := pairs(p.Exposed, func(w Wait) Wait { return w }); !slices.Equal(p.order(), test.order) ||
				!reflect.DeepEqual(got, test.exposed) {
				t.Errorf("order %v exposing %v, want %v exposing %v", p.order(), got, test.order, test.exposed)
			}
		})
	}
}

// TestSoftConditions: an unaccounted source is honoured where that is free,
// never exposed, and never preferred to one that fires.
func TestSoftConditions(t *testing.T) {
	for _, test := range []struct {
		name    string
		sources []specSource
		order   []int32
	}{
		{"honoured against identity", []specSource{{holders: []int{1}, waiters: []int{0}, unaccounted: true}}, []int32{0, 1}},
		{"honoured the other way round", []specSource{{holders: []int{0}, waiters: []int{1}, unaccounted: true}}, []int32{1, 0}},
		{"gives way", []specSource{
			{holders: []int{0}, waiters: []int{1}, unaccounted: true},
			{holders: []int{1}, waiters: []int{0}}}, []int32{0, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := spec{processes: 2, sources: test.sources, targets: []int32{0, 1}}
			_, p, _ := s.plan(t)
			if !slices.Equal(p.order(), test.order) || len(p.Exposed) > 0 {
				t.Errorf("order %v exposing %v, want %v", p.order(), p.Exposed, test.order)
			}
		})
	}

	// Wherever one order meets hard and soft conditions alike, so does Make's.
	r := rand.New(rand.NewPCG(9, 10))
	met := 0
	for range 20_000 {
		s := randomSpec(r)
		for i := range s.sources {
			s.sources[i].unaccounted = r.IntN(2) == 0
		}
		_, p, _ := s.plan(t)
		strict := *s
		strict.sources = slices.Clone(s.sources)
		for i := range strict.sources {
			strict.sources[i].unaccounted = false
		}
		if strict.feasible() {
			met++
			if early, _ := strict.simulate(p.order()); len(early) > 0 {
				t.Fatalf("order %v would wake %v if sources were accounted for: %+v", p.order(), early, s)
			}
		}
	}
	if met < 2_000 {
		t.Fatalf("only %d graphs could be met in full", met)
	}
}
