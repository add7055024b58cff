package loader

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// newExecutor loads an executor that the test closes.
func newExecutor(t *testing.T) *Executor {
	t.Helper()
	snapshotter(t) // skips without privileges, and prepares
	e, err := NewExecutor(ExecutorOptions{Processes: 10000, Batch: HaveBatch() == nil})
	if err != nil {
		t.Fatal(err, VerifierLog(err))
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func observe(t *testing.T, e *Executor) *Observer {
	t.Helper()
	o, err := NewObserver(e)
	if err != nil {
		t.Fatal(err, VerifierLog(err))
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, o.Start())
	return o
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// duo is a writer and a reader that waits for its death.
type duo struct {
	*storm.Storm
	writer, reader waitgraph.Process
}

func stageDuo(t *testing.T) *duo {
	t.Helper()
	s := stage(t, storm.Options{Topology: "herd", Processes: 1})
	m := members(t, s)
	return &duo{s, m["writer"][0], m["reader"][0]}
}

// settled waits until the reader is dead or has run user code.
func (d *duo) settled(t *testing.T) (woken bool) {
	t.Helper()
	eventually(t, "the reader is dead or has woken", func() bool {
		return len(d.Woken()) > 0 || dead(int(d.reader.PID))
	})
	return len(d.Woken()) > 0
}

// TestEveryForkIsRecorded: whoever is born after the executor is there.
func TestEveryForkIsRecorded(t *testing.T) {
	for _, tracker := range trackers() {
		t.Run(tracker, func(t *testing.T) {
			snapshotter(t) // skips without privileges, and prepares
			e, err := loadExecutor(ExecutorOptions{}, tracker)
			must(t, err)
			t.Cleanup(func() { must(t, e.Close()) })
			var pids []int
			for range 3 {
				p := start(t, "idle", nil)
				p.says(t)
				pids = append(pids, p.PID)
			}
			s := stage(t, storm.Options{Topology: "smtp", Processes: 10})
			for _, m := range s.Processes() {
				pids = append(pids, m.PID)
			}
			v := take(t)
			forks, err := readMap[int32, executeForked](e.coll.Maps[executeMapForks])
			must(t, err)
			for _, pid := range pids {
				p := v.process(t, pid)
				parent := v.process(t, int(p.PPID))
				f, ok := forks[p.KernelPID]
				if !ok || f.StartNs != p.StartNS || f.Parent != parent.KernelPID || f.ParentStartNs != parent.StartNS {
					t.Errorf("%v of %v was recorded as %+v, %v", &p, &parent, f, ok)
				}
			}
			if n, err := e.LostForks(); n != 0 || err != nil {
				t.Errorf("%d forks lost, %v", n, err)
			}
		})
	}
}

// TestTracksForksBest: with the program that cannot be preempted, where others can. The
// other is for kernels without a function tracer, and hides no failure of this one.
func TestTracksForksBest(t *testing.T) {
	e := newExecutor(t)
	if best := trackers()[0]; e.tracker != best {
		t.Errorf("forks are recorded by %s, want %s", e.tracker, best)
	}
}

// TestDoomIsInherited: children and grandchildren of the doomed are doomed,
// whether they were born before their parent was written down or after.
func TestDoomIsInherited(t *testing.T) {
	for _, test := range []struct {
		name        string
		late, known bool
	}{
		{"born after Doom", false, false},
		{"born before Doom and in no snapshot", true, false},
		{"born before Doom and in the snapshot", true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newExecutor(t)
			parent := start(t, "breed", nil)
			parent.says(t)
			doomed := []waitgraph.Process{take(t).process(t, parent.PID)}
			var child, grandchild int
			breed := func() {
				if _, err := parent.in.Write([]byte("go\n")); err != nil {
					t.Fatal(err)
				}
				child = onlyChild(t, parent.PID)
				grandchild = onlyChild(t, child)
			}
			if test.late {
				breed()
				must(t, e.Doom(doomed))
			} else {
				must(t, e.Doom(doomed))
				breed()
			}
			got, err := e.Inherit(func(waitgraph.KernelIdentity) bool { return test.known })
			must(t, err)
			v := take(t)
			// A process is to be seen before its fork is written down: its parent may be
			// preempted in between, and it runs only afterwards.
			recorded := func() bool {
				got, err = e.Inherit(func(waitgraph.KernelIdentity) bool { return test.known })
				must(t, err)
				last := v.process(t, grandchild)
				return slices.Contains(got, last.KernelIdentity())
			}
			if !test.known && !recorded() {
				eventually(t, "the grandchild's fork is recorded", recorded)
			}
			for _, pid := range []int{child, grandchild} {
				p := v.process(t, pid)
				if in := slices.Contains(got, p.KernelIdentity()); in == test.known {
					t.Errorf("%v doomed: %v, want %v", &p, in, !test.known)
				}
			}
			if slices.Contains(got, doomed[0].KernelIdentity()) {
				t.Error("the parent itself is among the inherited")
			}
			if self := v.process(t, os.Getpid()); slices.Contains(got, self.KernelIdentity()) {
				t.Error("the parent's parent is among the inherited")
			}
		})
	}
}

// onlyChild waits until a process has a child, and returns its pid.
func onlyChild(t *testing.T, parent int) (pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d has a child", parent), func() bool {
		procs, err := snapshotter(t).Processes()
		must(t, err)
		for i := range procs {
			if int(procs[i].PPID) == parent {
				pid = int(procs[i].PID)
			}
		}
		return pid != 0
	})
	return pid
}

