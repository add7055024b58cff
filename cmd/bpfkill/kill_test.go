package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// stormSize is the size of a storm, in its topology's unit.
func stormSize(t *testing.T) int {
	t.Helper()
	if s := os.Getenv("BPFKILL_TEST_PROCESSES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if emulated {
		return 5
	}
	return 40
}

// emulated is set in a virtual machine guest, where each run of the tool takes
// seconds.
var emulated = nstest.InVM()

// engines are those that this kernel has for any kill set.
func engines() []string {
	if loader.HaveBatch() == nil {
		return []string{engineBatch, engineLoop}
	}
	return []string{engineLoop}
}

// whole reports whether every member of a topology is a target or wakes and
// descends from one: then nobody is left.
func whole(t *storm.Topology) bool {
	if t.Name == "sleepers" {
		return true
	}
	pipes := t.Channel == "pipe" || t.Channel == "fifo"
	others := t.Name == "nested-epoll" || t.Name == "pipe-interrupted" // than descendants wake
	return pipes && !t.Quiet && t.Unpredictable == "" && !others
}

// TestKillsEveryTopology is the main job: the kill set dies and nobody in it
// runs; of the others only those run of whom the plan said so. Those that leave
// somebody TestAccuracy kills as well.
func TestKillsEveryTopology(t *testing.T) {
	nstest.Require(t)
	for i, engine := range engines() {
		topologies := choose(func(t *storm.Topology) bool { return t.Unpredictable == "" && (i == 0 || whole(t)) })
		for _, g := range groups(topologies, stormSize(t), emulated) {
			for _, corral := range []string{corralAuto, corralOff} {
				if emulated && corral == corralOff {
					g = slices.DeleteFunc(g, func(t *storm.Topology) bool { return !whole(t) })
				}
				if len(g) > 0 {
					t.Run(engine+"/"+groupName(g)+"/corral "+corral, func(t *testing.T) { killTopologies(t, g, engine, corral) })
				}
			}
		}
	}
}

// groupName is the name of a subtest.
func groupName(g []*storm.Topology) string {
	if len(g) > 1 {
		return fmt.Sprintf("%s and %d more", g[0].Name, len(g)-1)
	}
	return g[0].Name
}

// onlyBystandersRan compares the ground truth with the plan, where not everybody
// is to die.
func onlyBystandersRan(t *testing.T, s *storm.Storm, p report.Plan) {
	t.Helper()
	doomed, bystander := map[int]bool{}, map[int]bool{}
	for _, m := range p.Processes {
		doomed[int(m.PID)] = true
	}
	for _, b := range p.Bystanders {
		bystander[int(b.PID)] = true
	}
	alive, err := s.Alive()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range alive {
		if doomed[m.PID] {
			t.Errorf("%s %s[%d] survived", m.Role, m.Comm, m.PID)
		}
	}
	for _, m := range s.Woken() {
		if !bystander[m.PID] {
			t.Errorf("%s %s[%d] ran, and is no bystander of the plan", m.Role, m.Comm, m.PID)
		}
	}
}

// exceptParent leaves out this process, the parent of what it staged: whether
// SIGCHLD finds one of its threads asleep is a matter of the moment.
func exceptParent(bystanders []report.Bystander) []report.Bystander {
	return slices.DeleteFunc(bystanders, func(b report.Bystander) bool { return int(b.PID) == os.Getpid() })
}

func killTopologies(t *testing.T, topologies []*storm.Topology, engine, corral string) {
	storms := stageAll(t, topologies, stormSize(t))
	o := runBpfkill(t, "--target", storm.Target, "--engine", engine, "--corral", corral, "--timeout", "2m", "--output", "json")
	if o.status != exitGone {
		t.Fatalf("exit status %d, stderr %q, stdout %s", o.status, o.stderr, o.stdout)
	}
	members, mutual := len(o.report.Plan.Processes), false
	for i, s := range storms {
		mutual = mutual || topologies[i].Mutual
		if !whole(topologies[i]) {
			onlyBystandersRan(t, s, o.report.Plan)
			continue
		}
		allGone(t, s)
		if len(storms) == 1 {
			members = len(s.Processes())
		}
	}
	checkKill(t, o.report, members, mutual, len(storms) > 1)
	w := o.report.Result.Window
	if corral == corralOff && w.Corral.Threads != 0 {
		t.Errorf("a corral that was not wanted: %+v", w.Corral)
	}
	if corral == corralAuto && (w.Corral.Threads < members || w.TargetSwitches+w.ReapSwitches != 0) {
		t.Errorf("targets ran in the corral: %+v", w)
	}
	// Once in thousands of windows the soft lockup detector runs, which is of the stop
	// class, before which SCHED_FIFO gives way; more often on an emulated processor, on
	// which a window takes longer. TargetSwitches says that it was no target.
	if w.KillerMinorFaults+w.KillerMajorFaults+w.KillerVoluntarySwitches != 0 || w.KillerInvoluntarySwitches > 1 && !emulated {
		t.Errorf("bpfkill was interrupted in its window: %+v", w)
	}
}

func checkKill(t *testing.T, r report.Report, members int, mutual, together bool) {
	t.Helper()
	res := r.Result
	if res == nil {
		t.Fatal("no result")
	}
	if res.Signalled != members || res.Gone != members || len(r.Plan.Processes) != members {
		t.Errorf("%d planned, %d signalled, %d gone of %d", len(r.Plan.Processes), res.Signalled, res.Gone, members)
	}
	if res.UserReturns != 0 {
		t.Errorf("user_returns is %d", res.UserReturns)
	}
	if res.EarlyWakes != 0 && !mutual {
		t.Errorf("early_wakes is %d: %+v", res.EarlyWakes, res.Wakes)
	}
	if !mutual && len(r.Plan.Exposed) != 0 {
		t.Errorf("exposed although an order exists: %+v", r.Plan.Exposed)
	}
	if mutual && len(r.Plan.Exposed) == 0 {
		t.Error("nobody is exposed although processes wait on each other")
	}
	for _, u := range r.Plan.Unaccounted {
		// What is only in flight between survivors may be the kill set's as soon as one
		// of that has unread messages of its own.
		if u.Found != 0 || !together {
			t.Errorf("unaccounted: %+v", u)
		}
	}
	if res.WindowNS == 0 || res.ExitNS.Max == 0 || res.ExitNS.P50 > res.ExitNS.Max {
		t.Errorf("nothing measured: window %d ns, exits %+v", res.WindowNS, res.ExitNS)
	}
	// TCP states are no matter of this test, and emulated bursts on 7.x lose some.
	if lost := res.LostEvents; lost != 0 && !(emulated && lost == res.Lost.TCPStates) {
		t.Errorf("lost_events is %d: %+v", res.LostEvents, res.Lost)
	}
}
