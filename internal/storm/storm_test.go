package storm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

// start stages a storm and waits until it is ready; the test's end stops it.
func start(t testing.TB, opts Options) *Storm {
	t.Helper()
	s, err := Start(t.Context(), opts)
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

// several is the size of a storm in which each kind of member is there, and of most
// more than one: fewer in an emulated machine, where a fork takes 20 ms.
func several() int {
	if nstest.InVM() {
		return 4
	}
	return 9
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

// supported skips a topology that this kernel or caller cannot stage.
func supported(t *testing.T, topology *Topology) {
	t.Helper()
	if err := topology.Supported(); err != nil {
		t.Skip(err)
	}
}

// Every member sleeps where it should, is named and born as it should be, and
// nobody holds a pipe that is not his, the owner none.
func TestEveryTopologyIsAsDescribed(t *testing.T) {
	for _, topology := range Topologies {
		t.Run(topology.Name, func(t *testing.T) {
			supported(t, &topology)
			before := pipes(t, os.Getpid())
			s := start(t, Options{Topology: topology.Name, Processes: several()})
			if after := pipes(t, os.Getpid()); after != before {
				t.Errorf("the owner holds %d pipe descriptors, %d before", after, before)
			}
			if len(s.Targets()) == 0 {
				t.Error("nobody is named " + Target)
			}
			if n := len(s.Woken()); n != 0 {
				t.Errorf("%d processes woke while nobody died", n)
			}
			for i := range s.Processes() {
				checkMember(t, s, i)
			}
		})
	}
}

func checkMember(t *testing.T, s *Storm, i int) {
	t.Helper()
	p, m := s.proc(i), &s.members[i]
	st, err := readStat(p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if st.comm != p.Comm || st.ppid != p.Parent {
		t.Errorf("process %d is %q, child of %d; want %q, child of %d", p.PID, st.comm, st.ppid, p.Comm, p.Parent)
	}
	if n := pipes(t, p.PID); n > 2 {
		t.Errorf("%s %d (%s) holds %d pipe descriptors", p.Comm, p.PID, m.role, n)
	}
	if m.call == restless || m.stateThere() == 'T' || m.stateThere() == 't' {
		return
	}
	// A late ACK makes room for one who sends: it runs, and blocks again.
	eventually(t, fmt.Sprintf("%s %d (%s) is in system call %d", p.Comm, p.PID, m.role, m.call), func() bool {
		got, err := blockedIn(p.PID)
		return err != nil || got == m.call
	})
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
				s := start(t, Options{Topology: topology.Name, Processes: several(), IgnoreChildren: ignore, ForkLimit: 100_000})
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
				// A process of several threads may let go of its number a moment later.
				for give := time.Now().Add(10 * time.Second); unix.Kill(all[0].PID, 0) == nil; time.Sleep(time.Millisecond) {
					if time.Now().After(give) {
						t.Errorf("direct child %d was not reaped", all[0].PID)
						break
					}
				}
				if err := s.Stop(); err != nil {
					t.Errorf("second Stop: %v", err)
				}
				if ignored(t, unix.SIGCHLD) {
					t.Error("this process ignores SIGCHLD for good")
				}
			})
		}
	}
}

// ignored reports whether this process ignores a signal, as the kernel says.
func ignored(t *testing.T, sig unix.Signal) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "\nSigIgn:\t")
	line, _, _ = strings.Cut(line, "\n")
	mask, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mask>>(sig-1)&1 != 0
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
			s, err := Start(t.Context(), test.opts)
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
	s, err := Start(t.Context(), Options{Topology: "sleepers", Processes: 3, MemBytes: 256 << 20})
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

// TestCancelledWhileForking: whoever is asked to end while thousands are being
// forked ends then, and takes along those that are there.
func TestCancelledWhileForking(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	go func() { // as soon as there is a first child
		defer close(begun)
		for ctx.Err() == nil {
			if children, err := childrenOf(os.Getpid()); err == nil && len(children) > 0 {
				cancel()
			}
		}
	}()
	defer func() { cancel(); <-begun }()
	s, err := Start(ctx, Options{Topology: "sleepers", Processes: 2000})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("storm %v, error %v; want %v", s != nil, err, context.Canceled)
		if s != nil {
			s.Stop()
		}
	}
	if left, err := childrenOf(os.Getpid()); err != nil || len(left) != 0 {
		t.Errorf("%d children are left, %v", len(left), err)
	}
}

// childrenOf reads the children of all threads of a process.
func childrenOf(pid int) ([]string, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	var pids []string
	for _, l := range lists {
		text, err := os.ReadFile(l)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		pids = append(pids, strings.Fields(string(text))...)
	}
	return pids, nil
}
