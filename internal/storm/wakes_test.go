package storm

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

// What the marks say after a kill must be what the topology's own wait
// conditions say, whoever dies.
func TestMarksTellWhoWoke(t *testing.T) {
	type choice struct {
		name string
		of   func(*Storm) []Proc
	}
	choices := []choice{
		{"targets", (*Storm).Targets},
		{"all but the targets", func(s *Storm) []Proc {
			return s.procs(func(i int) bool { return s.members[i].comm != Target })
		}},
		{"targets, last first", func(s *Storm) []Proc {
			targets := s.Targets()
			slices.Reverse(targets)
			return targets
		}},
	}
	if nstest.InVM() { // half a second each, and the order is no kernel's matter
		choices = choices[:2]
	}
	for _, topology := range Topologies {
		if topology.Restless {
			continue
		}
		for _, victims := range choices {
			t.Run(topology.Name+"/"+victims.name, func(t *testing.T) {
				supported(t, &topology)
				s := start(t, Options{Topology: topology.Name, Processes: several()})
				killAndCompare(t, s, victims.of(s))
			})
		}
	}
}

// killAndCompare kills members one after the other, and compares each time who
// has woken with who should have.
func killAndCompare(t *testing.T, s *Storm, victims []Proc) {
	t.Helper()
	dead, woken := map[int]bool{}, map[int]bool{}
	var outcome Outcome
	for _, p := range victims {
		if pids(outcome.Killed)[p.PID] {
			continue // it died of the others
		}
		kill(t, s, []Proc{p})
		dead[p.PID] = true
		outcome = s.After(dead)
		for _, w := range outcome.Woken {
			woken[w.PID] = true
		}
		for _, k := range outcome.Killed {
			eventually(t, "a process that dies of it is gone", func() bool { return gone(k.PID) })
		}
		if s.topology.Late && len(dead) < len(victims) {
			continue
		}
		eventually(t, "exactly the expected processes have woken", func() bool {
			return asExpected(pids(s.Woken()), woken, outcome.SomeOf)
		})
	}
	for _, p := range outcome.Killed {
		dead[p.PID] = true
	}
	settle(t, s, dead)
	if got := pids(s.Woken()); !asExpected(got, woken, outcome.SomeOf) {
		t.Errorf("woken %v, want %v, and of these %v", got, woken, outcome.SomeOf)
	}
	alive, err := s.Alive()
	if err != nil {
		t.Fatal(err)
	}
	if want := len(s.members) - len(dead); len(alive) != want {
		t.Errorf("%d members live, want %d", len(alive), want)
	}
}

// asExpected compares the woken with those who should be, and some of each group.
func asExpected(got, want map[int]bool, groups []Share) bool {
	for _, group := range groups {
		n := 0
		for _, p := range group.Members {
			if got[p.PID] {
				n++
				delete(got, p.PID)
			}
		}
		if n != group.Wakes {
			return false
		}
	}
	return equal(got, want)
}

// inGroups are those of whom some wake.
func (o *Outcome) inGroups() []Proc {
	var out []Proc
	for _, g := range o.SomeOf {
		out = append(out, g.Members...)
	}
	return out
}

// settle waits until every survivor sleeps or is stopped: then nobody is on the way
// to its mark.
func settle(t testing.TB, s *Storm, dead map[int]bool) {
	t.Helper()
	for i, p := range s.Processes() {
		eventually(t, "the survivors sleep", func() bool {
			st, err := readStat(p.PID)
			was := s.members[i].stateThere()
			return dead[p.PID] || (err == nil && (st.state == 'S' || st.state == was || st.state == 'T' || st.state == 't'))
		})
	}
}

// Waiters that die first must not mark anything: the other way in which the
// truth could lie.
func TestWaitersFirstWakesNobody(t *testing.T) {
	for _, topology := range Topologies {
		if topology.Mutual || topology.Restless {
			continue
		}
		t.Run(topology.Name, func(t *testing.T) {
			supported(t, &topology)
			s := start(t, Options{Topology: topology.Name, Processes: several()})
			dead := map[int]bool{}
			for left := s.Processes(); len(left) > 0; {
				i := slices.IndexFunc(left, func(p Proc) bool { return harmless(s, dead, p) })
				if i < 0 {
					t.Fatalf("each of %v would wake somebody", left)
				}
				kill(t, s, left[i:i+1])
				dead[left[i].PID] = true
				left = slices.Delete(left, i, i+1)
			}
			if woken := s.Woken(); len(woken) != 0 {
				t.Errorf("%v woke", woken)
			}
		})
	}
}

