package loader

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// BenchmarkWatch is what perf bench sched pipe does: two processes on one
// processor pass a byte back and forth through two pipes. Rounds with and
// without a watch of a thousand idle processes take turns, and what counts is the
// processor time of one of the two: what else the machine does is left out.
// "watched" is the price for those who are watched themselves.
func BenchmarkWatch(b *testing.B) {
	snapshotter(b)
	s, err := storm.Start(b.Context(), storm.Options{Topology: "sleepers", Processes: 1000})
	must(b, err)
	defer s.Stop()
	must(b, s.WaitReady(b.Context()))
	idle := make(map[int]bool)
	for _, p := range s.Processes() {
		idle[p.PID] = true
	}
	players := startPlayers(b)
	for _, watched := range []bool{false, true} {
		var procs []waitgraph.KernelIdentity
		for _, p := range take(b).Processes {
			if idle[int(p.PID)] || watched && slices.Contains(players.pids, int(p.PID)) {
				procs = append(procs, p.KernelIdentity())
			}
		}
		name := fmt.Sprintf("idle=%d", len(idle))
		if watched {
			name += "/watched"
		}
		b.Run(name, func(b *testing.B) { players.compare(b, procs) })
	}
}

// turns is how many bytes a round passes.
const turns = 20_000

// players are two processes that pass a byte back and forth.
type players struct {
	first *process
	pids  []int
}

func startPlayers(b *testing.B) *players {
	there, back := newPipe(b), newPipe(b)
	second := start(b, "pong", nil, there.r, back.w)
	second.says(b)
	first := start(b, "ping", nil, there.w, back.r)
	return &players{first, []int{first.PID, second.PID}}
}

// round returns the nanoseconds of one player for each turn.
func (p *players) round(b *testing.B) float64 {
	if _, err := fmt.Fprintln(p.first.in, turns); err != nil {
		b.Fatal(err)
	}
	ns, err := strconv.ParseFloat(p.first.says(b), 64)
	must(b, err)
	return ns / turns
}

func (p *players) compare(b *testing.B, watch []waitgraph.KernelIdentity) {
	var without, with []float64
	for b.Loop() {
		without = append(without, p.round(b))
		w, err := NewWatcher(WatcherOptions{})
		must(b, err)
		must(b, w.Watch(watch))
		with = append(with, p.round(b))
		must(b, w.Close())
	}
	b.ReportMetric(median(without), "cpu-ns/turn-without")
	b.ReportMetric(median(with), "cpu-ns/turn-with")
	b.ReportMetric(100*(median(with)/median(without)-1), "%-slower")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// ping is a role: for each number that it is told it writes and reads as many
// bytes, and says how much processor time that took.
func ping() error {
	if err := onOneCPU(); err != nil {
		return err
	}
	for {
		var n int
		if _, err := fmt.Scanln(&n); err != nil {
			return nil // end of file
		}
		begin := cpuTime()
		for range n {
			turn(unix.SYS_WRITE, 3)
			turn(unix.SYS_READ, 4)
		}
		fmt.Println(cpuTime() - begin)
	}
}

func cpuTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// pong is a role: it sends every byte back.
func pong() error {
	if err := onOneCPU(); err != nil {
		return err
	}
	fmt.Println("ready")
	for turn(unix.SYS_READ, 3) == 1 && turn(unix.SYS_WRITE, 4) == 1 {
	}
	return nil
}

func turn(number, fd uintptr) uintptr {
	n, _, _ := unix.RawSyscall(number, fd, uintptr(unsafe.Pointer(&scratch)), 1)
	return n
}

// onOneCPU puts the calling thread on the first processor, for good.
func onOneCPU() error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(0)
	return unix.SchedSetaffinity(0, &set)
}
