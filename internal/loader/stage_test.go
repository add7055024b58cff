package loader

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// patience bounds every wait for a state: an emulated machine is slow.
const patience = time.Minute

// eventually waits until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// asleepIn reports whether a thread sleeps in a system call with those arguments first.
func asleepIn(pid, tid int, number uintptr, args ...uintptr) bool {
	dir := fmt.Sprintf("/proc/%d/task/%d/", pid, tid)
	want := fmt.Sprintf("%d ", number)
	for _, a := range args {
		want += fmt.Sprintf("%#x ", a)
	}
	call, err := os.ReadFile(dir + "syscall")
	if err != nil || !strings.HasPrefix(string(call), want) {
		return false
	}
	stat, err := os.ReadFile(dir + "stat")
	_, after, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.HasPrefix(after, "S")
}

// someThreadIn reports whether any thread of a process sleeps in a system call.
func someThreadIn(pid int, number uintptr) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(tasks, func(e os.DirEntry) bool {
		tid, err := strconv.Atoi(e.Name())
		return err == nil && asleepIn(pid, tid, number)
	})
}

// sleepIn runs a system call that blocks on a thread of this process and returns
// when the thread sleeps. At the end of the test all its pipes are closed, and
// the thread gets signals until it returns.
func sleepIn(t *testing.T, number uintptr, args ...uintptr) {
	t.Helper()
	var a [6]uintptr
	copy(a[:], args)
	var stop atomic.Bool
	tid, done := make(chan int), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		for !stop.Load() {
			if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != unix.EINTR {
				return
			}
		}
	}()
	thread := <-tid
	t.Cleanup(func() {
		stop.Store(true)
		for _, f := range pipeEnds {
			f.Close() // it may be closed
		}
		pipeEnds = nil
		eventually(t, "the sleeper of this process is back", func() bool {
			select {
			case <-done:
				return true
			default:
				unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // the Go runtime ignores it
				return false
			}
		})
	})
	eventually(t, fmt.Sprintf("thread asleep in system call %d", number), func() bool {
		return asleepIn(os.Getpid(), thread, number, args...) // Go's own runtime sleeps in futex, too
	})
}

// pipeEnds are the open pipes of the running test.
var pipeEnds []*os.File

// testPipe is a pipe of this process.
type testPipe struct {
	r, w  *os.File
	inode string // "pipe:[4263]"
}

// newPipe makes a pipe in blocking mode, which Go's own poller leaves alone.
func newPipe(t testing.TB) *testPipe {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "read end"), os.NewFile(uintptr(fds[1]), "write end")
	pipeEnds = append(pipeEnds, r, w)
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return &testPipe{r: r, w: w, inode: linkOf(t, r)}
}

func linkOf(t testing.TB, f *os.File) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// process is a staged process: this binary in a role.
type process struct {
	*exec.Cmd
	PID  int // as this namespace's /proc shows it
	in   io.WriteCloser
	line *bufio.Reader
}

// start runs a role with files from descriptor 3 on. The process dies with the
// test.
func start(t testing.TB, role string, change func(*exec.Cmd), files ...*os.File) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, files
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if change != nil {
		change(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: cmd, PID: cmd.Process.Pid, in: in, line: bufio.NewReader(out)}
	t.Cleanup(func() {
		cmd.Process.Kill() // it may be dead
		cmd.Wait()
	})
	return p
}

// says reads the next line that the process prints.
func (p *process) says(t testing.TB) string {
	t.Helper()
	line, err := p.line.ReadString('\n')
	if err != nil {
		t.Fatalf("process %d: %v", p.PID, err)
	}
	return strings.TrimSpace(line)
}

// asleep waits until the thread that the process names sleeps in a system call.
func (p *process) asleep(t *testing.T, number uintptr) {
	t.Helper()
	tid, err := strconv.Atoi(p.says(t))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprintf("process %d asleep in system call %d", p.PID, number), func() bool {
		return asleepIn(p.PID, tid, number)
	})
}

