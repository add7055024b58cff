package loader

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// wakesOf lists the measured wakes of one process.
func wakesOf(t *testing.T, o *Observer, p waitgraph.Process) []Wake {
	t.Helper()
	obs, err := o.Collect()
	must(t, err)
	if obs.Lost.Sum() != 0 {
		t.Errorf("events lost: %+v", obs.Lost)
	}
	var out []Wake
	for _, w := range obs.Wakes {
		if w.Wakee == p.KernelIdentity() {
			out = append(out, w)
		}
	}
	return out
}

// TestBystandersWakeIsNamed: who was woken, by whose death, through what.
func TestBystandersWakeIsNamed(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	d := stageDuo(t)
	must(t, e.Doom([]waitgraph.Process{d.writer}))
	kill(t, int(d.writer.PID))
	if !d.settled(t) {
		t.Fatal("the reader died")
	}
	var got []Wake
	eventually(t, "the reader has gone to sleep again", func() bool {
		got = wakesOf(t, o, d.reader)
		return len(got) == 1 && got[0].Ended == 1
	})
	want := Wake{Cause: d.writer.KernelIdentity(), Wakee: d.reader.KernelIdentity(), WakeeComm: "router",
		Channel: waitgraph.ChannelPipe, Count: 1, Ended: 1, Returned: 1, MajorFaults: got[0].MajorFaults, CPU: got[0].CPU}
	// An emulated processor's clock may be found to be unstable: then it ticks.
	coarse := nstest.InVM()
	if got[0] != want || got[0].CPU == 0 && !coarse {
		t.Errorf("%+v, want one %+v", got, want)
	}
	var f Fate
	eventually(t, "the writer is gone", func() bool {
		f = fateOf(t, o, d.writer)
		return f.GoneNS != 0
	})
	if f.SignalledNS == 0 || f.DeliveredNS < f.SignalledNS || f.ExitNS < f.DeliveredNS || f.GoneNS < f.ExitNS {
		t.Errorf("the writer's times are out of order: %+v", f)
	}
}

// TestEarlyWake: a member that another member's death wakes before its own
// signal. Whether it also ran is the tripwire's affair.
func TestEarlyWake(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	d := stageDuo(t)
	must(t, e.Doom([]waitgraph.Process{d.writer, d.reader})) // the wrong order
	must(t, e.Arm(patience))
	must(t, e.Open())
	kill(t, int(d.writer.PID))
	if d.settled(t) {
		t.Error("the reader ran user code")
	}
	f := fateOf(t, o, d.reader)
	if f.EarlyNS == 0 || f.Waker != d.writer.KernelPID || !f.Tripped || f.Returned || f.SignalledNS < f.EarlyNS {
		t.Errorf("%+v, want it woken early by %v, then tripped", f, &d.writer)
	}
	if w := fateOf(t, o, d.writer); w.EarlyNS != 0 || w.Tripped {
		t.Errorf("the writer: %+v", w)
	}
	if w := wakesOf(t, o, d.reader); len(w) != 1 || w[0].Ended != 1 || w[0].Returned != 0 {
		t.Errorf("%+v, want one wake that ended before user mode", w)
	}
}

// TestNoWakeInTheRightOrder is the counterpart: nothing is charged to anybody.
func TestNoWakeInTheRightOrder(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	d := stageDuo(t)
	must(t, e.Doom([]waitgraph.Process{d.reader, d.writer}))
	kill(t, int(d.reader.PID))
	kill(t, int(d.writer.PID))
	for _, p := range []waitgraph.Process{d.reader, d.writer} {
		if f := fateOf(t, o, p); f.EarlyNS != 0 || f.Returned {
			t.Errorf("%v: %+v", &p, f)
		}
		if w := wakesOf(t, o, p); len(w) != 0 {
			t.Errorf("%v: %+v", &p, w)
		}
	}
}

// TestCostOfAWake: what a woken process brings back from swap until it sleeps
// again is counted.
func TestCostOfAWake(t *testing.T) {
	e := newExecutor(t)
	nstest.SwapSpace(t)
	const memory = 1 << 20
	o := observe(t, e)
	s := stage(t, storm.Options{Topology: "herd", Processes: 1, MemBytes: memory})
	m := members(t, s)
	out, err := s.SwapOut(t.Context())
	must(t, err)
	must(t, e.Doom(m["writer"]))
	kill(t, int(m["writer"][0].PID))
	var got []Wake
	eventually(t, "the reader has gone to sleep again", func() bool {
		got = wakesOf(t, o, m["reader"][0])
		return len(got) == 1 && got[0].Ended == 1
	})
	obs, err := o.Collect()
	must(t, err)
	// Pages of a few kilobytes each; read ahead, they cost no fault on a disk.
	want := uint64(memory*9/10) / uint64(os.Getpagesize())
	if obs.SwapIns && got[0].SwapIns < want || got[0].MajorFaults == 0 || got[0].CPU == 0 {
		t.Errorf("%+v after %+v; want at least %d swap-ins", got[0], out, want)
	}
	if nstest.InVM() && !obs.SwapIns {
		t.Error("swap-ins are not counted on a kernel that has all it takes")
	}
}

