package loader

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

func newWatcher(t *testing.T, o WatcherOptions) *Watcher {
	t.Helper()
	snapshotter(t) // skips without privileges, and prepares
	w, err := NewWatcher(o)
	if err != nil {
		t.Fatal(err, VerifierLog(err))
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// contacts counts the wakes from one process to another, by channel.
func contacts(t *testing.T, w *Watcher, from, to waitgraph.Process) map[waitgraph.Channel]uint64 {
	t.Helper()
	all, lost, err := w.Contacts()
	must(t, err)
	if lost != 0 {
		t.Errorf("%d wakes lost", lost)
	}
	out := map[waitgraph.Channel]uint64{}
	for _, c := range all {
		if c.Waker == from.KernelIdentity() && c.Wakee == to.KernelIdentity() {
			if c.WakerComm != from.Comm || c.WakeeComm != to.Comm {
				t.Errorf("%+v: the names are %q and %q", c, from.Comm, to.Comm)
			}
			out[c.Channel] += c.Count
		}
	}
	return out
}

// does sends a staged process a command, and waits until it has carried it out.
func (p *process) does(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
	if answer := p.says(t); answer != "done" {
		t.Fatal(answer)
	}
}

// obedient starts a process that carries out commands. It runs its own program, and has
// that one's name, when this returns.
func obedient(t *testing.T, files ...*os.File) *process {
	t.Helper()
	p := start(t, "obey", nil, files...)
	p.does(t, "nothing")
	return p
}

// obey is a role: it carries out commands about its descriptors from 3 on.
func obey() error {
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		var err error
		var n int
		f := strings.Fields(commands.Text())
		if len(f) == 2 {
			n, err = strconv.Atoi(f[1])
		}
		switch {
		case err != nil:
		case f[0] == "write":
			_, err = unix.Write(n, []byte{1})
		case f[0] == "signal":
			err = unix.Kill(n, unix.SIGWINCH)
		case f[0] == "lock":
			err = unix.Flock(n, unix.LOCK_EX)
		case f[0] == "unlock":
			err = unix.Flock(n, unix.LOCK_UN)
		case f[0] == "futex":
			err = wakeFutex(uintptr(n))
		}
		if err != nil {
			return err
		}
		fmt.Println("done")
	}
	return commands.Err()
}

func wakeFutex(fd uintptr) error {
	const futexWake = 1
	r, err := mapRobust(fd)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&r.futex)), futexWake, 1, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// poker starts a process that wakes this one, which sleeps in a read, through
// the other end of a file.
func poker(t *testing.T, ours, theirs *os.File) *process {
	t.Helper()
	p := obedient(t, theirs)
	readFrom(t, ours)
	return p
}

// TestWatcherNamesChannels: of ordinary wakes.
func TestWatcherNamesChannels(t *testing.T) {
	for _, test := range []struct {
		channel waitgraph.Channel
		command string
		stage   func(t *testing.T) *process
	}{
		{waitgraph.ChannelPipe, "write 3", func(t *testing.T) *process {
			p := newPipe(t)
			return poker(t, p.r, p.w)
		}},
		{waitgraph.ChannelUnix, "write 3", func(t *testing.T) *process {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			return poker(t, file(t, fds[0], err), file(t, fds[1], err))
		}},
		{waitgraph.ChannelTCP, "write 3", func(t *testing.T) *process {
			ours, theirs := tcpPair(t, unix.AF_INET, loopback4)
			return poker(t, ours, theirs)
		}},
		{waitgraph.ChannelFutex, "futex 3", func(t *testing.T) *process {
			fd, err := unix.MemfdCreate("futex", 0)
			page := file(t, fd, err)
			must(t, unix.Ftruncate(fd, int64(os.Getpagesize())))
			p := obedient(t, page)
			r, err := mapRobust(page.Fd())
			must(t, err)
			sleepIn(t, unix.SYS_FUTEX, uintptr(unsafe.Pointer(&r.futex)), 0, 0, 0, 0, 0)
			return p
		}},
		{waitgraph.ChannelLock, "unlock 3", func(t *testing.T) *process {
			fd, err := unix.MemfdCreate("lock", 0)
			ours := file(t, fd, err)
			fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR, 0)
			p := obedient(t, file(t, fd, err))
			p.does(t, "lock 3")
			sleepIn(t, unix.SYS_FLOCK, ours.Fd(), unix.LOCK_EX)
			return p
		}},
		{waitgraph.ChannelUnix, "write 3", func(t *testing.T) *process { // through epoll
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			ours, theirs := file(t, fds[0], err), file(t, fds[1], err)
			fd, err := unix.EpollCreate1(0)
			instance := file(t, fd, err)
			must(t, unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(ours.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN}))
			p := obedient(t, theirs)
			sleepIn(t, unix.SYS_EPOLL_PWAIT, instance.Fd(), uintptr(unsafe.Pointer(&events)), 1, ^uintptr(0), 0, 8)
			return p
		}},
	} {
		t.Run(test.channel.String(), func(t *testing.T) {
			w := newWatcher(t, WatcherOptions{})
			p := test.stage(t)
			v := take(t)
			from, to := v.process(t, p.PID), v.process(t, selfPID)
			must(t, w.Watch([]waitgraph.KernelIdentity{from.KernelIdentity()}))
			p.does(t, "%s", test.command)
			got := contacts(t, w, from, to)
			if got[test.channel] == 0 || got[waitgraph.ChannelOther] != 0 {
				t.Errorf("%v, want some through %v", got, test.channel)
			}
		})
	}
}

