package loader

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestChannels: a process that dies wakes a thread of this process, and the
// observer names what it was through.
func TestChannels(t *testing.T) {
	for _, test := range []struct {
		name    string
		channel waitgraph.Channel
		stage   func(t *testing.T) *process // the process to kill; this one waits
	}{
		{"pipe, through nested epoll", waitgraph.ChannelPipe, nestedEpoll},
		{"unix stream", waitgraph.ChannelUnix, func(t *testing.T) *process { return unixPeer(t, unix.SOCK_STREAM) }},
		{"unix seqpacket", waitgraph.ChannelUnix, func(t *testing.T) *process { return unixPeer(t, unix.SOCK_SEQPACKET) }},
		{"unix datagram, queue full", waitgraph.ChannelUnix, unixReceiver},
		{"unix listener", waitgraph.ChannelUnix, func(t *testing.T) *process {
			return listener(t, unix.AF_UNIX, &unix.SockaddrUnix{Name: filepath.Join(t.TempDir(), "socket")})
		}},
		{"tcp over IPv4", waitgraph.ChannelTCP, func(t *testing.T) *process { return tcpPeer(t, unix.AF_INET, loopback4) }},
		{"tcp over IPv6", waitgraph.ChannelTCP, func(t *testing.T) *process { return tcpPeer(t, unix.AF_INET6, loopback6) }},
		{"tcp, reset", waitgraph.ChannelTCP, func(t *testing.T) *process { return tcpReset(t) }},
		{"tcp listener", waitgraph.ChannelTCP, func(t *testing.T) *process { return listener(t, unix.AF_INET, loopback4) }},
		{"terminal's master", waitgraph.ChannelPTY, func(t *testing.T) *process { return ptyHolder(t, 0) }},
		{"terminal's slave", waitgraph.ChannelPTY, func(t *testing.T) *process { return ptyHolder(t, 1) }},
		{"flock", waitgraph.ChannelLock, func(t *testing.T) *process { return locker(t, "flock") }},
		{"POSIX lock", waitgraph.ChannelLock, func(t *testing.T) *process { return locker(t, "posix") }},
		{"OFD lock", waitgraph.ChannelLock, func(t *testing.T) *process { return locker(t, "ofd") }},
		{"robust futex", waitgraph.ChannelFutex, robustOwner},
		{"pidfd", waitgraph.ChannelPidfd, pidfdOf},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newExecutor(t)
			o := observe(t, e)
			p := test.stage(t)
			v := take(t)
			must(t, e.Doom([]waitgraph.Process{v.process(t, p.PID)}))
			must(t, p.Process.Kill())
			p.Wait()
			found := false
			// Through ksoftirqd it may take a moment after the death.
			eventually(t, "the wake is counted as "+test.channel.String(), func() bool {
				for _, w := range wakesOf(t, o, v.process(t, selfPID)) {
					if w.Channel == waitgraph.ChannelOther {
						t.Errorf("%+v", w)
					}
					found = found || w.Channel == test.channel && w.Cause.KernelPID == v.process(t, p.PID).KernelPID
				}
				return found
			})
		})
	}
}

// TestManyWaitForAChild: more threads than are looked at.
func TestManyWaitForAChild(t *testing.T) {
	const threads = 100
	e := newExecutor(t)
	o := observe(t, e)
	p := start(t, "idle", nil)
	p.says(t)
	var waiting sync.WaitGroup
	tids := make(chan int)
	for range threads {
		waiting.Go(func() {
			runtime.LockOSThread() // and end the thread
			tids <- unix.Gettid()
			for unix.Waitid(unix.P_PID, p.PID, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
			}
		})
	}
	for range threads {
		tid := <-tids
		eventually(t, "a thread waits", func() bool { return asleepIn(os.Getpid(), tid, unix.SYS_WAITID) })
	}
	v := take(t)
	must(t, e.Doom([]waitgraph.Process{v.process(t, p.PID)}))
	must(t, p.Process.Kill())
	waiting.Wait()
	counted := uint64(0)
	for _, w := range wakesOf(t, o, v.process(t, selfPID)) {
		switch w.Channel {
		case waitgraph.ChannelChild:
			counted += w.Count
		case waitgraph.ChannelPidfd:
			t.Errorf("%+v, and nobody polls a pidfd", w)
		}
	}
	if counted < threads {
		t.Errorf("%d wakes of %d threads", counted, threads)
	}
}

