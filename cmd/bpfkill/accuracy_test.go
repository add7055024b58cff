package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// accuracy compares what plans predict with what kills measure, by channel.
type accuracy struct {
	rows       map[string]*accuracyRow
	topologies map[string]*accuracyRow // what was predicted, and spurious
	details    []string
	wrong      []string // wakes of which the report says what cannot be
	repeated   int      // kills that lost events, and are not in the rows: they were made again
}

type accuracyRow struct {
	kills                                 int
	predicted, measured, missed, spurious int
	otherwise                             int    // predicted, but through another channel
	again                                 int    // the like, of who had woken as predicted, and went to sleep anew
	reason                                string // why it cannot be predicted
}

// The bar: nobody wakes of whom the plan knew nothing, or through another channel than
// it said, and at most one in a hundred of those whom it named sleeps on, of each
// topology as of each channel.
const maxSpuriousPercent = 1

func (r *accuracyRow) tooSpurious() bool { return 100*r.spurious > maxSpuriousPercent*r.predicted }

// rowOf returns the row of a name, a new one the first time.
func rowOf(rows *map[string]*accuracyRow, name string) *accuracyRow {
	if *rows == nil {
		*rows = map[string]*accuracyRow{}
	}
	if (*rows)[name] == nil {
		(*rows)[name] = &accuracyRow{}
	}
	return (*rows)[name]
}

// once are topologies each of whose members wakes once.
var once = map[string]bool{"smtp": true, "herd": true, "fanin": true, "pipe-writer": true, "pipe-broken": true, "unix-stream": true}

// unpredictableRuns is how often a topology is killed at most, of which nothing but
// the reason why it cannot be predicted and that it wakes is to be shown.
const unpredictableRuns = 3

// wokenThrough names one process and the channel that wakes it.
type wokenThrough struct {
	pid     int32
	channel string
}

// add compares one kill's bystanders as far as they belong to one storm. The test
// process itself is left out: it runs, and so may or may not be asleep when it is
// told of a child's exit.
//
// It returns how many wakes came through the topology's own channel.
func (a *accuracy) add(topology *storm.Topology, what string, r *report.Report, belongs func(pid int32) bool) (own int) {
	rows := func(channel string) *accuracyRow {
		if topology.Unpredictable != "" {
			channel = topology.Name
		}
		return rowOf(&a.rows, channel)
	}
	row := rows(topology.Channel)
	row.kills++
	row.reason = topology.Unpredictable
	whole := rowOf(&a.topologies, topology.Name)
	whole.reason = topology.Unpredictable

	self := int32(os.Getpid())
	predicted, measured := map[wokenThrough]bool{}, map[wokenThrough]bool{}
	named := map[int32]bool{}
	for _, b := range r.Plan.Bystanders {
		if b.PID != self && belongs(b.PID) && !ownAccount(topology, b.PID) {
			predicted[wokenThrough{b.PID, b.Channel}] = true
			named[b.PID] = true
		}
	}
	again, count := map[wokenThrough]uint64{}, map[wokenThrough]uint64{}
	for _, w := range r.Result.Wakes {
		key := wokenThrough{w.PID, w.Channel}
		again[key] += w.Again
		count[key] += w.Count
	}
	mayDie := map[int32]bool{} // whose deaths this kill may be about
	for _, p := range r.Plan.Processes {
		mayDie[p.PID] = true
	}
	for _, b := range r.Plan.Bystanders {
		mayDie[b.PID] = true
	}
	for _, w := range r.Result.Wakes {
		key := wokenThrough{w.PID, w.Channel}
		if w.PID == self || w.Killed || !belongs(w.PID) || ownAccount(topology, w.PID) {
			continue
		}
		// What the report says of each wake itself.
		if w.Predicted != predicted[key] || w.Count == 0 || once[topology.Name] && w.PID != 1 && w.Count != 1 ||
			topology.Unpredictable == "" && !mayDie[w.Cause] {
			a.wrong = append(a.wrong, fmt.Sprintf("%s: predicted %v: %+v", what, predicted[key], w))
		}
		if measured[key] {
			continue
		}
		measured[key] = true
		rows(w.Channel).measured++
		if w.Channel == topology.Channel {
			own++
		}
		switch {
		case predicted[key]:
		case named[w.PID] && again[key] == count[key]:
			rows(w.Channel).again++
		case named[w.PID]:
			rows(w.Channel).otherwise++
			a.detail(topology, "%s: %s[%d] woke through %s, the plan said otherwise", what, w.Comm, w.PID, w.Channel)
		default:
			rows(w.Channel).missed++
			a.detail(topology, "%s: %s[%d] woke through %s, the plan did not know", what, w.Comm, w.PID, w.Channel)
		}
	}
	for key := range predicted {
		rows(key.channel).predicted++
		whole.predicted++
		if !measured[key] {
			rows(key.channel).spurious++
			whole.spurious++
			a.detail(topology, "%s: process %d did not wake through %s, the plan said it would", what, key.pid, key.channel)
		}
	}
	return own
}

