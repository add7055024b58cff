package main

import (
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// TestPredictsWhoWakes compares the bystanders of a plan that kills the targets
// alone with who wakes when just these die, as the topology itself says. Nobody
// is killed.
func TestPredictsWhoWakes(t *testing.T) {
	nstest.Require(t)
	if emulated {
		t.Skip("TestAccuracy compares the same here, with its own kills: each run of the tool takes seconds")
	}
	for _, topology := range storm.Topologies {
		if topology.Restless {
			continue
		}
		t.Run(topology.Name, func(t *testing.T) {
			if err := topology.Supported(); err != nil {
				t.Skip(err)
			}
			if topology.Unpredictable != "" && !topology.Unaccounted {
				t.Skip("cannot be predicted: " + topology.Unpredictable)
			}
			s := stage(t, topology.Name, 9)
			o := runBpfkill(t, "--target", storm.Target, "--dependents", "none", "--dry-run", "--output", "json")
			if o.status != exitGone {
				t.Fatalf("exit status %d, stderr %q", o.status, o.stderr)
			}
			comparePrediction(t, s, &topology, &o.report.Plan)
			compareUnaccounted(t, []*storm.Storm{s}, &o.report.Plan)
		})
	}
}

func comparePrediction(t *testing.T, s *storm.Storm, topology *storm.Topology, plan *report.Plan) {
	t.Helper()
	predicted := map[int32][]report.Bystander{}
	for _, b := range plan.Bystanders {
		predicted[b.PID] = append(predicted[b.PID], b)
	}
	out := s.After(targetsOf(s))
	if topology.Unaccounted { // known is only that something is missing
		out = storm.Outcome{}
	}
	for _, group := range out.SomeOf {
		n := 0
		for _, p := range group.Members {
			if _, ok := predicted[int32(p.PID)]; ok {
				n++
			}
			delete(predicted, int32(p.PID))
		}
		if n != group.Wakes {
			t.Errorf("%d of %d will wake, and the plan knows %d", group.Wakes, len(group.Members), n)
		}
	}
	for _, p := range slices.Concat(out.Woken, out.Stirred, out.Killed) {
		all := predicted[int32(p.PID)]
		if len(all) == 0 {
			t.Errorf("%s %s[%d] will wake, and the plan does not know", p.Role, p.Comm, p.PID)
		}
		for _, b := range all {
			if b.Channel != topology.Channel && !b.Indirect { // who dies of it, or goes on, has other things to tell
				t.Errorf("%s %s[%d] will wake through %s, the plan says %s", p.Role, p.Comm, p.PID, topology.Channel, b.Channel)
			}
		}
		delete(predicted, int32(p.PID))
	}
	for _, p := range s.Processes() {
		for _, b := range predicted[int32(p.PID)] {
			t.Errorf("%s %s[%d] will not wake, but the plan says so (%s, %s)", p.Role, p.Comm, p.PID, b.Channel, b.Source)
		}
	}
}

// compareUnaccounted compares what a plan says is held by nobody that was found with
// what the topologies do. Of several storms one may hold what another misses, as far as
// the plan can tell: then there may be more.
func compareUnaccounted(t *testing.T, storms []*storm.Storm, plan *report.Plan) {
	t.Helper()
	want := 0
	for _, s := range storms {
		if s.Topology().Unaccounted {
			want += len(s.After(targetsOf(s)).Woken)
		}
	}
	if u := plan.Unaccounted; len(u) < want || len(u) > want && len(storms) == 1 {
		t.Errorf("%d unaccounted, want %d: %+v", len(u), want, u)
	}
}

func targetsOf(s *storm.Storm) map[int]bool {
	pids := map[int]bool{}
	for _, p := range s.Targets() {
		pids[p.PID] = true
	}
	return pids
}
