package storm

import (
	"context"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// start stages a storm and waits until it is ready; the test's end stops it.
func start(t testing.TB, opts Options) *Storm {
	t.Helper()
	s, err := Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually waits for a state that the kernel does not announce.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		if err := wait(ctx, time.Millisecond); err != nil {
			t.Fatalf("waiting until %s: %v", what, err)
		}
	}
}

func pids(procs []Proc) map[int]bool {
	m := map[int]bool{}
	for _, p := range procs {
		m[p.PID] = true
	}
	return m
}

func equal(a, b map[int]bool) bool {
	for p := range a {
		if !b[p] {
			return false
		}
	}
	return len(a) == len(b)
}

// kill ends members one after the other, with kill(2), and waits for each.
func kill(t testing.TB, s *Storm, members []Proc) {
	t.Helper()
	for _, p := range members {
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil {
			t.Fatalf("kill %s %d: %v", p.Comm, p.PID, err)
		}
		eventually(t, "a killed process is gone", func() bool {
			return gone(p.PID)
		})
	}
}

func gone(pid int) bool {
	st, err := readStat(pid)
	return err != nil || st.dead()
}

func TestEveryTopologyIsAsleepAndNamed(t *testing.T) {
	for _, topology := range Topologies {
		t.Run(topology.Name, func(t *testing.T) {
			supported(t, &topology)
			s := start(t, Options{Topology: topology.Name, Processes: 9})
			if len(s.Targets()) == 0 {
				t.Error("nobody is named " + Target)
			}
			if n := len(s.Woken()); n != 0 {
				t.Errorf("%d processes woke while nobody died", n)
			}
			for i, p := range s.Processes() {
				st, err := readStat(p.PID)
				if err != nil {
					t.Fatal(err)
				}
				if st.comm != p.Comm || st.ppid != p.Parent {
					t.Errorf("process %d is %q, child of %d; want %q, child of %d", p.PID, st.comm, st.ppid, p.Comm, p.Parent)
				}
				want := s.members[i].call
				if want == restless {
					continue
				}
				if got, err := blockedIn(p.PID); err == nil && got != want {
					t.Errorf("%s %d is in system call %d, want %d", p.Comm, p.PID, got, want)
				}
			}
		})
	}
}

