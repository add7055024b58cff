package loader

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestProcessesAreThoseOfProc compares everybody with what /proc says of him.
func TestProcessesAreThoseOfProc(t *testing.T) {
	nstest.Require(t)
	stage(t, storm.Options{Topology: "smtp", Processes: 3})
	nobody := start(t, "idle", func(c *exec.Cmd) {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		c.SysProcAttr.Setsid = true
	})
	nobody.says(t)
	v := take(t)
	compared := 0
	for _, p := range v.Processes {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		if err != nil {
			continue // it ended since
		}
		name, rest := string(b[strings.IndexByte(string(b), '(')+1:strings.LastIndexByte(string(b), ')')]),
			strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		number := func(field int) int { // as proc(5) counts them
			n, err := strconv.ParseInt(rest[field-3], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		st := status(t, int(p.PID))
		uids := strings.Fields(st["Uid"])
		var uid, euid, suid int
		fmt.Sscan(strings.Join(uids, " "), &uid, &euid, &suid)
		const kthread = 0x00200000
		type facts struct {
			comm                            string
			ppid, pgid, sid, uid, euid      int
			suid, startTicks                int
			kernelThread, init, threadsDiff bool
		}
		// A kernel thread's name in /proc may carry its work queue.
		got := facts{p.Comm, int(p.PPID), int(p.PGID), int(p.SID), int(p.UID), int(p.EUID), int(p.SUID),
			int(p.StartNS / (1e9 / 100)), p.KernelThread, p.NamespaceInit, false}
		want := facts{name, number(4), number(5), number(6), uid, euid, suid,
			number(22), number(9)&kthread != 0, p.PID == 1, false}
		if want.kernelThread {
			want.comm = got.comm
		}
		if got != want {
			t.Errorf("process %d:\ngot  %+v\nwant %+v", p.PID, got, want)
		}
		if threads, _ := strconv.Atoi(st["Threads"]); int(p.PID) != os.Getpid() && int(p.Threads) != threads && !p.KernelThread {
			t.Errorf("process %d has %d threads, /proc says %d", p.PID, p.Threads, threads)
		}
		compared++
	}
	if compared < 9 { // init, this one, six of the storm and a delivery, nobody
		t.Errorf("only %d processes were compared", compared)
	}
	if p := v.process(t, nobody.PID); p.UID != 65534 || p.EUID != 65534 || p.SUID != 65534 || int(p.SID) != nobody.PID {
		t.Errorf("the unprivileged one is %+v", p)
	}
	if nstest.InVM() {
		if p := v.process(t, 2); !p.KernelThread || p.Comm != "kthreadd" {
			t.Errorf("process 2 is %+v, want kthreadd", p)
		}
	}
}

// TestStateIsTheLeaders covers the states that a test can hold still.
func TestStateIsTheLeaders(t *testing.T) {
	nstest.Require(t)
	idle := start(t, "idle", nil)
	idle.says(t)
	stopped := start(t, "idle", nil)
	stopped.says(t)
	if err := unix.Kill(stopped.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("/proc/self/exe")
	ended.Env = append(os.Environ(), roleVariable+"=idle")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	defer ended.Wait()
	// A leader is a zombie before its process is one: other threads may be
	// on their way out.
	eventually(t, "one is stopped and one a zombie", func() bool {
		zombie := status(t, ended.Process.Pid)
		return strings.HasPrefix(status(t, stopped.PID)["State"], "T") &&
			strings.HasPrefix(zombie["State"], "Z") && zombie["Threads"] <= "1"
	})
	v := take(t)
	for pid, want := range map[int]byte{stopped.PID: 'T', ended.Process.Pid: 'Z'} {
		if got := v.process(t, pid).State; got != want {
			t.Errorf("process %d is in state %c, want %c", pid, got, want)
		}
	}
	z := v.process(t, ended.Process.Pid)
	if z.Alive() {
		t.Error("a zombie is said to be alive")
	}
	for _, p := range []int{idle.PID, stopped.PID} {
		if p := v.process(t, p); !p.Alive() {
			t.Errorf("%v in state %c is said to be dead", &p, p.State)
		}
	}
}

// TestNestedNamespace: pids are those that the caller's /proc shows, whatever
// the process calls itself.
func TestNestedNamespace(t *testing.T) {
	nstest.Require(t)
	p := startNested(t, "idle")
	p.says(t)
	v := take(t)
	init := v.process(t, p.PID)
	if !init.NamespaceInit || int(init.PPID) != os.Getpid() {
		t.Errorf("the namespace's init is %+v", init)
	}
	var inside *waitgraph.Process
	for i := range v.Processes {
		if q := &v.Processes[i]; int(q.PPID) == p.PID {
			inside = q
		}
	}
	if inside == nil {
		t.Fatal("the process inside is not in the snapshot")
	}
	ids := strings.Fields(status(t, int(inside.PID))["NSpid"])
	if inside.NamespaceInit || len(ids) < 2 || ids[len(ids)-1] != "2" && ids[len(ids)-1] == ids[len(ids)-2] {
		t.Errorf("%+v with pids %v", inside, ids)
	}
}

// startNested runs a role in a pid namespace within this one. PID is the pid of
// the namespace's init.
func startNested(t *testing.T, role string, files ...*os.File) *process {
	t.Helper()
	return start(t, role, func(c *exec.Cmd) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c.Path = exe
		// The init is this binary as well, and must not take the role.
		env, err := exec.LookPath("env")
		if err != nil {
			t.Fatal(err)
		}
		inner, err := nstest.Command(env, roleVariable+"="+role, exe)
		if err != nil {
			t.Fatal(err)
		}
		c.Path, c.Args, c.SysProcAttr, c.Env = inner.Path, inner.Args, inner.SysProcAttr, inner.Env
	}, files...)
}

// stageMemory starts processes of so many bytes each, and returns by how many their
// counters may be off. Those of a sleeper, summed over all CPUs, are exact since v6.2
// (f1a7941243c1). Before that each thread keeps up to 64 events of each of three kinds
// to itself (TASK_RSS_EVENTS_THRESH).
func stageMemory(t *testing.T, each int64) (s *storm.Storm, tolerance int) {
	t.Helper()
	s = stage(t, storm.Options{Topology: "smtp", Processes: 2, MemBytes: each})
	if !nstest.KernelAtLeast(t, 6, 2) {
		tolerance = 3 * 64 * os.Getpagesize()
	}
	return s, tolerance
}

// TestMemoryIsThatOfPageTables: what a process has is what its page tables map.
func TestMemoryIsThatOfPageTables(t *testing.T) {
	nstest.Require(t)
	const each = 3 << 20
	s, tolerance := stageMemory(t, each)
	v := take(t)
	for _, m := range s.Processes() {
		got := int(v.process(t, m.PID).RSSBytes)
		want, special := resident(t, m.PID)
		if got < want-tolerance || got > want+special+tolerance || got < each {
			t.Errorf("%s %d: %d bytes resident, its page tables say %d and %d of the kernel's", m.Comm, m.PID, got, want, special)
		}
	}
}

// TestSwapIsWhatTheStatusSays, as nearly as /proc/pid/status itself says it.
func TestSwapIsWhatTheStatusSays(t *testing.T) {
	nstest.Require(t)
	nstest.SwapSpace(t)
	s, tolerance := stageMemory(t, 3<<20)
	if _, err := s.SwapOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := take(t)
	for _, m := range s.Processes() {
		want, _ := strconv.Atoi(strings.TrimSuffix(status(t, m.PID)["VmSwap"], " kB"))
		got := int(v.process(t, m.PID).SwapBytes)
		// VmSwap itself is the approximate one since v6.2.
		slack := 3*64*os.Getpagesize() + tolerance
		if got < want<<10-slack || got > want<<10+slack || got == 0 {
			t.Errorf("%s %d: %d bytes swapped out, VmSwap is %d KiB", m.Comm, m.PID, got, want)
		}
	}
}

// resident adds up what a process's page tables map. The kernel's own pages,
// [vdso] and [vvar], come separately: most kernels' counters leave them out.
func resident(t *testing.T, pid int) (own, special int) {
	t.Helper()
	into := &own
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/smaps", pid))) {
		if after, ok := strings.CutPrefix(line, "Rss:"); ok {
			var kib int
			fmt.Sscan(after, &kib)
			*into += kib << 10
		} else if f := strings.Fields(line); len(f) >= 5 && strings.Contains(f[0], "-") {
			into = &own
			if strings.HasPrefix(f[len(f)-1], "[vdso") || strings.HasPrefix(f[len(f)-1], "[vvar") {
				into = &special
			}
		}
	}
	return own, special
}

func TestSignalDispositionAndParentDeath(t *testing.T) {
	nstest.Require(t)
	ignores := start(t, "ignore-sigchld", nil)
	ignores.says(t)
	plain := stage(t, storm.Options{Topology: "sleepers", Processes: 1}).Processes()[0].PID
	mortal := stage(t, storm.Options{Topology: "sleepers", Processes: 1, ParentDeathSignal: syscall.SIGUSR1}).Processes()[0].PID
	v := take(t)
	for _, test := range []struct {
		name string
		pid  int
		chld waitgraph.SignalDisposition
		pd   int32
	}{
		{"ignores", ignores.PID, waitgraph.SignalIgnored, 0},
		{"a Go program catches", os.Getpid(), waitgraph.SignalCaught, 0},
		{"default", plain, waitgraph.SignalDefault, 0},
		{"parent-death signal", mortal, waitgraph.SignalDefault, int32(unix.SIGUSR1)},
	} {
		if p := v.process(t, test.pid); p.SIGCHLD != test.chld || p.ParentDeathSignal != test.pd {
			t.Errorf("%s: SIGCHLD %d, parent-death signal %d; want %d, %d", test.name, p.SIGCHLD, p.ParentDeathSignal, test.chld, test.pd)
		}
	}
}

// TestCgroupIDIsTheDirectorysInode moves a process into a cgroup of its own.
func TestCgroupIDIsTheDirectorysInode(t *testing.T) {
	nstest.Require(t)
	dir := testCgroup(t)
	p := start(t, "idle", nil)
	p.says(t)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.PID)), 0); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if got := take(t).process(t, p.PID).CgroupID; got != st.Ino {
		t.Errorf("cgroup id %d, the directory's inode is %d", got, st.Ino)
	}
	kill(t, p.PID)
	p.Wait()
}

// testCgroup makes a cgroup v2 directory that is removed at the end.
func testCgroup(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); strings.HasPrefix(after, "cgroup2 ") && len(f) > 4 {
			dir, err := os.MkdirTemp(f[4], "bpfkill-test-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			})
			return dir
		}
	}
	t.Skip("cgroup v2 is not mounted")
	return ""
}
