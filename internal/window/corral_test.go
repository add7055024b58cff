package window

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// allCPUs is where everybody may run who is not confined.
func allCPUs(t *testing.T) affinity.Set {
	t.Helper()
	s, err := affinity.Get(1)
	must(t, err)
	if s.Count() < 2 {
		t.Skip("the machine has one CPU: everybody is always on it")
	}
	return s
}

// byPID picks processes out of all.
func byPID(all []waitgraph.Process, pids ...int) (out []waitgraph.Process) {
	for _, p := range all {
		if slices.Contains(pids, int(p.PID)) {
			out = append(out, p)
		}
	}
	return out
}

// takenByTheKernel is how often the killer may lose its CPU in a window: to the soft
// lockup detector, which is of the stop class, and comes once in thousands of windows.
const takenByTheKernel = 1

// requireQuiet fails unless the corral was closed, no target ran in it and the
// killer neither slept nor was interrupted by anybody but the kernel.
func requireQuiet(t *testing.T, out *Outcome) {
	t.Helper()
	w := out.Window
	if w.Corral == nil || !w.Corral.Closed || len(w.Corral.LeftOut) != 0 {
		t.Fatalf("corral %+v, want a closed one", w.Corral)
	}
	if w.TargetSwitches != 0 || w.ReapSwitches != 0 {
		t.Errorf("context switches to targets inside the window: %d, %d", w.TargetSwitches, w.ReapSwitches)
	}
	if w.MinorFaults > faultsOfTheTest || w.MajorFaults != 0 || w.VoluntarySwitches != 0 || w.InvoluntarySwitches > takenByTheKernel {
		t.Errorf("the killer inside the window: %d minor and %d major faults, %d voluntary and %d involuntary context switches",
			w.MinorFaults, w.MajorFaults, w.VoluntarySwitches, w.InvoluntarySwitches)
	}
	if w.ArmNS == 0 || w.DeliverNS == 0 || w.OpenNS == 0 {
		t.Errorf("not measured: %+v", w)
	}
}

// TestNobodyRunsInTheCorral, whatever the targets were doing.
func TestNobodyRunsInTheCorral(t *testing.T) {
	nstest.Require(t)
	allCPUs(t)
	for _, engine := range engines() {
		for _, topology := range []string{"sleepers", "smtp", "mutual", "forker"} {
			t.Run(engine.String()+"/"+topology, func(t *testing.T) {
				k := newKernel(t)
				s := stage(t, topology, 16)
				all := processes(t, k)
				var pids []int
				for _, p := range s.Processes() {
					pids = append(pids, p.PID)
				}
				victims := byPID(all, pids...)
				slices.Reverse(victims)
				out, err := Run(t.Context(), k, victims, options(engine, all))
				must(t, err)
				requireQuiet(t, out)
				if out.Window.Corral.Threads < len(victims) {
					t.Errorf("%d threads confined of %d processes", out.Window.Corral.Threads, len(victims))
				}
				if alive, err := s.Alive(); err != nil || len(alive) != 0 {
					t.Errorf("%d are alive, %v", len(alive), err)
				}
			})
		}
	}
}

// TestRealTimeTargetsDoNotRunEither: one that would preempt a killer of the
// lowest real-time priority, and has several threads.
func TestRealTimeTargetsDoNotRunEither(t *testing.T) {
	nstest.Require(t)
	allCPUs(t)
	for _, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			k := newKernel(t)
			p := startIdle(t)
			attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 50}
			must(t, unix.SchedSetAttr(p.Process.Pid, &attr, 0))
			all := processes(t, k)
			out, err := Run(t.Context(), k, byPID(all, p.Process.Pid), options(engine, all))
			must(t, err)
			requireQuiet(t, out)
			if out.Window.Corral.Threads < 2 {
				t.Errorf("%d threads confined, but a Go program has several", out.Window.Corral.Threads)
			}
			if !dead(p.Process.Pid) {
				t.Error("it lives")
			}
		})
	}
}

// TestWithoutCorral: the same kill without it, for those who want that.
func TestWithoutCorral(t *testing.T) {
	k := newKernel(t)
	s := stage(t, "smtp", 8)
	all := processes(t, k)
	victims := membersOf(t, s, all)
	slices.Reverse(victims)
	o := options(EngineLoop, all)
	o.Corral = false
	out, err := Run(t.Context(), k, victims, o)
	must(t, err)
	checkAllGone(t, out, len(victims))
	if out.Window.Corral != nil {
		t.Errorf("a corral that nobody asked for: %+v", out.Window.Corral)
	}
}