// TestParentsWakeIsTheChildChannel: a parent in wait4 is a bystander as well.
func TestParentsWakeIsTheChildChannel(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	p := start(t, "idle", nil)
	p.says(t)
	waited := make(chan struct{})
	go func() { p.Wait(); close(waited) }()
	eventually(t, "a thread of this process waits for its child", waitsForChild)
	v := take(t)
	must(t, e.Doom([]waitgraph.Process{v.process(t, p.PID)}))
	must(t, p.Process.Kill())
	<-waited
	found := false
	for _, w := range wakesOf(t, o, v.process(t, selfPID)) {
		found = found || w.Channel == waitgraph.ChannelChild
		if w.Channel == waitgraph.ChannelParentDeath || w.Channel == waitgraph.ChannelPidfd {
			t.Errorf("%+v", w)
		}
	}
	if !found {
		t.Error("the parent's wake was not seen")
	}
}

// TestWokenAgain: of a thread that was woken, went back to user mode and slept anew, the
// next wake is told from its first.
func TestWokenAgain(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	var children []*process
	for range 2 {
		p := start(t, "idle", nil)
		p.says(t)
		children = append(children, p)
	}
	waited := make(chan struct{})
	go func() { // one after the other, by the same thread
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for _, p := range children {
			p.Wait()
			waited <- struct{}{}
		}
	}()
	v := take(t)
	var doomed []waitgraph.Process
	for _, p := range children {
		doomed = append(doomed, v.process(t, p.PID))
	}
	must(t, e.Doom(doomed))
	for _, p := range children {
		eventually(t, "a thread of this process waits for its child", waitsForChild)
		must(t, p.Process.Kill())
		<-waited
	}
	// The signal of a death may wake threads of this process, too, of which a file of the
	// same death had woken one before.
	var again, count [2]uint64
	wakes := wakesOf(t, o, v.process(t, selfPID))
	for _, w := range wakes {
		for i := range doomed {
			if w.Cause == doomed[i].KernelIdentity() && w.Channel == waitgraph.ChannelChild {
				again[i] += w.Again
				count[i] += w.Count
			}
		}
	}
	if again[0] >= count[0] || again[1] == 0 {
		t.Errorf("of the wakes by the first and the second death, %d, %d came again; want fewer than there were (%d), and some: %+v",
			again[0], again[1], count[0], wakes)
	}
}

// waitsForChild reports whether a thread of this process sleeps in waitid.
func waitsForChild() bool {
	calls, _ := filepath.Glob("/proc/self/task/*/syscall")
	for _, c := range calls {
		b, _ := os.ReadFile(c)
		if nr, _, _ := strings.Cut(string(b), " "); nr == strconv.Itoa(unix.SYS_WAITID) {
			return true
		}
	}
	return false
}

// killHerd kills the writer of a herd of readers, and returns what an observer with
// little space saw of it, and of how many wakes it knows what came of them. All are over.
func killHerd(t *testing.T, readers int, wakes, followed uint32) (obs *Observation, ended uint64) {
	t.Helper()
	e := newExecutor(t)
	o, err := newObserver(e, wakes, followed)
	must(t, err)
	defer o.Close()
	s := stage(t, storm.Options{Topology: "herd", Processes: readers, IgnoreChildren: true})
	m := members(t, s)
	must(t, e.Doom(m["writer"]))
	must(t, o.Start())
	kill(t, int(m["writer"][0].PID))
	eventually(t, "all readers woke", func() bool { return len(s.Woken()) == readers })
	eventually(t, "all that are followed sleep again", func() bool {
		var err error
		obs, err = o.Collect()
		must(t, err)
		ended = 0
		for _, w := range obs.Wakes {
			ended += w.Ended
		}
		return ended+obs.Lost.Wakes+obs.Lost.Costs >= uint64(readers)
	})
	return obs, ended
}

func countWakes(obs *Observation) (n uint64) {
	for _, w := range obs.Wakes {
		n += w.Count
	}
	return n
}

// TestLostWakesAreCounted: what finds no space in the map is told, each wake once.
func TestLostWakesAreCounted(t *testing.T) {
	const readers, space = 40, 8
	obs, _ := killHerd(t, readers, space, readers)
	counted := countWakes(obs)
	if len(obs.Wakes) != space || counted+obs.Lost.Wakes != readers || obs.Lost.Costs != 0 {
		t.Errorf("%d wakes of %d counted, lost %+v; want %d in all, and %d of them counted", counted, len(obs.Wakes), obs.Lost, readers, space)
	}
}

// TestLostCostsAreCounted: whom there is no space for to follow is told.
func TestLostCostsAreCounted(t *testing.T) {
	const readers = 40
	obs, ended := killHerd(t, readers, 2*readers, 1)
	counted := countWakes(obs)
	if counted != readers || ended+obs.Lost.Costs != readers || ended == 0 || obs.Lost.Costs == 0 || obs.Lost.Wakes != 0 {
		t.Errorf("%d wakes counted and %d followed, lost %+v; want %d counted, and some of each", counted, ended, obs.Lost, readers)
	}
}

// TestNothingIsRecordedOutsideStartAndStop.
func TestNothingIsRecordedOutsideStartAndStop(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	must(t, o.Stop())
	d := stageDuo(t)
	must(t, e.Doom([]waitgraph.Process{d.writer}))
	kill(t, int(d.writer.PID))
	if !d.settled(t) {
		t.Fatal("the reader died")
	}
	if f := fateOf(t, o, d.writer); f.SignalledNS != 0 || f.ExitNS != 0 || f.GoneNS != 0 {
		t.Errorf("%+v", f)
	}
	if w := wakesOf(t, o, d.reader); len(w) != 0 {
		t.Errorf("%+v", w)
	}
}
