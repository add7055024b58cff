package loader

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// pointer is an argument of a system call that outlives the caller: kept is
// what holds the memory, and holds it on the heap.
func pointer[T any](v *T) uintptr {
	kept = append(kept, v)
	return uintptr(unsafe.Pointer(v))
}

var kept []any

// epollOn makes an epoll instance that watches files.
func epollOn(t *testing.T, events uint32, files ...*os.File) int {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ep) })
	for _, f := range files {
		ev := unix.EpollEvent{Events: events, Fd: int32(f.Fd())}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, int(f.Fd()), &ev); err != nil {
			t.Fatal(err)
		}
	}
	return ep
}

// waitOn puts threads of this process to sleep in epoll_wait, until wake.
func waitOn(t *testing.T, ep, threads int) {
	for range threads {
		events := new([1]unix.EpollEvent)
		sleepIn(t, unix.SYS_EPOLL_PWAIT, uintptr(ep), pointer(events), 1, ^uintptr(0), 0, 8)
	}
}

// TestEveryWayToSleepOnAPipe: one thread of this process sleeps; how and how
// often it is found.
func TestEveryWayToSleepOnAPipe(t *testing.T) {
	nstest.Require(t)
	buf := new([8192]byte)
	readSet := func(p *testPipe) *unix.FdSet {
		s := new(unix.FdSet)
		s.Set(int(p.r.Fd()))
		return s
	}
	pollSet := func(p *testPipe) *[2]unix.PollFd {
		return &[2]unix.PollFd{{Fd: int32(p.r.Fd()), Events: unix.POLLIN}}
	}
	for _, test := range []struct {
		name  string
		sleep func(t *testing.T, p *testPipe)
		via   waitgraph.Via
		count int
		excl  bool
	}{
		{"read", func(t *testing.T, p *testPipe) { sleepIn(t, unix.SYS_READ, p.r.Fd(), pointer(buf), 1) },
			waitgraph.ViaPlain, 1, true}, // pipe readers queue exclusively since v5.6
		{"write to a full pipe", func(t *testing.T, p *testPipe) { sleepWriting(t, p) },
			waitgraph.ViaPlain, 1, true},
		{"ppoll", func(t *testing.T, p *testPipe) { sleepIn(t, unix.SYS_PPOLL, pointer(pollSet(p)), 1) },
			waitgraph.ViaPoll, 1, false},
		{"pselect6", func(t *testing.T, p *testPipe) {
			sleepIn(t, unix.SYS_PSELECT6, p.r.Fd()+1, pointer(readSet(p)))
		}, waitgraph.ViaPoll, 1, false},
		{"epoll", func(t *testing.T, p *testPipe) { waitOn(t, epollOn(t, unix.EPOLLIN, p.r), 1) },
			waitgraph.ViaEpoll, 1, true},
		{"epoll, edge-triggered", func(t *testing.T, p *testPipe) {
			waitOn(t, epollOn(t, unix.EPOLLIN|unix.EPOLLET, p.r), 1)
		}, waitgraph.ViaEpoll, 1, true},
		{"epoll, exclusive", func(t *testing.T, p *testPipe) {
			waitOn(t, epollOn(t, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, p.r), 1)
		}, waitgraph.ViaEpoll, 1, true},
		{"epoll, one-shot and armed", func(t *testing.T, p *testPipe) {
			waitOn(t, epollOn(t, unix.EPOLLIN|unix.EPOLLONESHOT, p.r), 1)
		}, waitgraph.ViaEpoll, 1, true},
		{"epoll, one-shot and fired", func(t *testing.T, p *testPipe) {
			ep := epollOn(t, unix.EPOLLIN|unix.EPOLLONESHOT, p.r)
			fire(t, ep, p)
			waitOn(t, ep, 1)
		}, waitgraph.ViaEpoll, 0, false},
		{"epoll, several threads of one process", func(t *testing.T, p *testPipe) {
			waitOn(t, epollOn(t, unix.EPOLLIN, p.r), 3)
		}, waitgraph.ViaEpoll, 1, true},
		{"two epoll instances", func(t *testing.T, p *testPipe) {
			waitOn(t, epollOn(t, unix.EPOLLIN, p.r), 1)
			waitOn(t, epollOn(t, unix.EPOLLIN, p.r), 1)
		}, waitgraph.ViaEpoll, 1, true},
		{"an epoll instance that nobody waits on", func(t *testing.T, p *testPipe) {
			epollOn(t, unix.EPOLLIN, p.r)
		}, waitgraph.ViaEpoll, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPipe(t)
			test.sleep(t, p)
			v := take(t)
			all := v.asleepOn(p.inode)
			got := all[os.Getpid()]
			if len(got) != test.count || len(all) > 1 {
				t.Fatalf("%d sleepers of this process, want %d: %+v", len(got), test.count, all)
			}
			for _, s := range got {
				if s.Via != test.via {
					t.Errorf("queued via %v, want %v", s.Via, test.via)
				}
				if s.Via != waitgraph.ViaEpoll && s.Exclusive != test.excl {
					t.Errorf("exclusive %v, want %v", s.Exclusive, test.excl)
				}
				if (s.Via == waitgraph.ViaPoll) != (s.File >= 0) {
					t.Errorf("file %d of a sleeper via %v", s.File, s.Via)
				}
			}
		})
	}
}