// cpusetOf makes a cpuset with one CPU, in whichever version this machine has.
func cpusetOf(t *testing.T, cpu int) string {
	t.Helper()
	parent := "/sys/fs/cgroup/cpuset" // version 1
	v2 := false
	if _, err := os.Stat(filepath.Join(parent, "cpuset.cpus")); err != nil {
		parent, v2 = "/sys/fs/cgroup", true
		controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
		if err != nil || !strings.Contains(string(controllers), "cpuset") {
			t.Skip("no cpuset controller is mounted in the usual places")
		}
		must(t, os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+cpuset"), 0))
	}
	dir := testCgroup(t, parent)
	must(t, os.WriteFile(filepath.Join(dir, "cpuset.cpus"), []byte(strconv.Itoa(cpu)), 0))
	if !v2 {
		mems, err := os.ReadFile(filepath.Join(parent, "cpuset.mems"))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "cpuset.mems"), mems, 0))
	}
	return dir
}

// TestCpusetsAreObeyed: whom a cpuset forbids the killer's CPU is left out, and
// killed all the same. The killer goes where most may follow.
func TestCpusetsAreObeyed(t *testing.T) {
	nstest.Require(t)
	cpus := allCPUs(t)
	var two []int
	cpus.Each(func(cpu int) { two = append(two, cpu) })
	two = two[:2]
	for i, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			many, few := two[i%2], two[1-i%2]
			k := newKernel(t)
			out3 := startIdle(t)
			in1, in2 := startIdle(t), startIdle(t)
			moveInto(t, cpusetOf(t, few), out3.Process.Pid)
			dir := cpusetOf(t, many)
			moveInto(t, dir, in1.Process.Pid)
			moveInto(t, dir, in2.Process.Pid)
			// Most threads decide, and each starts some as it begins to run.
			threads := func(p *idle) int {
				tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.Process.Pid))
				must(t, err)
				return len(tasks)
			}
			eventually(t, "more threads in one cpuset", func() bool { return threads(in1)+threads(in2) > threads(out3)+2 })
			all := processes(t, k)
			victims := byPID(all, in1.Process.Pid, in2.Process.Pid, out3.Process.Pid)
			out, err := Run(t.Context(), k, victims, options(engine, all))
			must(t, err)
			checkAllGone(t, out, 3)
			c := out.Window.Corral
			if c == nil || c.CPU != many || len(c.LeftOut) != 1 || int(c.LeftOut[0].Process.PID) != out3.Process.Pid ||
				!strings.Contains(c.LeftOut[0].Err.Error(), "cpuset") {
				t.Errorf("corral %+v, want one on CPU %d without process %d", c, many, out3.Process.Pid)
			}
			for _, p := range []*idle{in1, in2, out3} {
				p.Wait() // a zombie stays in its cgroup
			}
		})
	}
}

