package incident

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(heartbeatVariable); path != "" {
		fmt.Fprintln(os.Stderr, "heartbeat:", beats(path))
		os.Exit(1)
	}
	if os.Getenv(squeezeVariable) != "" {
		if err := takeMemory(); err != nil {
			fmt.Fprintln(os.Stderr, "squeeze:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestIncident is what runs in the guest: it stages the incident that the
// kernel's command line asks for, kills, and says the result.
func TestIncident(t *testing.T) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	staging, found, err := StagingOf(string(line))
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Skip("runs in a virtual machine that is booted for it (make incident)")
	}
	strategy, err := Lookup(staging.Strategy)
	if err != nil {
		t.Fatal(err)
	}
	lockMemory(t)
	swapOn(t)
	world := stage(t, staging)
	squeeze(t)
	world.checkSwapped(t)
	heart := startHeart(t)
	result := world.measure(t, strategy, heart)
	said, err := result.Line()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(said)
	if result.Survivors > 0 {
		t.Errorf("%d processes that should be dead live", result.Survivors)
	}
}

// measure kills by a strategy and says what that did to the machine.
func (w *world) measure(t *testing.T, strategy *Strategy, heart *heart) *Result {
	killer := w.killer(t, strategy)
	victims := w.servers
	if strategy.Routers {
		victims = w.both()
	}
	faults := countFaults(t, w.both())
	r := w.describe(t)
	r.Strategy = strategy.Name
	quiet := now()
	sleepUntil(quiet + int64(2*time.Second))
	heartBefore, parentBefore := majorFaults(t, heart.pid), majorFaults(t, w.parent)
	countReads(t)
	before := readCounters(t)
	begin := now()
	r.QuietGapMS = ms(heart.longestGap(quiet, begin).length)

	done := make(chan killed, 1)
	go func() { done <- killer() }()
	rec := recorder{victims: victims, begin: begin, before: before}
	end := rec.untilCalm(t, done)

	after := readCounters(t)
	gap := heart.longestGap(begin, end)
	r.HeartbeatGapMS, r.HeartbeatGapAtMS = ms(gap.length), ms(gap.begin-begin)
	r.HeartbeatGapLateMS, r.HeartbeatGapRanMS, r.HeartbeatGapWaitMS = ms(gap.late), ms(gap.ran), ms(gap.waited)
	r.HeartbeatGapFaults, r.HeartbeatGapCPU = int(gap.faults), int(gap.cpu)
	r.SwapInPages = after.swapIns - before.swapIns
	r.SwapOutPages = after.swapOuts - before.swapOuts
	r.MajorFaults = after.majorFaults - before.majorFaults
	r.PSIFullUS = after.psiFull - before.psiFull
	r.GoneMS, r.CalmMS, r.Survivors = rec.gone, rec.calm, len(rec.victims)
	r.ExitStatus, r.WindowNS = rec.killed.status, rec.killed.windowNS
	r.Swapped, r.Reaped = rec.killed.reap.Swapped, rec.killed.reap.Reaped
	r.Samples = thin(rec.samples, 150)
	woken := w.woken(t)
	for pid, n := range faults.read(t) {
		if woken[pid] {
			r.FaultsWoken += n
		}
	}
	mine := map[int]bool{}
	for _, pid := range w.both() {
		mine[pid] = true
	}
	all := uint64(0)
	for tid, n := range pagesRead(t) {
		all += n
		switch {
		case woken[tid]:
			r.PagesWoken += n
		case mine[tid]:
			r.PagesDying += n
		default:
			r.PagesOthers += n
			t.Logf("%d pages were read by thread %d (the heartbeat is %d, the servers' parent %d)", n, tid, heart.pid, w.parent)
		}
	}
	if all != r.SwapInPages {
		t.Logf("%d pages were swapped in, and %d read from the disk", r.SwapInPages, all)
	}
	r.PagesKiller = rec.killed.pages
	r.FaultsKiller = rec.killed.majorFaults
	r.FaultsParent = majorFaults(t, w.parent) - parentBefore
	r.FaultsHeartbeat = majorFaults(t, heart.pid) - heartBefore
	r.FaultsOthers = r.FaultsHeartbeat + r.FaultsParent + r.FaultsKiller
	r.FaultsDying = r.MajorFaults - min(r.MajorFaults, r.FaultsWoken+r.FaultsOthers)
	r.RanUserCode = len(woken)
	if rec.killed.err != nil {
		t.Errorf("%s: %v", strategy.Name, rec.killed.err)
	}
	return r
}

// describe is the part of the result that is known before the kill.
func (w *world) describe(t *testing.T) *Result {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	return &Result{
		Kernel: strings.TrimSpace(string(release)), Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
		MemoryBytes: int64(info.Totalram) * int64(info.Unit), PageBytes: int64(os.Getpagesize()),
		Servers: len(w.servers), Routers: len(w.routers), RouterBytes: int64(w.staging.RouterMiB) << 20,
		SwappedBytes: w.swapped, ResidentBytes: w.resident,
	}
}