// roles are what this binary does as a staged process.
var roles = map[string]func() error{
	"read": func() error {
		if err := blockIn(unix.SYS_READ, 3, uintptr(unsafe.Pointer(&scratch)), 1); err != nil {
			return err
		}
		return untilEOF() // woken, it says so
	},
	"poll": func() error {
		fds := []unix.PollFd{{Fd: 3, Events: unix.POLLIN}}
		return blockIn(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 1)
	},
	"ignore-sigchld": func() error {
		signal.Ignore(unix.SIGCHLD)
		return untilEOF()
	},
	"drain":        drain,
	"echo":         echo,
	"echo-thread":  func() error { return onThread(echo) },
	"map":          mapShared(unix.PROT_READ | unix.PROT_WRITE),
	"map-read":     mapShared(unix.PROT_READ),
	"idle":         untilEOF,
	"unheard":      func() error { return parentOfUnheard(false) },
	"unheard-exec": func() error { return parentOfUnheard(true) },
	"vfork":        vforkSibling,
	"share":        sharedTable,
	"lone":         loneReader,
	"snapshot":     snapshotInside,
	"armed":        armedInside,
	"batch":        batchInside,
	"breed":        breed,
	"lock":         takeLock,
	"robust":       ownRobust,
	"reaper":       reap,
	"parent":       parentOfOne,
	"sleep":        sleepOn,
	"obey":         obey,
	"relay":        relay,
	"ping":         ping,
	"pong":         pong,
}

var scratch [64]byte

// blockIn says which thread it is and makes a system call that blocks.
func blockIn(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	runtime.LockOSThread()
	fmt.Println(unix.Gettid())
	for {
		if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != unix.EINTR {
			return nil
		}
	}
}

// drain reads from descriptor 3 to its end, and sleeps there.
func drain() error {
	runtime.LockOSThread()
	fmt.Println(unix.Gettid())
	for {
		n, err := unix.Read(3, scratch[:])
		if n == 0 || err != nil && err != unix.EINTR {
			return err
		}
	}
}

func echo() error {
	_, err := io.Copy(os.Stdout, os.Stdin)
	return err
}

// onThread runs f on a thread that is not the process's first.
func onThread(f func() error) error {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		return f()
	}
	done := make(chan error)
	go func() { done <- onThread(f) }()
	return <-done
}