// breed has a child and a grandchild for the first line that it reads. They die
// with their parents.
func breed() error {
	runtime.LockOSThread() // a parent's death is its thread's
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	for range 2 {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid != 0 {
			break
		}
		unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	}
	for { // in a child the Go runtime is dead: system calls only
		unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// TestTripwireKillsWhoWakes: the doomed reader that a death wakes never runs.
func TestTripwireKillsWhoWakes(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	d := stageDuo(t)
	must(t, e.Doom([]waitgraph.Process{d.reader}))
	must(t, e.Arm(patience))
	must(t, e.Open())
	kill(t, int(d.writer.PID))
	if d.settled(t) {
		t.Fatal("the doomed reader ran user code")
	}
	f := fateOf(t, o, d.reader)
	if !f.Tripped || f.Returned || f.SignalledNS == 0 || f.Inherited {
		t.Errorf("%+v, want it tripped and signalled", f)
	}
}

func fateOf(t *testing.T, o *Observer, p waitgraph.Process) Fate {
	t.Helper()
	obs, err := o.Collect()
	must(t, err)
	return obs.fateOf(t, p)
}

func (obs *Observation) fateOf(t *testing.T, p waitgraph.Process) Fate {
	t.Helper()
	for _, f := range obs.Fates {
		if f.KernelIdentity == p.KernelIdentity() {
			return f
		}
	}
	t.Fatalf("%v has no fate", &p)
	return Fate{}
}

// TestTripwireSpares whom it must not touch: the reader wakes and lives.
func TestTripwireSpares(t *testing.T) {
	for _, test := range []struct {
		name string
		arm  func(t *testing.T, e *Executor, d *duo)
	}{
		{"a process that was born at another time", func(t *testing.T, e *Executor, d *duo) {
			d.reader.StartNS++
			must(t, e.Doom([]waitgraph.Process{d.reader}))
			must(t, e.Arm(patience))
			must(t, e.Open())
		}},
		{"everybody before Open", func(t *testing.T, e *Executor, d *duo) {
			must(t, e.Doom([]waitgraph.Process{d.reader}))
			must(t, e.Arm(patience))
		}},
		{"everybody after Disarm", func(t *testing.T, e *Executor, d *duo) {
			must(t, e.Doom([]waitgraph.Process{d.reader}))
			must(t, e.Arm(patience))
			must(t, e.Open())
			must(t, e.Disarm())
		}},
		{"everybody after the deadline", func(t *testing.T, e *Executor, d *duo) {
			must(t, e.Doom([]waitgraph.Process{d.reader}))
			must(t, e.Arm(time.Nanosecond))
			must(t, e.Open())
		}},
		{"everybody after Close", func(t *testing.T, e *Executor, d *duo) {
			closed, err := NewExecutor(ExecutorOptions{Processes: 100})
			must(t, err)
			must(t, closed.Doom([]waitgraph.Process{d.reader}))
			must(t, closed.Arm(patience))
			must(t, closed.Open())
			must(t, closed.Close())
		}},
		{"who is not doomed", func(t *testing.T, e *Executor, d *duo) {
			must(t, e.Doom([]waitgraph.Process{d.writer}))
			must(t, e.Arm(patience))
			must(t, e.Open())
		}},
		{"everybody after the killer was killed", func(t *testing.T, _ *Executor, d *duo) {
			killer := start(t, "armed", func(c *exec.Cmd) {
				c.Env = append(c.Env, fmt.Sprintf("VICTIM=%d %d", d.reader.KernelPID, d.reader.StartNS))
			})
			var id uint32
			if _, err := fmt.Sscan(killer.says(t), &id); err != nil {
				t.Fatal(err)
			}
			must(t, killer.Process.Kill())
			killer.Wait()
			eventually(t, "the killed killer's tripwire is unloaded", func() bool {
				p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
				if err == nil {
					p.Close()
				}
				return errors.Is(err, os.ErrNotExist)
			})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newExecutor(t)
			d := stageDuo(t)
			test.arm(t, e, d)
			kill(t, int(d.writer.PID))
			if !d.settled(t) || dead(int(d.reader.PID)) {
				t.Error("the reader was killed")
			}
		})
	}
}

// TestTripwireSparesInits: whichever of its threads comes back from the kernel.
func TestTripwireSparesInits(t *testing.T) {
	e := newExecutor(t)
	init := start(t, "echo-thread", func(c *exec.Cmd) { c.SysProcAttr.Cloneflags = unix.CLONE_NEWPID })
	for i, word := range []string{"one", "two", "three"} {
		if i == 1 {
			must(t, e.Doom([]waitgraph.Process{take(t).process(t, init.PID)}))
			must(t, e.Arm(patience))
			must(t, e.Open())
		}
		if _, err := fmt.Fprintln(init.in, word); err != nil {
			t.Fatal(err)
		}
		if got := init.says(t); got != word {
			t.Fatalf("it says %q, want %q", got, word)
		}
	}
}

// victim is the process that the test names to a role.
func victim() waitgraph.Process {
	var p waitgraph.Process
	fmt.Sscan(os.Getenv("VICTIM"), &p.KernelPID, &p.StartNS)
	return p
}

// armedInside opens a window and waits to be killed.
func armedInside() error {
	if err := Prepare(); err != nil {
		return err
	}
	e, err := NewExecutor(ExecutorOptions{Processes: 100})
	if err != nil {
		return err
	}
	if err := errors.Join(e.Doom([]waitgraph.Process{victim()}), e.Arm(time.Hour), e.Open()); err != nil {
		return err
	}
	info, err := e.coll.Programs[executeProgTripwire].Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	fmt.Println(id)
	return forever()
}

// forever sleeps until killed, for all the Go runtime knows in a system call.
func forever() error {
	for {
		unix.Pause()
	}
}

// TestTripwireAsksWhatKillAsks: without CAP_KILL, root may not signal others.
func TestTripwireAsksWhatKillAsks(t *testing.T) {
	nstest.Require(t)
	for _, capable := range []bool{false, true} {
		t.Run(fmt.Sprintf("CAP_KILL %v", capable), func(t *testing.T) {
			restore := func() {}
			if !capable {
				restore = lockedWithout(t, unix.CAP_KILL)
			}
			e := newExecutor(t)
			restore()
			p := newPipe(t)
			r := start(t, "read", func(c *exec.Cmd) {
				c.SysProcAttr.Credential = nobody
			}, p.r)
			r.asleep(t, unix.SYS_READ)
			must(t, e.Doom([]waitgraph.Process{take(t).process(t, r.PID)}))
			must(t, e.Arm(patience))
			must(t, e.Open())
			p.w.Close()
			line, err := r.line.ReadString('\n')
			if lives := err == nil && line == "ready\n"; lives == capable {
				t.Errorf("lives: %v (%q, %v)", lives, line, err)
			}
		})
	}
}

// nobody is a user that only CAP_KILL may signal.
var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// lockedWithout takes an effective capability from the calling goroutine's
// thread until the function that it returns is called.
func lockedWithout(t *testing.T, c int) (restore func()) {
	t.Helper()
	runtime.LockOSThread()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&hdr, &data[0]))
	old := data
	data[c/32].Effective &^= 1 << (c % 32)
	must(t, unix.Capset(&hdr, &data[0]))
	return func() {
		must(t, unix.Capset(&hdr, &old[0]))
		runtime.UnlockOSThread()
	}
}

func TestDoomRefusesMoreThanFit(t *testing.T) {
	snapshotter(t)
	e, err := NewExecutor(ExecutorOptions{Processes: 2})
	must(t, err)
	defer e.Close()
	if err := e.Doom(make([]waitgraph.Process, 3)); err == nil {
		t.Error("three processes were doomed in a map for two")
	}
}

func TestOpenDoesNotAllocate(t *testing.T) {
	e := newExecutor(t)
	must(t, e.Doom(nil))
	if n := testing.AllocsPerRun(100, func() { must(t, e.Open()) }); n != 0 {
		t.Errorf("Open allocates %v times", n)
	}
	if !e.HasBatch() {
		return
	}
	if n := testing.AllocsPerRun(100, func() { must(t, e.Deliver()) }); n != 0 {
		t.Errorf("Deliver allocates %v times", n)
	}
}