// stayHere keeps the test, and what it starts from now on, on one CPU.
func stayHere(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	old, err := affinity.Get(0)
	must(t, err)
	cpu, err := affinity.CPU()
	must(t, err)
	one := affinity.Only(cpu)
	if errno := affinity.Apply(0, &one); errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { // on the same goroutine
		affinity.Apply(0, &old)
		runtime.UnlockOSThread()
	})
}

// TestTrafficIsNotCharged: a connection whose one end died wakes the other, on the same
// CPU as the data of others, which wake whom they would; so do connections that are half
// closed, on which data changes no state and is not received as on others.
func TestTrafficIsNotCharged(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	for _, c := range []struct {
		name       string
		af         int
		at         unix.Sockaddr
		halfClosed bool
	}{
		{"IPv4", unix.AF_INET, loopback4, false}, {"IPv6", unix.AF_INET6, loopback6, false},
		{"IPv4, half closed", unix.AF_INET, loopback4, true}, {"IPv6, half closed", unix.AF_INET6, loopback6, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			stayHere(t)
			ours, theirs := tcpPair(t, c.af, c.at)
			// Of a reset nothing more is heard; an orderly end is acknowledged.
			if _, err := unix.Write(int(ours.Fd()), []byte{1}); err != nil {
				t.Fatal(err)
			}
			victim := holder(t, theirs)
			reader := start(t, "read", nil, ours)
			must(t, ours.Close())
			reader.asleep(t, unix.SYS_READ)
			from, to := tcpPair(t, c.af, c.at)
			if c.halfClosed {
				must(t, unix.Shutdown(int(to.Fd()), unix.SHUT_WR))
			}
			other := start(t, "drain", nil, to)
			tid, err := strconv.Atoi(other.says(t))
			must(t, err)
			asleep := func() bool { return asleepIn(other.PID, tid, unix.SYS_READ) }
			eventually(t, "it waits for data", asleep)
			v := take(t)
			must(t, e.Doom([]waitgraph.Process{v.process(t, victim.PID)}))
			must(t, victim.Process.Kill())
			victim.Wait()
			for range 20 {
				if _, err := unix.Write(int(from.Fd()), []byte{1}); err != nil {
					t.Fatal(err)
				}
				eventually(t, "it waits again", asleep)
			}
			if wakes := wakesOf(t, o, v.process(t, reader.PID)); len(wakes) != 1 || wakes[0].Channel != waitgraph.ChannelTCP {
				t.Errorf("the reader: %+v, want one wake through TCP", wakes)
			}
			if wakes := wakesOf(t, o, v.process(t, other.PID)); len(wakes) != 0 {
				t.Errorf("somebody else's reader: %+v", wakes)
			}
		})
	}
}

var (
	loopback4 = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	loopback6 = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
)

// file makes a file of a descriptor; it is closed with the test.
func file(t *testing.T, fd int, err error) *os.File {
	t.Helper()
	must(t, err)
	f := os.NewFile(uintptr(fd), "staged")
	pipeEnds = append(pipeEnds, f)
	return f
}

// holder starts a process that holds files, the only one then.
func holder(t *testing.T, files ...*os.File) *process {
	t.Helper()
	p := start(t, "idle", nil, files...)
	p.says(t)
	for _, f := range files {
		must(t, f.Close())
	}
	return p
}

func readFrom(t *testing.T, f *os.File) {
	t.Helper()
	sleepIn(t, unix.SYS_READ, f.Fd(), uintptr(unsafe.Pointer(&scratch)), 1)
}

