package main

import (
	"testing"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
	"github.com/bpfkill/bpfkill/internal/window"
)

// TestWhoWasKilledByOthers: a SIGKILL from before the window is somebody else's,
// and one that came while it was open is the tripwire's.
func TestWhoWasKilledByOthers(t *testing.T) {
	g := waitgraph.New(&waitgraph.Snapshot{Processes: []waitgraph.Process{
		{Identity: waitgraph.Identity{PID: 7, StartNS: 1}, KernelPID: 70, State: 'S', Threads: 1},
		{Identity: waitgraph.Identity{PID: 8, StartNS: 2}, KernelPID: 80, State: 'S', Threads: 1},
	}})
	seen := &loader.Observation{Fates: []loader.Fate{
		{KernelIdentity: g.Processes[0].KernelIdentity(), SignalledNS: 999, ExitNS: 2000, EarlyNS: 998},
		{KernelIdentity: g.Processes[1].KernelIdentity(), SignalledNS: 1001, ExitNS: 2000, EarlyNS: 1000},
	}}
	m := newMeasurement(g, &plan.Plan{}, seen, 1000)
	m.outcome(&window.Outcome{Skipped: []window.Failure{
		{Process: g.Processes[0], Err: window.ErrGone}, {Process: g.Processes[1], Err: window.ErrGone},
	}})
	m.fates()
	if r := m.result; r.Signalled != 1 || r.Gone != 1 || len(r.Skipped) != 1 || r.Skipped[0].PID != 7 {
		t.Errorf("signalled %d, gone %d, skipped %+v; want process 7 skipped", r.Signalled, r.Gone, r.Skipped)
	}
	if m.result.EarlyWakes != 1 {
		t.Errorf("%d woken early, want the one after the opening", m.result.EarlyWakes)
	}
	if m.result.WindowNS != 0 {
		t.Errorf("a window of %d ns with one signal in it", m.result.WindowNS)
	}
}

// TestForkedDuringTheSnapshot: who slept on a queue before it was in the list of
// processes is a child that the plan does not know.
func TestForkedDuringTheSnapshot(t *testing.T) {
	known := identified([]waitgraph.Process{
		{Identity: waitgraph.Identity{PID: 7, StartNS: 1}, KernelPID: 70},
		{Identity: waitgraph.Identity{StartNS: 2}, KernelPID: 80},
	})
	if !known[waitgraph.KernelIdentity{KernelPID: 70, StartNS: 1}] || known[waitgraph.KernelIdentity{KernelPID: 80, StartNS: 2}] {
		t.Errorf("known: %v", known)
	}
}