// ownAccount reports whether pid is told of what survivors do on their own
// account: tracees that are let go stop or end, and tell init.
func ownAccount(topology *storm.Topology, pid int32) bool {
	return pid == 1 && topology.Name == "ptrace-tracer"
}

func (a *accuracy) detail(topology *storm.Topology, format string, args ...any) {
	const most = 40
	if topology.Unpredictable == "" && len(a.details) < most {
		a.details = append(a.details, fmt.Sprintf(format, args...))
	}
}

// String is a table with a row for each channel, and for each topology that
// cannot be predicted.
func (a *accuracy) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-22s %6s %10s %10s %8s %9s %10s %6s\n", "channel", "kills", "predicted", "measured", "missed", "spurious", "otherwise", "again")
	names := make([]string, 0, len(a.rows))
	for name := range a.rows {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		r := a.rows[name]
		fmt.Fprintf(&b, "%-22s %6d %10d %10d %8d %9d %10d %6d", name, r.kills, r.predicted, r.measured, r.missed, r.spurious, r.otherwise, r.again)
		if r.reason != "" {
			fmt.Fprintf(&b, "  cannot be predicted: %s", r.reason)
		}
		b.WriteByte('\n')
	}
	if a.repeated > 0 {
		fmt.Fprintf(&b, "kills with lost events, made again: %d\n", a.repeated)
	}
	return b.String()
}

// check fails the test where the bar is missed.
func (a *accuracy) check(t *testing.T) {
	t.Helper()
	for name, r := range a.rows {
		if r.reason != "" {
			continue
		}
		if r.missed > 0 {
			t.Errorf("%s: %d of %d measured wakes were not predicted", name, r.missed, r.measured)
		}
		if r.otherwise > 0 {
			t.Errorf("%s: %d of %d measured wakes were predicted through another channel", name, r.otherwise, r.measured)
		}
		if r.tooSpurious() {
			t.Errorf("%s: %d of %d predicted wakes did not come", name, r.spurious, r.predicted)
		}
	}
	for name, r := range a.topologies {
		if r.reason == "" && r.tooSpurious() {
			t.Errorf("topology %s: %d of %d predicted wakes did not come", name, r.spurious, r.predicted)
		}
	}
	for _, d := range a.details {
		t.Log(d)
	}
	if n := len(a.wrong); n > 0 {
		t.Errorf("%d wakes in reports are wrong: %s", n, strings.Join(a.wrong[:min(n, 10)], "\n"))
	}
}

// numbers reads a list of numbers from the environment.
func numbers(t *testing.T, variable string, otherwise ...int) []int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	var out []int
	for _, part := range strings.Split(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 {
			t.Fatalf("%s=%s: want positive numbers", variable, text)
		}
		out = append(out, n)
	}
	return out
}

// TestAccuracy kills the targets of every topology and compares who was said to
// wake with who did. A short form is part of every test run; make accuracy sets
// ACCURACY_RUNS, ACCURACY_SIZES, ACCURACY_LOADS and ACCURACY_TOGETHER for the long one.
func TestAccuracy(t *testing.T) {
	nstest.Require(t)
	runs := numbers(t, "ACCURACY_RUNS", 1)[0]
	size := 6
	if emulated {
		size = 3
	}
	sizes := numbers(t, "ACCURACY_SIZES", size)
	loads := []string{"idle"}
	if s := os.Getenv("ACCURACY_LOADS"); s != "" {
		loads = strings.Split(s, ",")
	}
	together := emulated
	if s := os.Getenv("ACCURACY_TOGETHER"); s != "" {
		together = s == "1"
	}
	only := os.Getenv("ACCURACY_TOPOLOGY")
	topologies := choose(func(t *storm.Topology) bool { return only == "" || only == t.Name })
	if len(topologies) == 0 {
		t.Fatalf("ACCURACY_TOPOLOGY=%s: no topology of that name can be staged here", only)
	}
	var a accuracy
	for _, load := range loads {
		t.Run(load, func(t *testing.T) {
			if load != "idle" && load != "busy" {
				t.Fatalf("ACCURACY_LOADS: %q is neither idle nor busy", load)
			}
			for _, size := range sizes {
				for _, g := range groups(topologies, size, together) {
					some := runs
					if g[0].Unpredictable != "" { // of which there is no bar to reach
						some = min(runs, unpredictableRuns)
					}
					for run := range some {
						begin := time.Now()
						a.measure(t, g, size, load)
						if some > unpredictableRuns { // hours may pass until the end
							t.Logf("%s, %d of each: run %d took %s", load, size, run+1, time.Since(begin).Round(time.Second))
						}
					}
				}
				if len(sizes)*len(loads) > 1 {
					t.Logf("up to %s, %d runs of %d each:\n%s", load, runs, size, &a)
				}
			}
		})
	}
	for i := range storm.Topologies {
		s := &storm.Topologies[i]
		if err := s.Supported(); err != nil && (only == "" || only == s.Name) {
			t.Logf("%s: not staged here: %v", s.Name, err)
		}
	}
	t.Logf("\n%s", &a)
	a.check(t)
}

