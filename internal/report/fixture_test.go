package report

import (
	"fmt"

	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

const gib = 1 << 30

// incident is the mail server: n servers, each with the only write end of the
// pipe that its router reads; systemd waits for the servers.
func incident(n int) (*waitgraph.Graph, *plan.Plan) {
	g := &waitgraph.Graph{Processes: []waitgraph.Process{{Identity: waitgraph.Identity{PID: 1, StartNS: 1}, KernelPID: 1, Comm: "systemd", NamespaceInit: true}}}
	p := &plan.Plan{Predicted: plan.Predicted{NaiveWakes: n, NaiveSwapInBytes: uint64(n) * 12 << 20, Wakes: 1}}
	var servers []plan.Member
	for i := range n {
		server := waitgraph.Process{
			Identity: waitgraph.Identity{PID: int32(811 + 2*i), StartNS: uint64(5139214 + i)}, KernelPID: int32(70_000_811 + 2*i),
			PPID: 1, Comm: "smtpserver", RSSBytes: 1 << 20, SwapBytes: 4 << 20, CgroupID: 0xffff_8880_0000_0000, State: 'S', Threads: 1,
		}
		router := server
		router.PID, router.KernelPID, router.PPID, router.Comm = server.PID+1, server.KernelPID+1, server.PID, "router"
		router.SwapBytes = 12 << 20
		at := int32(len(g.Processes))
		g.Processes = append(g.Processes, server, router)
		source := int32(len(g.Sources))
		g.Sources = append(g.Sources,
			waitgraph.Source{Channel: waitgraph.ChannelPipe, Name: fmt.Sprintf("pipe:[%d]", 4263+i), Holders: []int32{at}, Waiters: []int32{at + 1}},
			waitgraph.Source{Channel: waitgraph.ChannelChild, Name: fmt.Sprintf("exit of %d", server.PID), Holders: []int32{at}, Waiters: []int32{0}})
		p.Order = append(p.Order, plan.Member{Process: at + 1, Role: plan.RoleDependent,
			Because: fmt.Sprintf("descendant of smtpserver[%d], waits on pipe:[%d]", server.PID, 4263+i)})
		servers = append(servers, plan.Member{Process: at})
		p.Conditions = append(p.Conditions, plan.Condition{Wait: plan.Wait{Waiter: at + 1, Source: source}, Fires: true})
		p.Bystanders = append(p.Bystanders, plan.Bystander{Wait: plan.Wait{Waiter: 0, Source: source + 1}})
	}
	p.Order = append(p.Order, servers...)
	return g, p
}

// incidentReport is the dry run of the incident.
func incidentReport(n int) *Report {
	g, p := incident(n)
	return &Report{Version: 1, Kernel: "6.18.44", Engine: "batch", DryRun: true, Plan: NewPlan(g, p, "wake")}
}

// killed is the incident as it should end.
func killed(n int) *Report {
	r := incidentReport(n)
	r.DryRun = false
	r.Result = &Result{
		Signalled: 2 * n, Gone: 2 * n, WindowNS: 4_600_000, Rounds: 1, BystanderWakes: 1,
		Window: Window{ArmNS: 5_100_000, DeliverNS: 4_650_000, ReapNS: 900, OpenNS: 4_300_000,
			Corral: Corral{CPU: 3, Threads: 2 * n, Closed: true}, Reap: Reap{Swapped: 2 * n, Reaped: 2 * n}},
		Wakes: []Wake{{PID: 1, Comm: "systemd", Channel: "child", Cause: 811, Count: uint64(n), Predicted: true,
			Followed: uint64(n), UserReturns: uint64(n), SwapIns: new(uint64), CPUNS: uint64(n) * 21_000}},
		FreedBytes: 14*gib + gib/10, ExitNS: ExitNS{P50: 90_000_000, P99: 200_000_000, Max: 212_000_000},
	}
	return r
}

// wentWrong is a kill in which everything that can be said is to be said.
func wentWrong() *Report {
	r := killed(3)
	g, p := incident(3)
	g.Processes[4].Comm = "rou\x1b]0;ter" // router[814] drives the terminal
	p.Exposed = []plan.Wait{{Waiter: 4, Source: 2}}
	g.Sources[4].Found, g.Sources[4].Counted = 1, 2
	p.Unaccounted = []int32{4}
	r.Plan = NewPlan(g, p, "wake")
	r.Plan.Incomplete = Incomplete{Queues: 1, Records: 7, Callbacks: 2}
	r.Result = &Result{
		Signalled: 5, Gone: 4, WindowNS: 31_000, Rounds: 2, Tripped: 1, EarlyWakes: 1, UserReturns: 1, Inherited: 2,
		Survivors: []Survivor{{PID: 815, Comm: "smtpserver", State: "D"}},
		Skipped:   []Skipped{{PID: 816, Why: "exited before the window"}},
		Wakes: []Wake{
			{PID: 814, Comm: "rou\x1b]0;ter", Killed: true, Channel: "pipe", Cause: 813, Count: 1},
			{PID: 700, Comm: "rsyslogd", Channel: "unix", Cause: 811, Count: 2, Followed: 1, MajorFaults: 12, CPUNS: 840_000},
			{PID: 0, Comm: "dockerd", Channel: "pipe", Cause: 811, Count: 1, Predicted: true},
		},
		Window: Window{TargetSwitches: 2, ReapSwitches: 1, Corral: Corral{CPU: 3, Threads: 4, Closed: true, LeftOut: []Skipped{
			{PID: 811, Why: "a cpuset forbids it CPU 3"}, {PID: 813, Why: "a cpuset forbids it CPU 3"}}},
			Reap: Reap{Swapped: 6, Reaped: 3, LeftOut: []Skipped{
				{PID: 815, Why: "shares writable memory with a process outside the kill set"}, {PID: 816, Why: "shares writable memory with a process outside the kill set"}}}},
		BystanderWakes: 2, SwapInPages: 640, MajorFaults: 12, FreedBytes: 900, LostEvents: 3,
		ExitNS: ExitNS{P50: 1, P99: 2, Max: 1_234_000_000},
	}
	return r
}