// sleepWriting fills a pipe and sleeps in write(2).
func sleepWriting(t *testing.T, p *testPipe) {
	t.Helper()
	size, err := unix.FcntlInt(p.w.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	sleepIn(t, unix.SYS_WRITE, p.w.Fd(), pointer(&scratch), 1)
}

// fire makes an epoll instance report the pipe once, and empties it again.
func fire(t *testing.T, ep int, p *testPipe) {
	t.Helper()
	if _, err := p.w.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.EpollWait(ep, make([]unix.EpollEvent, 1), -1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := p.r.Read(scratch[:1]); err != nil {
		t.Fatal(err)
	}
}

// TestOneEpollInstanceOnManyPipes: the sleeper is found on each of them, and its
// instance's own queue is walked once.
func TestOneEpollInstanceOnManyPipes(t *testing.T) {
	nstest.Require(t)
	const pipes = 40
	var names []string
	var files []*os.File
	for range pipes {
		p := newPipe(t)
		names, files = append(names, p.inode), append(files, p.r)
	}
	waitOn(t, epollOn(t, unix.EPOLLIN, files...), 2)
	v := take(t)
	checkWalkedOnce(t)
	for _, name := range names {
		if got := v.asleepOn(name); len(got[os.Getpid()]) != 1 || len(got) != 1 {
			t.Errorf("%s: %+v, want this process, once for its two threads", name, got)
		}
	}
}

// TestFIFOOpen: a process in open(2) of a FIFO waits for the first peer. It sleeps where
// readers do, and the end of another of its side has it look in vain.
func TestFIFOOpen(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	path := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	other := holder(t, file(t, fd, err)) // so that the FIFO is in a table
	fifo := fmt.Sprintf("fifo:[%d]", pathInode(t, path))
	if src := take(t).source(fifo); src != nil {
		t.Errorf("%+v, and nobody waits", src)
	}
	name, err := unix.BytePtrFromString(path)
	must(t, err)
	dirfd := unix.AT_FDCWD
	// Both ends at once let it go, and stay until it has: after a signal it looks again.
	both := -1
	t.Cleanup(func() { unix.Close(both) })
	sleepIn(t, unix.SYS_OPENAT, uintptr(dirfd), pointer(name), unix.O_RDONLY|unix.O_CLOEXEC)
	t.Cleanup(func() {
		var err error
		if both, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			t.Error(err)
		}
	})
	v := take(t)
	if got := v.asleepOn(fifo); len(got[os.Getpid()]) != 1 || len(got) != 1 {
		t.Errorf("asleep there: %+v, want a thread of this process", got)
	}
	src := v.source(fifo + " (read end)")
	if src == nil || !slices.Equal(v.pidsOf(src.Holders), []int{other.PID}) || !slices.Equal(v.pidsOf(src.Waiters), []int{os.Getpid()}) {
		t.Fatalf("%+v, want process %d to wake this one", src, other.PID)
	}
	must(t, e.Doom([]waitgraph.Process{v.process(t, other.PID)}))
	must(t, other.Process.Kill())
	other.Wait()
	if !slices.ContainsFunc(wakesOf(t, o, v.process(t, selfPID)), func(w Wake) bool { return w.Channel == waitgraph.ChannelPipe }) {
		t.Error("it has not woken")
	}
}

func pathInode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// herdSize is how many processes sleep on one pipe.
func herdSize() int {
	if nstest.InVM() {
		return 500
	}
	return 5000
}

// TestHerdIsComplete: each of thousands of sleepers on one queue once, although
// thousands of descriptors lead to it.
func TestHerdIsComplete(t *testing.T) {
	nstest.Require(t)
	n := herdSize()
	s := stage(t, storm.Options{Topology: "herd", Processes: n})
	v := take(t)
	checkWalkedOnce(t)
	var readers []int
	for _, m := range s.Processes() {
		if m.Role == "reader" {
			readers = append(readers, m.PID)
		}
	}
	writer := s.Targets()[0].PID
	g := waitgraph.New(v.Snapshot)
	found := false
	for _, src := range g.Sources {
		if len(src.Waiters) != n {
			continue
		}
		found = true
		checkSource(t, v, src.Name, []int{writer}, readers)
		for pid, list := range v.asleepOn(src.Name) {
			if len(list) != 1 {
				t.Errorf("process %d is listed %d times", pid, len(list))
			}
		}
	}
	if !found {
		t.Errorf("no source with %d waiters; %d sleepers in all", n, len(v.Sleepers))
	}
	t.Run("small buffers grow", func(t *testing.T) { growsInto(t, n) })
	t.Run("a limit is told", func(t *testing.T) { tellsLimit(t, n) })
}

// checkWalkedOnce: the kernel side did not hand over any entry of the last
// snapshot twice. The snapshot itself would not show it.
func checkWalkedOnce(t *testing.T) {
	t.Helper()
	seen := map[[3]uint64]bool{}
	for _, r := range snapshotter(t).sleeper {
		key := [3]uint64{r.EntryId, r.QueueId, r.LinkId}
		if seen[key] {
			t.Fatalf("an entry of a wait queue was read twice, among %d", len(snapshotter(t).sleeper))
		}
		seen[key] = true
	}
}

// growsInto reads the same herd with buffers that are too small at first.
func growsInto(t *testing.T, herd int) {
	s := snapshotter(t)
	small := &Snapshotter{consts: s.consts, limits: snapshotLimits{sleepersBytes: uint32(os.Getpagesize()), queues: 256, pending: 64}}
	if err := small.load(); err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	first := small.limits
	// Its own buffer is a page: at most that many records fit between reads.
	v := takeWith(t, small)
	if v.Incomplete.Any() {
		t.Errorf("incomplete in the end: %+v", v.Incomplete)
	}
	if n := v.longestQueue(); n != herd {
		t.Errorf("%d sleepers on one pipe, want %d", n, herd)
	}
	if small.limits == first {
		t.Error("nothing had to grow: the test tests nothing")
	}
}

// tellsLimit: a queue that is longer than the limit is cut short and counted.
func tellsLimit(t *testing.T, sleeping int) {
	s := snapshotter(t)
	limited := &Snapshotter{consts: s.consts, limits: s.limits}
	limited.consts.queueLimit = 100
	if err := limited.load(); err != nil {
		t.Fatal(err)
	}
	defer limited.Close()
	v := takeWith(t, limited)
	if v.Incomplete.Queues != 1 {
		t.Errorf("incomplete %+v, want one queue cut short", v.Incomplete)
	}
	if n := v.longestQueue(); n != 100 {
		t.Errorf("%d of %d sleepers read, the limit is 100", n, sleeping)
	}
}

// longestQueue is how many processes sleep where most do.
func (v *view) longestQueue() (n int) {
	for i := range v.Objects {
		n = max(n, len(v.asleepOn(v.Objects[i].Name)))
	}
	return n
}

// TestStableSleeperUnderChurn: threads enter and leave the same queue as fast as
// they can. Who sleeps all the time is in every snapshot, or the snapshot says
// that it gave up on the queue.
func TestStableSleeperUnderChurn(t *testing.T) {
	nstest.Require(t)
	snapshots := 200
	if nstest.InVM() {
		snapshots = 30
	}
	p := newPipe(t)
	stable := []int{reader(t, p, "poll", unix.SYS_PPOLL), reader(t, p, "read", unix.SYS_READ), reader(t, p, "poll", unix.SYS_PPOLL)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var passes atomic.Int64
	ended := make(chan struct{})
	const churners = 2
	for range churners {
		go func() {
			defer func() { ended <- struct{}{} }()
			runtime.LockOSThread()
			fds := []unix.PollFd{{Fd: int32(p.r.Fd()), Events: unix.POLLIN}}
			for ctx.Err() == nil {
				unix.Ppoll(fds, &unix.Timespec{Nsec: 1000}, nil)
				passes.Add(1)
			}
		}()
	}
	raced := 0
	for i := range snapshots {
		v := take(t)
		raced += v.Incomplete.Raced
		asleep := v.asleepOn(p.inode)
		for _, pid := range stable {
			if len(asleep[pid]) != 1 && v.Incomplete.Raced == 0 {
				t.Fatalf("snapshot %d: sleeper %d is listed %d times: %+v", i, pid, len(asleep[pid]), v.Incomplete)
			}
		}
	}
	cancel()
	for range churners {
		<-ended
	}
	if passes.Load() < int64(snapshots) {
		t.Errorf("only %d passes through the queue: nothing was raced", passes.Load())
	}
	if raced > snapshots/10 {
		t.Errorf("%d of %d snapshots gave up on the queue", raced, snapshots)
	}
}

// TestSleeperOutsideTheNamespace: who sleeps beyond the caller's pid namespace
// is there all the same, without a pid.
func TestSleeperOutsideTheNamespace(t *testing.T) {
	nstest.Require(t)
	p := newPipe(t)
	sleepIn(t, unix.SYS_READ, p.r.Fd(), pointer(&scratch), 1)
	inner := startNested(t, "snapshot", p.r)
	got := inner.says(t)
	me := strings.TrimSpace(readFile(t, "/proc/self/comm"))
	if want := "sleeper 0 " + me; got != want {
		t.Errorf("inside: %q, want %q", got, want)
	}
}

// snapshotInside says who sleeps on the pipe that is its descriptor 3.
func snapshotInside() error {
	if err := Prepare(); err != nil {
		return err
	}
	s, err := NewSnapshotter(SnapshotOptions{})
	if err != nil {
		return err
	}
	defer s.Close()
	snap, err := s.Take()
	if err != nil {
		return err
	}
	name, err := os.Readlink("/proc/self/fd/3")
	if err != nil {
		return err
	}
	v := view{Snapshot: snap}
	for pid, list := range v.asleepOn(name) {
		for _, sl := range list {
			fmt.Println("sleeper", pid, snap.Processes[sl.Process].Comm)
		}
	}
	if len(snap.Processes) > 10 {
		return fmt.Errorf("%d processes, more than the namespace has", len(snap.Processes))
	}
	return nil
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestThreadsOnOneInstance: that many threads of a process sleep on an epoll instance
// that watches many objects is one sleeper for each object.
func TestThreadsOnOneInstance(t *testing.T) {
	const instance, objects, threads = 8, 3, 64
	b := snapshotBuilder{
		snap: &waitgraph.Snapshot{Objects: make([]waitgraph.Object, objects)}, process: map[taskKey]int32{}, queue: map[uint64]int32{}, master: map[int32]bool{},
		object: map[uint64]int32{}, file: map[uint64]int32{},
	}
	var recs []snapshotSleeperRecord
	for obj := range uint64(objects) {
		queue := 800 + 8*obj
		b.queue[queue] = int32(obj)
		recs = append(recs, snapshotSleeperRecord{EntryId: 1000 + obj, QueueId: queue, LinkId: instance, Via: viaEpoll})
	}
	for thread := range uint64(threads) {
		recs = append(recs, snapshotSleeperRecord{EntryId: 2000 + thread, QueueId: instance, Tgid: 7, StartNs: 1, Exclusive: 1})
	}
	b.addSleepers(recs)
	if n := len(b.snap.Sleepers); n != objects {
		t.Errorf("%d sleepers on %d objects, want one each", n, objects)
	}
	// Another process beside it is another sleeper.
	b.snap.Sleepers = nil
	b.addSleepers(append(recs, snapshotSleeperRecord{EntryId: 3000, QueueId: instance, Tgid: 8, StartNs: 2}))
	seen := map[int32]int{}
	for _, s := range b.snap.Sleepers {
		seen[s.Process]++
	}
	if len(b.snap.Sleepers) != 2*objects || len(seen) != 2 {
		t.Errorf("%d sleepers of %d processes, want %d of 2", len(b.snap.Sleepers), len(seen), 2*objects)
	}
}