func nestedEpoll(t *testing.T) *process {
	pipe := newPipe(t)
	inner, err := unix.EpollCreate1(0)
	in := file(t, inner, err)
	outer, err := unix.EpollCreate1(0)
	out := file(t, outer, err)
	must(t, unix.EpollCtl(inner, unix.EPOLL_CTL_ADD, int(pipe.r.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN}))
	must(t, unix.EpollCtl(outer, unix.EPOLL_CTL_ADD, int(in.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN}))
	p := holder(t, pipe.w)
	sleepIn(t, unix.SYS_EPOLL_PWAIT, out.Fd(), uintptr(unsafe.Pointer(&events)), 1, ^uintptr(0), 0, 8)
	return p
}

// What the kernel writes to while a thread sleeps: memory that stays where it is.
var (
	events [1]unix.EpollEvent
	polled unix.PollFd
)

func unixPeer(t *testing.T, kind int) *process {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	ours, theirs := file(t, fds[0], err), file(t, fds[1], err)
	p := holder(t, theirs)
	readFrom(t, ours)
	return p
}

// unixReceiver does not receive: this process waits for space in its queue.
func unixReceiver(t *testing.T) *process {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	ours, theirs := file(t, fds[0], err), file(t, fds[1], err)
	for err == nil {
		err = unix.Sendto(int(ours.Fd()), []byte{1}, unix.MSG_DONTWAIT, nil)
	}
	p := holder(t, theirs)
	sleepIn(t, unix.SYS_WRITE, ours.Fd(), uintptr(unsafe.Pointer(&scratch)), 1)
	return p
}

// listen returns a socket that listens at an address, and the address.
func listen(t *testing.T, family int, at unix.Sockaddr) (*os.File, unix.Sockaddr) {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	l := file(t, fd, err)
	must(t, unix.Bind(fd, at))
	must(t, unix.Listen(fd, 8))
	addr, err := unix.Getsockname(fd)
	must(t, err)
	return l, addr
}

func connect(t *testing.T, family int, to unix.Sockaddr) *os.File {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	c := file(t, fd, err)
	must(t, unix.Connect(fd, to))
	return c
}

// listener has not accepted the connection on which this process waits.
func listener(t *testing.T, family int, at unix.Sockaddr) *process {
	l, addr := listen(t, family, at)
	c := connect(t, family, addr)
	p := holder(t, l)
	readFrom(t, c)
	return p
}

func tcpPair(t *testing.T, family int, at unix.Sockaddr) (ours, theirs *os.File) {
	t.Helper()
	l, addr := listen(t, family, at)
	c := connect(t, family, addr)
	fd, _, err := unix.Accept(int(l.Fd()))
	return c, file(t, fd, err)
}

func tcpPeer(t *testing.T, family int, at unix.Sockaddr) *process {
	ours, theirs := tcpPair(t, family, at)
	p := holder(t, theirs)
	readFrom(t, ours)
	return p
}

// tcpReset has not read what it was sent, so that its death resets the
// connection.
func tcpReset(t *testing.T) *process {
	ours, theirs := tcpPair(t, unix.AF_INET, loopback4)
	if _, err := unix.Write(int(ours.Fd()), []byte{1}); err != nil {
		t.Fatal(err)
	}
	p := holder(t, theirs)
	readFrom(t, ours)
	return p
}

// ptyHolder holds one end of a terminal, master or slave; this process reads
// from the other.
func ptyHolder(t *testing.T, end int) *process {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	master := file(t, fd, err)
	must(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	sfd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Fatal(errno)
	}
	ends := []*os.File{master, file(t, int(sfd), nil)}
	p := holder(t, ends[end])
	readFrom(t, ends[1-end])
	return p
}