// untilEOF lives as long as its standard input is open.
func untilEOF() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// parentOfUnheard has a child that was cloned to send nothing at its end, and then, with
// anew, runs another program.
func parentOfUnheard(anew bool) error {
	runtime.LockOSThread()
	if errno := cloneToEOF(0); errno != 0 {
		return errno
	}
	if !anew {
		return untilEOF()
	}
	if err := os.Setenv(roleVariable, "idle"); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

// vforkSibling waits in vfork for a child of its parent.
func vforkSibling() error {
	debug.SetGCPercent(-1) // which would wait for that thread
	go func() {
		runtime.LockOSThread()
		fmt.Println("ready")
		cloneToEOF(unix.CLONE_VFORK | unix.CLONE_PARENT | uintptr(unix.SIGCHLD))
	}()
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// cloneToEOF clones a process that lives until standard input ends.
//
//go:norace
//go:nosplit
func cloneToEOF(flags uintptr) unix.Errno {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return errno
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, 0, uintptr(unsafe.Pointer(&scratch)), 1)
		if n == 0 || errno != 0 && errno != unix.EINTR {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
}

// withClone clones a process with one thread, which sleeps in a system call and dies
// with this one, and lives on beside it. change is what this one does then.
func withClone(flags uintptr, change func() error, number, arg1, arg2, arg3 uintptr) error {
	runtime.LockOSThread()
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
		for {
			unix.RawSyscall6(number, arg1, arg2, arg3, 0, 0, 0)
		}
	}
	if err := change(); err != nil {
		return err
	}
	fmt.Println(pid)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// sharedTable has a clone that shares the descriptor table.
func sharedTable() error {
	return withClone(unix.CLONE_FILES, func() error { return nil }, unix.SYS_PPOLL, 0, 0, 0)
}

// loneReader has one that sleeps in a read of descriptor 4 and alone has descriptor 3.
func loneReader() error {
	return withClone(0, func() error { return unix.Close(3) }, unix.SYS_READ, 4, uintptr(unsafe.Pointer(&scratch)), 1)
}

// stage starts a storm that is asleep when it returns and stopped at the end.
func stage(t *testing.T, o storm.Options) *storm.Storm {
	t.Helper()
	s, err := storm.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

var shared struct {
	sync.Once
	*Snapshotter
	err error
}

// snapshotter is one for all tests: loading takes seconds on an emulated machine.
func snapshotter(t testing.TB) *Snapshotter {
	t.Helper()
	nstest.Require(t)
	shared.Do(func() {
		if shared.err = Prepare(); shared.err == nil {
			shared.Snapshotter, shared.err = NewSnapshotter(SnapshotOptions{})
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err, VerifierLog(shared.err))
	}
	return shared.Snapshotter
}

// view is a snapshot with an index.
type view struct {
	*waitgraph.Snapshot
	pids map[int]int32
}

func take(t testing.TB) *view {
	t.Helper()
	v := takeWith(t, snapshotter(t))
	if v.Incomplete.Queues != 0 || v.Incomplete.Records != 0 {
		t.Fatalf("incomplete: %+v", v.Incomplete)
	}
	return v
}

func takeWith(t testing.TB, s *Snapshotter) *view {
	t.Helper()
	snap, err := s.Take()
	if err != nil {
		t.Fatal(err, VerifierLog(err))
	}
	v := &view{snap, map[int]int32{}}
	for i, p := range snap.Processes {
		if p.PID != 0 {
			v.pids[int(p.PID)] = int32(i)
		}
	}
	return v
}

// process returns the process of that pid.
func (v *view) process(t testing.TB, pid int) waitgraph.Process {
	t.Helper()
	i, ok := v.pids[pid]
	if !ok {
		t.Fatalf("process %d is not in the snapshot", pid)
	}
	return v.Processes[i]
}

// object returns the index of a pipe or FIFO, -1 when it is not there.
func (v *view) object(name string) int32 {
	for i := range v.Objects {
		if v.Objects[i].Name == name {
			return int32(i)
		}
	}
	return -1
}

// asleepOn lists who sleeps on an object, by pid.
func (v *view) asleepOn(name string) map[int][]waitgraph.Sleeper {
	o := v.object(name)
	out := map[int][]waitgraph.Sleeper{}
	for _, s := range v.Sleepers {
		if s.Object == o {
			pid := int(v.Processes[s.Process].PID)
			out[pid] = append(out[pid], s)
		}
	}
	return out
}

// source returns what the wait graph makes of an object, nil when nobody waits.
func (v *view) source(name string) *waitgraph.Source {
	g := waitgraph.New(v.Snapshot)
	for i := range g.Sources {
		if g.Sources[i].Name == name {
			return &g.Sources[i]
		}
	}
	return nil
}

// members returns the storm's processes as the kernel sees them, by role.
func members(t *testing.T, s *storm.Storm) map[string][]waitgraph.Process {
	t.Helper()
	v := take(t)
	out := map[string][]waitgraph.Process{}
	for _, p := range s.Processes() {
		out[p.Role] = append(out[p.Role], v.process(t, p.PID))
	}
	return out
}

// status reads fields of /proc/PID/status.
func status(t testing.TB, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, line := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.TrimSpace(v)
	}
	return out
}

// kill ends a process by hand and waits until it is dead.
func kill(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a killed process is dead", func() bool { return dead(pid) })
}

// dead reports whether a process is gone or a zombie.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}
