package main

import (
	"cmp"
	"slices"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
	"github.com/bpfkill/bpfkill/internal/window"
)

// measurement puts what the observer saw beside what the plan predicted.
type measurement struct {
	graph  *waitgraph.Graph
	plan   *plan.Plan
	seen   *loader.Observation
	index  map[waitgraph.KernelIdentity]int32
	fate   map[waitgraph.KernelIdentity]loader.Fate
	result report.Result
}

// newMeasurement counts signals and wakes of the kill set from openedNS on: what was
// killed before that, was killed by somebody else, and woke whom it would.
func newMeasurement(g *waitgraph.Graph, p *plan.Plan, seen *loader.Observation, openedNS uint64) *measurement {
	m := &measurement{
		graph: g, plan: p, seen: seen,
		index: make(map[waitgraph.KernelIdentity]int32, len(g.Processes)),
		fate:  make(map[waitgraph.KernelIdentity]loader.Fate, len(seen.Fates)),
		result: report.Result{
			Survivors: []report.Survivor{}, Skipped: []report.Skipped{}, Wakes: []report.Wake{},
			LostEvents: seen.Lost.Sum(),
			Lost: report.Lost{
				Wakes: seen.Lost.Wakes, Costs: seen.Lost.Costs, Forks: seen.Lost.Forks, Signals: seen.Lost.Signals, TCPStates: seen.Lost.TCPStates,
			},
		},
	}
	for i := range g.Processes {
		m.index[g.Processes[i].KernelIdentity()] = int32(i)
	}
	for i := range seen.Fates {
		f := &seen.Fates[i]
		if f.SignalledNS < openedNS {
			f.SignalledNS = 0
		}
		if f.EarlyNS < openedNS {
			f.EarlyNS = 0
		}
		m.fate[f.KernelIdentity] = *f
	}
	return m
}

// fates turns the times of each member into the window's figures.
func (m *measurement) fates() {
	var first, last uint64
	var exits []uint64
	for _, f := range m.seen.Fates {
		if f.Inherited {
			m.result.Inherited++
		}
		if f.Tripped {
			m.result.Tripped++
		}
		if f.Returned {
			m.result.UserReturns++
		}
		if f.EarlyNS != 0 {
			m.result.EarlyWakes++
		}
		if f.SignalledNS == 0 {
			continue
		}
		if end := max(f.GoneNS, f.ExitNS); end > f.SignalledNS {
			exits = append(exits, end-f.SignalledNS)
		}
		// Children forked in the race are swept after the window.
		if f.Inherited {
			continue
		}
		if first == 0 || f.SignalledNS < first {
			first = f.SignalledNS
		}
		last = max(last, f.SignalledNS)
	}
	m.result.WindowNS = last - first
	m.result.ExitNS = percentiles(exits)
}

func percentiles(ns []uint64) report.ExitNS {
	if len(ns) == 0 {
		return report.ExitNS{}
	}
	slices.Sort(ns)
	at := func(percent int) uint64 { return ns[(len(ns)-1)*percent/100] }
	return report.ExitNS{P50: at(50), P99: at(99), Max: ns[len(ns)-1]}
}

// wakes lists whom the dying woke: bystanders, and members woken early. self
// is bpfkill's own pid: it waits for the exits on purpose.
func (m *measurement) wakes(self int32) {
	predicted := make(map[wakeKey]waitgraph.Channel, len(m.plan.Bystanders))
	for _, b := range m.plan.Bystanders {
		ch := m.graph.Sources[b.Source].Channel
		predicted[wakeKey{b.Waiter, measuredAs(ch)}] = ch
	}
	for _, w := range m.plan.Exposed {
		ch := m.graph.Sources[w.Source].Channel
		predicted[wakeKey{w.Waiter, measuredAs(ch)}] = ch
	}
	bystanders := make(map[waitgraph.KernelIdentity]bool)
	for _, w := range m.seen.Wakes {
		row := report.Wake{
			Comm: w.WakeeComm, Channel: w.Channel.String(), Count: w.Count, Again: w.Again,
			Followed: w.Ended, UserReturns: w.Returned, MajorFaults: w.MajorFaults, CPUNS: uint64(w.CPU),
		}
		if m.seen.SwapIns {
			row.SwapIns = &w.SwapIns
		}
		if i, ok := m.index[w.Wakee]; ok {
			row.PID = m.graph.Processes[i].PID
			if row.PID == self {
				continue
			}
			var ch waitgraph.Channel
			if ch, row.Predicted = predicted[wakeKey{i, measuredAs(w.Channel)}]; row.Predicted {
				row.Channel = ch.String()
			}
		}
		if i, ok := m.index[w.Cause]; ok {
			row.Cause = m.graph.Processes[i].PID
		}
		_, row.Killed = m.fate[w.Wakee]
		if !row.Killed {
			bystanders[w.Wakee] = true
		}
		m.result.Wakes = append(m.result.Wakes, row)
	}
	m.result.BystanderWakes = len(bystanders)
	slices.SortFunc(m.result.Wakes, func(a, b report.Wake) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Cause, b.Cause))
	})
}

// wakeKey is one process and the channel that it was woken through.
type wakeKey struct {
	process int32
	channel waitgraph.Channel
}

// measuredAs is the channel under which a wake may show on the kernel's stack: a
// FIFO is released by pipe_release like any pipe. Only reads and writes tell them apart,
// and since v6.15.
func measuredAs(c waitgraph.Channel) waitgraph.Channel {
	if c == waitgraph.ChannelFIFO {
		return waitgraph.ChannelPipe
	}
	return c
}

// window puts what the killer measured itself into the result.
func (m *measurement) window(w *window.Measured) {
	m.result.Window = report.Window{
		ArmNS: w.ArmNS, DeliverNS: w.DeliverNS, ReapNS: w.ReapNS, OpenNS: w.OpenNS,
		TargetSwitches: w.TargetSwitches, ReapSwitches: w.ReapSwitches,
		KillerMinorFaults: w.MinorFaults, KillerMajorFaults: w.MajorFaults, KillerVoluntarySwitches: w.VoluntarySwitches, KillerInvoluntarySwitches: w.InvoluntarySwitches,
	}
	reap := &m.result.Window.Reap
	reap.Swapped, reap.Reaped, reap.LeftOut = w.Reap.Swapped, w.Reap.Reaped, leftOut(w.Reap.LeftOut)
	if c := w.Corral; c != nil {
		m.result.Window.Corral = report.Corral{CPU: c.CPU, Threads: c.Threads, Moves: c.Moves, Closed: c.Closed, LeftOut: leftOut(c.LeftOut)}
	}
}

func leftOut(failures []window.Failure) (out []report.Skipped) {
	for _, f := range failures {
		out = append(out, report.Skipped{PID: f.Process.PID, Why: f.Err.Error()})
	}
	return out
}