// measure stages one storm of each topology and kills the targets of all at once. A
// kill of which the report says that measurements were lost is not compared, but
// made again: on 7.x, where tracepoints can be preempted, a burst of exits now and
// then passes over every copy of the program for TCP states.
func (a *accuracy) measure(t *testing.T, topologies []*storm.Topology, size int, load string) {
	t.Helper()
	const tries = 3
	for try := range tries {
		if a.measureOnce(t, topologies, size, load, try == tries-1) {
			return
		}
		a.repeated++
	}
}

// measureOnce reports whether nothing was lost, or this was the last try.
func (a *accuracy) measureOnce(t *testing.T, topologies []*storm.Topology, size int, load string, last bool) bool {
	t.Helper()
	storms := stageAll(t, topologies, size)
	what := fmt.Sprintf("%d/%s", size, load)
	idle := func() {}
	if load == "busy" {
		idle = burn(t)
	}
	o := runBpfkill(t, "--target", storm.Target, "--dependents", "none", "--timeout", "2m", "--output", "json")
	idle()
	if o.status != exitGone {
		t.Errorf("%s %s: exit status %d, stderr %q", names(topologies), what, o.status, o.stderr)
		return true
	}
	if lost := o.report.Result.LostEvents; lost != 0 && !last {
		t.Logf("%s %s: %d events lost, once more: %+v", names(topologies), what, lost, o.report.Result.Lost)
		for _, s := range storms {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		}
		return false
	} else if lost != 0 {
		t.Errorf("%s %s: %d events lost: %+v", names(topologies), what, lost, o.report.Result.Lost)
	}
	home := map[int32]*storm.Storm{}
	for _, s := range storms {
		for _, p := range s.Processes() {
			home[int32(p.PID)] = s
		}
	}
	if emulated { // elsewhere TestPredictsWhoWakes does it
		compareUnaccounted(t, storms, &o.report.Plan)
	}
	for i, s := range storms {
		topology := topologies[i]
		if emulated && topology.Unpredictable == "" { // elsewhere TestPredictsWhoWakes does it
			comparePrediction(t, s, topology, &o.report.Plan)
		}
		own := a.add(topology, topology.Name+"/"+what, &o.report, func(pid int32) bool {
			// Init and other strangers are the first's.
			return home[pid] == s || home[pid] == nil && i == 0
		})
		// Both sides of the comparison might miss the same, and some have but one.
		out := s.After(targetsOf(s))
		if woken := len(out.Woken) + len(out.Stirred) + len(out.Killed); woken > 0 && own == 0 && !topology.Late && !topology.Uncharged {
			t.Errorf("%s/%s: %d wake, and none was measured through %s", topology.Name, what, woken, topology.Channel)
		}
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	return true
}

const burnVariable = "BPFKILL_TEST_BURN"

// burn keeps every CPU busy until the returned function is called: bpfkill and all
// that it kills and wakes share them with a process without end. What is staged before
// is staged at the speed of an idle machine.
func burn(t *testing.T) (idle func()) {
	t.Helper()
	var burners []*exec.Cmd
	idle = func() {
		for _, cmd := range burners {
			cmd.Process.Kill()
			cmd.Wait()
		}
		burners = nil
	}
	t.Cleanup(idle)
	for range runtime.NumCPU() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), burnVariable+"=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		burners = append(burners, cmd)
		if _, err := out.Read(make([]byte, 1)); err != nil { // burns from now on
			t.Fatal(err)
		}
	}
	return idle
}

// burnCPU is what the processes do that burn starts.
func burnCPU() {
	fmt.Println("burning")
	for i := uint64(0); ; i++ {
		burned = i
	}
}

var burned uint64