// locker holds a lock that this process waits for.
func locker(t *testing.T, kind string) *process {
	path := filepath.Join(t.TempDir(), "lock")
	p := start(t, "lock", func(c *exec.Cmd) { c.Env = append(c.Env, "KIND="+kind, "FILE="+path) })
	p.says(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	pipeEnds = append(pipeEnds, f)
	number, args, _ := lockCall(kind, f.Fd())
	sleepIn(t, number, args...)
	return p
}

var wholeFile = unix.Flock_t{Type: unix.F_WRLCK}

func lockCall(kind string, fd uintptr) (number uintptr, args []uintptr, err error) {
	switch kind {
	case "flock":
		return unix.SYS_FLOCK, []uintptr{fd, unix.LOCK_EX}, nil
	case "posix":
		return unix.SYS_FCNTL, []uintptr{fd, unix.F_SETLKW, uintptr(unsafe.Pointer(&wholeFile))}, nil
	case "ofd":
		return unix.SYS_FCNTL, []uintptr{fd, unix.F_OFD_SETLKW, uintptr(unsafe.Pointer(&wholeFile))}, nil
	}
	return 0, nil, fmt.Errorf("no lock is called %q", kind)
}

// takeLock is a role: it takes a lock, and keeps it.
func takeLock() error {
	f, err := os.Create(os.Getenv("FILE"))
	if err != nil {
		return err
	}
	defer f.Close()
	number, args, err := lockCall(os.Getenv("KIND"), f.Fd())
	if err != nil {
		return err
	}
	args = append(args, 0)
	if _, _, errno := unix.Syscall(number, args[0], args[1], args[2]); errno != 0 {
		return errno
	}
	return untilEOF()
}

// robust is a page that two processes share: a robust list's only entry, and
// the futex behind it.
type robust struct {
	next  uintptr
	futex uint32
}

var robustHead struct{ next, offset, pending uintptr }

func mapRobust(fd uintptr) (*robust, error) {
	page, err := unix.Mmap(int(fd), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*robust)(unsafe.Pointer(&page[0])), nil
}

// robustOwner owns a robust mutex that this process waits for.
func robustOwner(t *testing.T) *process {
	fd, err := unix.MemfdCreate("robust", 0)
	page := file(t, fd, err)
	must(t, unix.Ftruncate(fd, int64(os.Getpagesize())))
	p := start(t, "robust", nil, page)
	owner, err := strconv.ParseUint(p.says(t), 10, 32)
	must(t, err)
	r, err := mapRobust(page.Fd())
	must(t, err)
	const futexWait = 0
	sleepIn(t, unix.SYS_FUTEX, uintptr(unsafe.Pointer(&r.futex)), futexWait, uintptr(owner), 0, 0, 0)
	return p
}

// ownRobust is a role: the owner of a robust mutex that somebody waits for.
func ownRobust() error {
	runtime.LockOSThread()
	r, err := mapRobust(3)
	if err != nil {
		return err
	}
	const waiters = 1 << 31
	head := &robustHead
	head.next, head.offset = uintptr(unsafe.Pointer(r)), unsafe.Offsetof(r.futex)
	r.next = uintptr(unsafe.Pointer(head))
	r.futex = uint32(unix.Gettid()) | waiters
	if _, _, errno := unix.Syscall(unix.SYS_SET_ROBUST_LIST, uintptr(unsafe.Pointer(head)), unsafe.Sizeof(*head), 0); errno != 0 {
		return errno
	}
	fmt.Println(r.futex)
	return untilEOF()
}

func pidfdOf(t *testing.T) *process {
	p := holder(t)
	fd, err := unix.PidfdOpen(p.PID, 0)
	file(t, fd, err)
	polled = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	sleepIn(t, unix.SYS_PPOLL, uintptr(unsafe.Pointer(&polled)), 1, 0, 0)
	return p
}

// noticeInterval is the least time between two notices of one cgroup
// (CGROUP_FILE_NOTIFY_MIN_INTV): what comes sooner waits for a timer.
const noticeInterval = 10 * time.Millisecond

// TestCgroupEmpties: a death that leaves a cgroup without processes wakes who polls
// its cgroup.events. Since v6.19 (d245698d727a) a task leaves its cgroup only in the
// switch to the next one, to whom such a wake cannot be charged. Nor can what a timer
// tells of a cgroup that changed a moment ago.
func TestCgroupEmpties(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	dir := testCgroup(t)
	p := holder(t)
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.PID)), 0))
	fd, err := unix.Open(filepath.Join(dir, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	file(t, fd, err)
	_, err = unix.Read(fd, make([]byte, 64)) // from now on a change is news
	must(t, err)
	polled = unix.PollFd{Fd: int32(fd), Events: unix.POLLPRI}
	sleepIn(t, unix.SYS_PPOLL, uintptr(unsafe.Pointer(&polled)), 1, 0, 0)
	v := take(t)
	must(t, e.Doom([]waitgraph.Process{v.process(t, p.PID)}))
	time.Sleep(5 * noticeInterval)
	must(t, p.Process.Kill())
	p.Wait()
	eventually(t, "the cgroup is said to be empty", func() bool { return polled.Revents&unix.POLLPRI != 0 })
	seen := func() bool {
		return slices.ContainsFunc(wakesOf(t, o, v.process(t, selfPID)), func(w Wake) bool { return w.Channel == waitgraph.ChannelOther })
	}
	if want := !nstest.KernelAtLeast(t, 6, 19); seen() != want {
		t.Errorf("measured: %v, want %v", !want, want)
	}
}

// TestParentDeathSignal: to a child that asked for it.
func TestParentDeathSignal(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	parent := start(t, "parent", nil)
	pid, err := strconv.Atoi(parent.says(t))
	must(t, err)
	(&process{PID: pid}).willTakeSignal(t)
	v := take(t)
	child := v.process(t, pid)
	must(t, e.Doom([]waitgraph.Process{v.process(t, parent.PID)}))
	must(t, parent.Process.Kill())
	parent.Wait()
	eventually(t, "the child's wake is counted", func() bool {
		for _, w := range wakesOf(t, o, child) {
			if w.Channel == waitgraph.ChannelParentDeath {
				return true
			}
		}
		return false
	})
}

// willTakeSignal waits until the thread sleeps that the kernel likes best for a
// signal to the process.
func (p *process) willTakeSignal(t *testing.T) {
	t.Helper()
	eventually(t, "the first thread sleeps", func() bool {
		return asleepIn(p.PID, p.PID, unix.SYS_PPOLL) || asleepIn(p.PID, p.PID, unix.SYS_FUTEX)
	})
}

// parentOfOne is a role: its child wants SIGUSR1 at its death.
func parentOfOne() error {
	runtime.LockOSThread() // the parent of a child is a thread
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=sleep")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGUSR1}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := out.Read(scratch[:1]); err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	return untilEOF()
}

// sleepOn is a role: it dies of SIGUSR1, and of nothing else.
func sleepOn() error {
	fmt.Println("ready")
	_, err := unix.Ppoll(nil, nil, nil)
	return err
}

// TestWhoReaps: of those who wait for a child.
func TestWhoReaps(t *testing.T) {
	nstest.Require(t)
	for _, test := range []struct {
		name  string
		flags uintptr
		keeps bool
	}{
		{"to reap it", unix.WEXITED, false},
		{"to look at it", unix.WEXITED | unix.WNOWAIT, true},
		{"for it to stop", unix.WSTOPPED, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			child := start(t, "idle", nil)
			child.says(t)
			sleepIn(t, unix.SYS_WAITID, unix.P_PID, uintptr(child.PID), 0, test.flags, 0)
			t.Cleanup(func() { // no signal ends the wait
				child.Process.Kill()
				child.Wait()
			})
			v := take(t)
			at, self := v.pids[child.PID], v.pids[os.Getpid()]
			var found []waitgraph.ChildWait
			for _, w := range v.ChildWaits {
				if w.Process == self && w.Child == at {
					found = append(found, w)
				}
			}
			if len(found) != 1 || found[0].Keeps != test.keeps {
				t.Errorf("%+v, want one with keeps %v", found, test.keeps)
			}
		})
	}
}