// What the marks say after a kill must be what the topology's own wait
// conditions say, whoever dies.
func TestMarksTellWhoWoke(t *testing.T) {
	for _, topology := range Topologies {
		if topology.Restless {
			continue
		}
		for _, victims := range []struct {
			name string
			of   func(*Storm) []Proc
		}{
			{"first target", func(s *Storm) []Proc { return s.Targets()[:1] }},
			{"all targets but the last", func(s *Storm) []Proc { return s.Targets()[:len(s.Targets())-1] }},
			{"all targets", (*Storm).Targets},
			{"all but the targets", func(s *Storm) []Proc {
				return s.procs(func(i int) bool { return s.members[i].comm != Target })
			}},
		} {
			t.Run(topology.Name+"/"+victims.name, func(t *testing.T) {
				supported(t, &topology)
				s := start(t, Options{Topology: topology.Name, Processes: 9})
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
		kill(t, s, []Proc{p})
		dead[p.PID] = true
		outcome = s.After(dead)
		for _, w := range outcome.Woken {
			woken[w.PID] = true
		}
		if s.topology.Late && len(dead) < len(victims) {
			continue
		}
		eventually(t, "exactly the expected processes have woken", func() bool {
			return asExpected(pids(s.Woken()), woken, outcome.OneOf)
		})
	}
	for _, p := range outcome.Killed {
		eventually(t, "a process that dies of it is gone", func() bool { return gone(p.PID) })
		dead[p.PID] = true
	}
	settle(t, s, dead)
	if got := pids(s.Woken()); !asExpected(got, woken, outcome.OneOf) {
		t.Errorf("woken %v, want %v, and one of each of %v", got, woken, outcome.OneOf)
	}
	alive, err := s.Alive()
	if err != nil {
		t.Fatal(err)
	}
	if want := len(s.members) - len(dead); len(alive) != want {
		t.Errorf("%d members live, want %d", len(alive), want)
	}
}

// asExpected compares the woken with those who should be, and one of each group.
func asExpected(got, want map[int]bool, oneOf [][]Proc) bool {
	for _, group := range oneOf {
		n := 0
		for _, p := range group {
			if got[p.PID] {
				n++
				delete(got, p.PID)
			}
		}
		if n != 1 {
			return false
		}
	}
	return equal(got, want)
}

// supported skips a topology that this kernel or caller cannot stage.
func supported(t *testing.T, topology *Topology) {
	t.Helper()
	if err := topology.Supported(); err != nil {
		t.Skip(err)
	}
}

// settle waits until every survivor sleeps: then nobody is on the way to its
// mark.
func settle(t testing.TB, s *Storm, dead map[int]bool) {
	t.Helper()
	for i, p := range s.Processes() {
		eventually(t, "the survivors sleep", func() bool {
			st, err := readStat(p.PID)
			return dead[p.PID] || (err == nil && (st.state == 'S' || st.state == s.members[i].state))
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
			s := start(t, Options{Topology: topology.Name, Processes: 9})
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
	return len(o.Woken) == 0 && len(o.OneOf) == 0 && len(o.Killed) == 0
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

func TestStopLeavesNobody(t *testing.T) {
	for _, topology := range Topologies {
		for _, ignore := range []bool{false, true} {
			name := topology.Name
			if ignore {
				name += "/ignored children"
			}
			t.Run(name, func(t *testing.T) {
				supported(t, &topology)
				s := start(t, Options{Topology: topology.Name, Processes: 9, IgnoreChildren: ignore, ForkLimit: 100_000})
				all := s.Processes()
				if err := s.Stop(); err != nil {
					t.Fatal(err)
				}
				for _, p := range all {
					if st, err := readStat(p.PID); err == nil && st.pgrp == s.pgid && !st.dead() {
						t.Errorf("%s %d lives in state %c", p.Comm, p.PID, st.state)
					}
				}
				if n, err := s.killStrays(); n != 0 || err != nil {
					t.Errorf("%d strays, %v", n, err)
				}
				if err := unix.Kill(all[0].PID, 0); err == nil {
					t.Errorf("direct child %d was not reaped", all[0].PID)
				}
				if err := s.Stop(); err != nil {
					t.Errorf("second Stop: %v", err)
				}
			})
		}
	}
}

func TestOwnerKeepsNoPipe(t *testing.T) {
	before := pipes(t, os.Getpid())
	for _, topology := range Topologies {
		if topology.Supported() != nil {
			continue // another test says so
		}
		s := start(t, Options{Topology: topology.Name, Processes: 9})
		if after := pipes(t, os.Getpid()); after != before {
			t.Errorf("%s: the owner holds %d pipe descriptors, %d before", topology.Name, after, before)
		}
		for i, p := range s.Processes() {
			if n := pipes(t, p.PID); n > 2 {
				t.Errorf("%s: %s %d (%s) holds %d pipe descriptors", topology.Name, p.Comm, p.PID, s.members[i].role, n)
			}
		}
	}
}

func pipes(t testing.TB, pid int) int {
	t.Helper()
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

func TestMemoryIsReadBack(t *testing.T) {
	s := start(t, Options{Topology: "herd", Processes: 3, MemBytes: 1 << 20, RobustList: true})
	kill(t, s, s.Targets())
	eventually(t, "all readers have read their memory", func() bool {
		for _, m := range s.Marks()[1:] {
			if m.Sum == 0 {
				return false
			}
		}
		return true
	})
	for i, m := range s.Marks() {
		if m.Comm == Target {
			if m.Woken || m.Sum != 0 {
				t.Errorf("the writer was killed, and marked %+v", m)
			}
		} else if want := expectedSum(1<<20, uint64(i)); m.Sum != want || m.Value != 0 {
			t.Errorf("reader %d summed %#x after its read returned %d, want %#x after 0", m.PID, m.Sum, m.Value, want)
		}
	}
}

func TestMarksFile(t *testing.T) {
	path := t.TempDir() + "/marks"
	s := start(t, Options{Topology: "smtp", Processes: 2, Marks: path})
	kill(t, s, s.Targets()[:1])
	eventually(t, "the file says that one router woke", func() bool {
		marks, err := ReadMarks(path)
		if err != nil {
			t.Fatal(err)
		}
		return marks[1].Woken
	})
	marks, err := ReadMarks(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range s.Processes() {
		if m := marks[i]; m.PID != p.PID || m.Comm != p.Comm || !m.Ready || m.Woken != (i == 1) {
			t.Errorf("mark %d is %+v of %s %d", i, m, p.Comm, p.PID)
		}
	}
	if err := os.WriteFile(path+"2", []byte("something else, and long enough to be a header of sixty-four bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadMarks(path + "2"); err == nil {
		t.Error("a file of another kind was read as marks")
	}
}

func TestForkerForks(t *testing.T) {
	s := start(t, Options{Topology: "forker", Processes: 3})
	unknown := map[int]bool{}
	known := pids(s.Processes())
	eventually(t, "a hundred short-lived children were seen", func() bool {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			if st, err := readStat(pid); err == nil && st.pgrp == s.pgid && !known[pid] {
				if st.comm != Target {
					t.Fatalf("a child is named %q", st.comm)
				}
				unknown[pid] = true
			}
		}
		return len(unknown) >= 100
	})
}

func TestStartRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
		want string
	}{
		{"unknown topology", Options{Topology: "ring", Processes: 1}, `unknown topology "ring": one of smtp, pipeline`},
		{"no processes", Options{Topology: "smtp"}, "0 servers: at least one"},
		{"negative memory", Options{Topology: "smtp", Processes: 1, MemBytes: -1}, "must not be negative"},
		{"marks in a directory that is not", Options{Topology: "smtp", Processes: 1, Marks: "/nonexistent/marks"}, "create the marks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := Start(test.opts)
			if err == nil {
				s.Stop()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q does not say %q", err, test.want)
			}
		})
	}
}

// A member that dies before it is ready must fail the wait, not hang it.
func TestWaitReadySaysWhoDied(t *testing.T) {
	s, err := Start(Options{Topology: "sleepers", Processes: 3, MemBytes: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	kill(t, s, s.Processes()[1:2])
	err = s.WaitReady(t.Context())
	if err == nil || !strings.Contains(err.Error(), "died before it was ready") {
		t.Errorf("error %v does not say that a process died", err)
	}
}

func TestSmallestOfEach(t *testing.T) {
	for _, topology := range Topologies {
		t.Run(topology.Name, func(t *testing.T) {
			supported(t, &topology)
			start(t, Options{Topology: topology.Name, Processes: 1})
		})
	}
}