// TestStragglersAreLetOut: children of the dying that may not be signalled
// live on, and not in the corral.
func TestStragglersAreLetOut(t *testing.T) {
	nstest.Require(t)
	everywhere := allCPUs(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu, other := -1, -1
	everywhere.Each(func(c int) { cpu, other = c, cpu })
	confined, before := affinity.Only(cpu), affinity.Only(other)
	parent, child, older := startIdle(t), startIdle(t), startIdle(t)
	thread := func(p *idle, allowed, wanted affinity.Set) affinity.Thread {
		pid := int32(p.Process.Pid)
		if errno := affinity.Apply(pid, &allowed); errno != 0 {
			t.Fatal(errno)
		}
		return affinity.Thread{Process: waitgraph.KernelIdentity{KernelPID: pid}, TID: pid, PID: pid, PGID: 7, Allowed: allowed, Wanted: wanted}
	}
	// A child is born confined: its own wish is the corral's CPU, or where that was
	// before it moved.
	k := &fake{threads: []affinity.Thread{thread(parent, confined, everywhere), thread(child, confined, confined), thread(older, before, before)}}
	c := &corral{kernel: k, sets: setsOf(cpu, other), known: map[threadKey]bool{}}
	known := corralled{Thread: k.threads[0]}
	c.threads, c.known[known.key()] = []corralled{known}, true
	must(t, c.stragglers())
	for p, want := range map[*idle]affinity.Set{parent: confined, child: everywhere, older: everywhere} {
		if got, err := affinity.Get(p.Process.Pid); err != nil || got != want {
			t.Errorf("%x, %v; want %x", got[0], err, want[0])
		}
	}
}

func TestChooseCPU(t *testing.T) {
	here, err := affinity.CPU()
	must(t, err)
	set := func(cpus ...int) (s affinity.Set) {
		for _, c := range cpus {
			s[c/64] |= 1 << (c % 64)
		}
		return s
	}
	on := func(sets ...affinity.Set) (threads []affinity.Thread) {
		for _, s := range sets {
			threads = append(threads, affinity.Thread{Allowed: s})
		}
		return threads
	}
	far := []int{100, 200, 300}
	for _, test := range []struct {
		name    string
		own     affinity.Set
		threads []affinity.Thread
		want    int
	}{
		{"the current one, if all are as good", set(here, 100), on(set(here, 100), set(here, 100, 200)), here},
		{"where most may run", set(far...), on(set(100, 200), set(200, 300), set(200)), 200},
		{"only of the killer's own", set(100), on(set(200), set(200)), 100},
		{"no target at all", set(here), nil, here},
	} {
		if got, err := chooseCPU(test.own, test.threads); got != test.want || err != nil {
			t.Errorf("%s: %d, %v; want %d", test.name, got, err, test.want)
		}
	}
	if cpu, err := chooseCPU(affinity.Set{}, nil); err == nil {
		t.Errorf("CPU %d on a machine with none", cpu)
	}
}

// TestTable: what one process writes another reads.
func TestTable(t *testing.T) {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	must(t, err)
	memfd := os.NewFile(uintptr(fd), "test")
	defer memfd.Close()
	if empty, err := openTable(memfd); empty != nil || err != nil {
		t.Errorf("%v, %v of an empty file", empty, err)
	}
	w, err := newTable(memfd, 3, 5, -1, bootTimeNS())
	must(t, err)
	defer w.unmap()
	for i := range 4 {
		wanted := affinity.Only(i)
		thread := &affinity.Thread{TID: int32(10 + i), PID: 10, PGID: 9, SID: 8}
		if ok := w.add(thread, &wanted, uint64(i)); ok != (i < 3) {
			t.Errorf("entry %d: %v", i, ok)
		}
	}
	w.finish()
	r, err := openTable(memfd)
	must(t, err)
	defer r.unmap()
	if r.len() != 3 || r.head.cpu != 5 || r.head.other != -1 || !r.finished() || r.entries[2] != (tableEntry{12, 10, 9, 8, 2}) || r.wanted(2) != affinity.Only(2) {
		t.Errorf("read %+v, %+v, %x", *r.head, r.entries, r.wanted(2))
	}
	must(t, memfd.Truncate(int64(len(r.memory)-1)))
	if short, err := openTable(memfd); short != nil || err != nil {
		t.Errorf("%v, %v of a file that was cut short", short, err)
	}
}

// dieVariable makes this binary a killer that dies at a step of its own: when it
// asks the kernel for the n-th time.
const dieVariable = "BPFKILL_WINDOW_DIE_AT"

// dying is a Kernel whose user is killed by its n-th call.
type dying struct {
	bpf
	calls *int
}

func (k dying) step() {
	if *k.calls--; *k.calls < 0 {
		unix.Kill(unix.Getpid(), unix.SIGKILL)
	}
}

func (k dying) Inherit(known func(waitgraph.KernelIdentity) bool) ([]waitgraph.KernelIdentity, error) {
	k.step()
	return k.bpf.Inherit(known)
}
func (k dying) Processes() ([]waitgraph.Process, error) { k.step(); return k.bpf.Processes() }
func (k dying) Clocks() (_, _, _ *uint64)               { k.step(); return k.bpf.Clocks() }
func (k dying) Births() uint64                          { k.step(); return k.bpf.Births() }
func (k dying) Threads() ([]affinity.Thread, error)     { k.step(); return k.bpf.Threads() }
func (k dying) DeliveryErrors() ([]error, error)        { k.step(); return k.bpf.DeliveryErrors() }
func (k dying) Switches() (window, reap uint64)         { k.step(); return k.bpf.Switches() }
func (k dying) Disarm() error                           { k.step(); return k.bpf.Disarm() }

// dyingKiller is the killer of TestGuardian: it kills with an engine the two process
// groups that it reads, and dies at a step. It reads when it is ready: what is staged
// while it loads its programs makes that take ten times as long.
func dyingKiller(args string) error {
	var engine Engine
	var calls int
	if _, err := fmt.Sscan(args, &engine, &calls); err != nil {
		return err
	}
	if err := loader.Prepare(); err != nil {
		return err
	}
	s, err := loader.NewSnapshotter(loader.SnapshotOptions{})
	if err != nil {
		return err
	}
	e, err := loader.NewExecutor(loader.ExecutorOptions{Batch: engine == EngineBatch})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	var groups [2]int32
	if _, err := fmt.Scan(&groups[0], &groups[1]); err != nil {
		return err
	}
	all, err := s.Processes()
	if err != nil {
		return err
	}
	var victims []waitgraph.Process
	for _, p := range all {
		if slices.Contains(groups[:], p.PGID) {
			victims = append(victims, p)
		}
	}
	_, err = Run(context.Background(), dying{bpf{e, s}, &calls}, victims, options(engine, all))
	return errors.Join(err, e.Close(), s.Close())
}

// TestGuardian kills the killer at every step of its own. Nobody stays confined
// who lives, children born in the corral included.
func TestGuardian(t *testing.T) {
	nstest.Require(t)
	allCPUs(t)
	for i, engine := range engines() {
		t.Run(engine.String(), func(t *testing.T) {
			first, stride := 0, 1
			if nstest.InVM() { // an emulated machine takes seconds for each
				first, stride = 2*i, 6
			}
			for step := first; ; step += stride {
				killer := startDyingKiller(t, engine, step)
				sleepers, forkers := stage(t, "smtp", 10), stage(t, "forker", 2)
				out, err := killer(group(t, sleepers.Processes()[0].PID), group(t, forkers.Processes()[0].PID))
				requireNoTrace(t)
				must(t, errors.Join(sleepers.Stop(), forkers.Stop()))
				if err == nil {
					if step < 8 {
						t.Errorf("only %d steps", step)
					}
					return
				}
				if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != -1 {
					t.Fatalf("step %d: %v\n%s", step, err, out)
				}
			}
		})
	}
}

// startDyingKiller returns, when it is ready, what has it kill two groups and waits
// for its end.
func startDyingKiller(t *testing.T, engine Engine, step int) func(groups ...int) (said string, err error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d", dieVariable, engine, step))
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill() // it may be dead, and reaped
		cmd.Wait()
	})
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); line != "ready\n" {
		rest, _ := io.ReadAll(said)
		t.Fatalf("step %d: the killer says %q, %v", step, line+string(rest), err)
	}
	return func(groups ...int) (string, error) {
		if _, err := fmt.Fprintln(in, groups[0], groups[1]); err != nil {
			return "", err
		}
		rest, err := io.ReadAll(said)
		return string(rest), errors.Join(err, cmd.Wait())
	}
}