// TestWatcherNamesExits: who waits for an exit is woken by it.
func TestWatcherNamesExits(t *testing.T) {
	for channel, wait := range map[waitgraph.Channel]func(t *testing.T, pid int){
		waitgraph.ChannelChild: func(t *testing.T, pid int) {
			sleepIn(t, unix.SYS_WAITID, unix.P_PID, uintptr(pid), 0, unix.WEXITED|unix.WNOWAIT, 0)
		},
		waitgraph.ChannelPidfd: func(t *testing.T, pid int) {
			fd, err := unix.PidfdOpen(pid, 0)
			polled = unix.PollFd{Fd: int32(file(t, fd, err).Fd()), Events: unix.POLLIN}
			sleepIn(t, unix.SYS_PPOLL, uintptr(unsafe.Pointer(&polled)), 1, 0, 0, 8)
		},
	} {
		t.Run(channel.String(), func(t *testing.T) {
			w := newWatcher(t, WatcherOptions{})
			p := obedient(t)
			wait(t, p.PID)
			v := take(t)
			from, to := v.process(t, p.PID), v.process(t, selfPID)
			must(t, w.Watch([]waitgraph.KernelIdentity{from.KernelIdentity()}))
			must(t, p.in.Close()) // which ends it
			eventually(t, "the exit wakes who waits for it", func() bool { return contacts(t, w, from, to)[channel] > 0 })
		})
	}
}

// TestWatcherSeesStops: who stops tells its parent, also where an interrupt brought it
// into the kernel, as it does who runs on and on.
func TestWatcherSeesStops(t *testing.T) {
	w := newWatcher(t, WatcherOptions{})
	pid := spin(t)
	sleepIn(t, unix.SYS_WAITID, unix.P_PID, uintptr(pid), 0, unix.WSTOPPED|unix.WNOWAIT, 0)
	v := take(t)
	from, to := v.process(t, pid), v.process(t, selfPID)
	must(t, w.Watch([]waitgraph.KernelIdentity{from.KernelIdentity()}))
	must(t, unix.Kill(pid, unix.SIGSTOP))
	eventually(t, "the stop wakes who waits for it", func() bool { return contacts(t, w, from, to)[waitgraph.ChannelChild] > 0 })
}

func TestWatcherSeesSignals(t *testing.T) {
	w := newWatcher(t, WatcherOptions{})
	p, sleeper := obedient(t), start(t, "sleep", nil)
	sleeper.says(t)
	sleeper.willTakeSignal(t)
	v := take(t)
	from, to := v.process(t, p.PID), v.process(t, sleeper.PID)
	must(t, w.Watch([]waitgraph.KernelIdentity{from.KernelIdentity()}))
	p.does(t, "signal %d", sleeper.PID)
	if got := contacts(t, w, from, to); got[waitgraph.ChannelSignal] != 1 {
		t.Errorf("%v, want one through a signal", got)
	}
}

// TestWatcherFollowsOneStep: those whom the selected wake are watched as far as
// they wake the watched; those whom nobody selected, and nobody woke, are not.
func TestWatcherFollowsOneStep(t *testing.T) {
	w := newWatcher(t, WatcherOptions{})
	toB, toA, toC := newPipe(t), newPipe(t), newPipe(t)
	a := obedient(t, toB.w)
	b := start(t, "relay", nil, toB.r, toA.w, toC.w)
	b.asleep(t, unix.SYS_READ)
	back := start(t, "read", nil, toA.r)
	back.asleep(t, unix.SYS_READ)
	c := start(t, "read", nil, toC.r)
	c.asleep(t, unix.SYS_READ)
	v := take(t)
	A, B, C, Back := v.process(t, a.PID), v.process(t, b.PID), v.process(t, c.PID), v.process(t, back.PID)

	must(t, w.Watch([]waitgraph.KernelIdentity{A.KernelIdentity(), Back.KernelIdentity()}))
	a.does(t, "write 3")
	if b.says(t) != "ready" {
		t.Fatal("the relay has not passed it on")
	}
	if got := contacts(t, w, A, B); got[waitgraph.ChannelPipe] != 1 {
		t.Errorf("from the selected to the relay: %v", got)
	}
	if got := contacts(t, w, B, Back); got[waitgraph.ChannelPipe] != 1 {
		t.Errorf("from the relay to another selected one: %v", got)
	}
	if got := contacts(t, w, B, C); len(got) != 0 {
		t.Errorf("from the relay to somebody who is not watched: %v", got)
	}
	if selected, met, err := w.Watched(); selected != 2 || met < 1 || err != nil {
		t.Errorf("%d selected and %d met, %v", selected, met, err)
	}

	must(t, w.Watch(nil))
	if got := contacts(t, w, A, B); got[waitgraph.ChannelPipe] != 1 {
		t.Errorf("after nobody was selected any more: %v", got)
	}
	if selected, _, err := w.Watched(); selected != 0 || err != nil {
		t.Errorf("%d selected after nobody was, %v", selected, err)
	}
}