// harmless reports whether nobody runs or dies when p follows those in dead.
func harmless(s *Storm, dead map[int]bool, p Proc) bool {
	more := maps.Clone(dead)
	more[p.PID] = true
	o := s.After(more)
	return len(o.Woken) == 0 && len(o.SomeOf) == 0 && len(o.Killed) == 0
}

// The kernel counts how often each process has gone to sleep, so it can be asked
// who woke without having run user code, and who did not wake at all.
func TestKernelWakes(t *testing.T) {
	for _, topology := range Topologies {
		if topology.Restless {
			continue
		}
		t.Run(topology.Name, func(t *testing.T) {
			supported(t, &topology)
			s := start(t, Options{Topology: topology.Name, Processes: several()})
			before := map[int]int{}
			for _, p := range s.Processes() {
				before[p.PID] = sleeps(t, p.PID)
			}
			targets := pids(s.Targets())
			outcome := s.After(targets)
			kill(t, s, s.Targets())
			for _, p := range outcome.Killed {
				eventually(t, "a process that dies of it is gone", func() bool { return gone(p.PID) })
				targets[p.PID] = true
			}
			may := pids(slices.Concat(outcome.Woken, outcome.Stirred, outcome.inGroups()))
			others := len(s.Processes()) > len(s.Targets())
			if happens := len(may)+len(outcome.Killed) > 0; others && happens == topology.Quiet {
				t.Errorf("quiet is %v, and this happens: %+v", topology.Quiet, outcome)
			}
			for _, p := range slices.Concat(outcome.Woken, outcome.Stirred) {
				eventually(t, p.Role+" has woken in the kernel", func() bool { return sleeps(t, p.PID) > before[p.PID] })
			}
			settle(t, s, targets)
			for _, p := range s.Processes() {
				if !targets[p.PID] && !may[p.PID] && sleeps(t, p.PID) != before[p.PID] {
					t.Errorf("%s %d (%s) has woken", p.Comm, p.PID, p.Role)
				}
			}
			if stirred := pids(outcome.Stirred); len(stirred) > 0 {
				for _, p := range s.Woken() {
					if stirred[p.PID] {
						t.Errorf("%s %d (%s) ran user code", p.Comm, p.PID, p.Role)
					}
				}
			}
		})
	}
}

// sleeps is how often a process's threads have gone to sleep of their own accord.
func sleeps(t testing.TB, pid int) int {
	t.Helper()
	tids, err := threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, tid := range tids {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

func TestDependentsOfTheTargets(t *testing.T) {
	for name, want := range map[string]int{
		"smtp": 9 + 2, "pipeline": 8, "fanin": 1, "herd": 9, "mutual": 5,
		"epoll": 9, "poll": 9, "chain": 0, "forker": 0, "sleepers": 0,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{Topology: name, Processes: 9})
			if got := len(s.Dependents()); got != want {
				t.Errorf("%d dependents, want %d", got, want)
			}
			if all := len(s.Targets()) + len(s.Dependents()); all != len(s.Processes()) {
				t.Errorf("targets and dependents are %d of %d processes", all, len(s.Processes()))
			}
		})
	}
}

func TestOutcomeOfTheTargets(t *testing.T) {
	for name, want := range map[string][5]int{ // woken, some of, stirred, killed, indirect
		"child":             {8, 0, 1, 0, 0},
		"epoll-shared-edge": {0, 1, 0, 0, 0},
		"epoll-shared-many": {0, 1, 0, 0, 0},
		"flock":             {3 + 6 + 3, 0, 0, 0, 0},
		"futex-robust":      {6, 3, 0, 0, 0},
		"parent-death":      {7, 0, 0, 4, 2},
		"pty-session":       {2*5 + 2*4, 0, 0, 4, 4},
		"ptrace-tracer":     {3, 0, 2, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{Topology: name, Processes: 9})
			o := s.After(pids(s.Targets()))
			if got := [5]int{len(o.Woken), len(o.SomeOf), len(o.Stirred), len(o.Killed), len(o.Indirect)}; got != want {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}