func group(t *testing.T, pid int) int {
	t.Helper()
	pgid, err := unix.Getpgid(pid)
	must(t, err)
	return pgid
}

// requireNoTrace waits for the guardian's end and fails for every thread in this
// pid namespace that is still confined or has kept a real-time policy.
func requireNoTrace(t *testing.T) {
	t.Helper()
	eventually(t, "the guardian is done", func() bool { return len(named(t, guardianName)) == 0 })
	everywhere := allCPUs(t)
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	must(t, err)
	for _, task := range tasks {
		tid, err := strconv.Atoi(filepath.Base(task))
		must(t, err)
		st, err := os.ReadFile(task + "/stat")
		if err != nil {
			continue // gone
		}
		_, after, _ := cutLast(string(st), ") ")
		fields := strings.Fields(after)
		const pfKthread, flags, policy = 0x00200000, 6, 38
		if n, err := strconv.ParseUint(fields[flags], 10, 64); err != nil || n&pfKthread != 0 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		cpus, err := affinity.Get(tid)
		if err == nil && cpus != everywhere {
			t.Errorf("%s is confined to %x: %s", task, cpus[0], st)
		}
		if fields[policy] != "0" {
			t.Errorf("%s has scheduling policy %s: %s", task, fields[policy], st)
		}
	}
}

// named returns the pids of the living processes of a name.
func named(t *testing.T, comm string) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/comm")
	must(t, err)
	for _, path := range stats {
		b, err := os.ReadFile(path)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && strings.TrimSpace(string(b)) == comm && !dead(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestHiddenProcesses: whom /proc does not show the guardian cannot let out.
func TestHiddenProcesses(t *testing.T) {
	nstest.Require(t)
	target := startIdle(t).Process.Pid
	threads := []affinity.Thread{{PID: int32(target), TID: int32(target)}}
	must(t, unix.Mount("proc", "/proc", "proc", 0, "hidepid=2"))
	defer func() { must(t, unix.Unmount("/proc", unix.MNT_DETACH)) }()
	as := func(uid uintptr) error {
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // and ends with it, as only this thread is somebody else
			for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, uid, uid, uid}, {unix.SYS_SETRESUID, uid, uid, uid}} {
				if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
					result <- errno
					return
				}
			}
			result <- visible(threads)
		}()
		return <-result
	}
	if err := as(0); err != nil {
		t.Errorf("as root: %v", err)
	}
	if err := as(65534); err == nil || !strings.Contains(err.Error(), "hidepid") {
		t.Errorf("as nobody: %v, want an error that names hidepid", err)
	}
}