// TestWatcherForgetsTheDead: those who live but for a moment, and are in no list of
// processes, leave their space to the next, and are told of once more, exactly.
func TestWatcherForgetsTheDead(t *testing.T) {
	w := newWatcher(t, WatcherOptions{Processes: 8, Contacts: 16})
	w.grace = 20 * time.Millisecond
	pipe := newPipe(t)
	a := obedient(t, pipe.w)
	A := take(t).process(t, a.PID)
	must(t, w.Watch([]waitgraph.KernelIdentity{A.KernelIdentity()}))
	for range 20 {
		reader := start(t, "read", nil, pipe.r)
		reader.asleep(t, unix.SYS_READ)
		R := take(t).process(t, reader.PID)
		a.does(t, "write 3")
		must(t, reader.Process.Kill())
		reader.Wait()
		told := 0
		eventually(t, "who has died is watched no more", func() bool {
			if got := contacts(t, w, A, R); got[waitgraph.ChannelPipe] != 1 {
				t.Fatalf("a wake of one who has died: %v, after it was told of %d times", got, told)
			}
			told++
			_, found, err := w.find(R.KernelIdentity())
			must(t, err)
			return !found
		})
		if got := contacts(t, w, A, R); len(got) != 0 {
			t.Errorf("told of twice: %v", got)
		}
	}
	if selected, met, err := w.Watched(); selected != 1 || met > 3 || err != nil {
		t.Errorf("%d selected and %d met at the end, %v", selected, met, err)
	}
}

// relay is a role: what comes in on descriptor 3 goes out on 4 and 5.
func relay() error {
	if err := blockIn(unix.SYS_READ, 3, uintptr(unsafe.Pointer(&scratch)), 1); err != nil {
		return err
	}
	for _, fd := range []int{4, 5} {
		if _, err := unix.Write(fd, scratch[:1]); err != nil {
			return err
		}
	}
	return untilEOF()
}

// TestWatcherCountsLosses: a wake without space to count it is said to be lost.
func TestWatcherCountsLosses(t *testing.T) {
	w := newWatcher(t, WatcherOptions{Processes: 8, Contacts: 1})
	one, two := newPipe(t), newPipe(t)
	p := obedient(t, one.w, two.w)
	for _, pipe := range []*testPipe{one, two} {
		start(t, "read", nil, pipe.r).asleep(t, unix.SYS_READ)
	}
	waker := take(t).process(t, p.PID)
	must(t, w.Watch([]waitgraph.KernelIdentity{waker.KernelIdentity()}))
	p.does(t, "write 3")
	p.does(t, "write 4")
	all, lost, err := w.Contacts()
	if len(all) != 1 || lost == 0 || err != nil {
		t.Errorf("%d pairs, %d lost, %v; there is space for one", len(all), lost, err)
	}
}

// TestTimersAreNotCharged: a timer wakes a sleeper in a hard interrupt, which hits whoever
// runs there: that one has nothing to do with it.
func TestTimersAreNotCharged(t *testing.T) {
	w := newWatcher(t, WatcherOptions{})
	stayHere(t)
	spinner := spin(t) // here, too
	v := take(t)
	from, to := v.process(t, spinner), v.process(t, selfPID)
	must(t, w.Watch([]waitgraph.KernelIdentity{from.KernelIdentity(), to.KernelIdentity()}))
	before := usedCPU(t, spinner)
	for range 200 {
		if err := unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
	}
	if usedCPU(t, spinner) == before {
		t.Fatal("nobody ran beside the sleeper, and no interrupt hit anybody")
	}
	if got := contacts(t, w, from, to); len(got) != 0 {
		t.Errorf("who only ran there is said to have woken the sleeper: %v", got)
	}
}

// spin starts a process of one thread that never sleeps, and returns its pid once it runs.
func spin(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo spinning; while :; do :; done")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// usedCPU is the processor time of a process in clock ticks.
func usedCPU(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
	return f[12] + " " + f[13] // utime and stime
}
