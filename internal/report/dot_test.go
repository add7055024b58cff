package report

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/awalterschulze/gographviz"

	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

func parseDOT(t *testing.T, r *Report) *gographviz.Graph {
	t.Helper()
	out := render(t, r, FormatDOT, false)
	tree, err := gographviz.Parse(out)
	if err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	g := gographviz.NewGraph()
	if err := gographviz.Analyse(tree, g); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	return g
}

func TestDOTDrawsThePlan(t *testing.T) {
	g := parseDOT(t, incidentReport(3))
	if n := len(g.Nodes.Nodes); n != 7 {
		t.Errorf("%d nodes, want 3 routers, 3 servers and systemd", n)
	}
	byLabel := map[string]string{}
	for _, n := range g.Nodes.Nodes {
		byLabel[n.Attrs["label"]] = n.Name
	}
	router, server := byLabel[`"router[812]\norder 1"`], byLabel[`"smtpserver[811]\norder 4"`]
	edges := g.Edges.SrcToDsts[router][server]
	if len(edges) != 1 || edges[0].Attrs["label"] != `"pipe:[4263]"` {
		t.Errorf("from router (%q) to its server (%q): %+v", router, server, edges)
	}
	if n := len(g.Edges.Edges); n != 6 {
		t.Errorf("%d edges, want one for each router and three from systemd", n)
	}
	if n := len(g.SubGraphs.SubGraphs); n != 2 {
		t.Errorf("%d clusters, want routers and servers", n)
	}
}

func TestDOTOfALargePlanIsSmall(t *testing.T) {
	g := parseDOT(t, incidentReport(1000))
	if nodes, edges := len(g.Nodes.Nodes), len(g.Edges.Edges); nodes != 3 || edges != 2 {
		t.Errorf("%d nodes and %d edges, want 3 and 2", nodes, edges)
	}
}

// A process chooses its name, and must not draw in our picture by it.
func TestDOTQuotesNames(t *testing.T) {
	for _, comm := range []string{`a"b`, `a\`, `\N\G`, "a\nb", "a]; evil [", "<b>x</b>", "&quot;", "\xff\xfe", "\x1b[2J", "}", "//", "é×", `"];x[label="`} {
		r := incidentReport(1)
		r.Plan.Processes[0].Comm = comm
		r.Plan.names[812] = comm
		g := parseDOT(t, r)
		if n, e := len(g.Nodes.Nodes), len(g.Edges.Edges); n != 3 || e != 2 {
			t.Errorf("%q: %d nodes and %d edges, want 3 and 2", comm, n, e)
		}
		for _, n := range g.Nodes.Nodes {
			label := n.Attrs["label"]
			if strings.HasSuffix(label, `order 1"`) && strings.Count(label, `\n`) != 1 {
				t.Errorf("%q: label %s has more than two lines", comm, label)
			}
		}
	}
}

// Whatever the plan, all three formats can be written, the drawing parses, and
// each process of the kill set is drawn.
func TestAnyPlanCanBeWritten(t *testing.T) {
	for seed := range uint64(300) {
		g, p := randomPlan(rand.New(rand.NewPCG(seed, 7)))
		r := &Report{Kernel: "6.1", Engine: "loop", DryRun: true, Plan: NewPlan(g, p, "wake")}
		drawn := parseDOT(t, r)
		orders := 0
		for _, n := range drawn.Nodes.Nodes {
			if strings.Contains(n.Attrs["label"], "order ") {
				orders++
			}
		}
		if orders != len(p.Order) {
			t.Errorf("seed %d: %d of %d processes drawn", seed, orders, len(p.Order))
		}
		for _, format := range []Format{FormatText, FormatJSON} {
			out := render(t, r, format, true)
			for _, m := range p.Order {
				if pid := fmt.Sprint(g.Processes[m.Process].PID); !strings.Contains(string(out), pid) {
					t.Errorf("seed %d, format %d: pid %s is missing", seed, format, pid)
				}
			}
		}
	}
}

// randomPlan makes a plan that no planner would, with processes outside the
// pid namespace among waiters and holders.
func randomPlan(random *rand.Rand) (*waitgraph.Graph, *plan.Plan) {
	g, p := &waitgraph.Graph{}, &plan.Plan{}
	n := 2 + random.IntN(12)
	for i := range n {
		proc := waitgraph.Process{Comm: string(rune('a' + random.IntN(4))), Identity: waitgraph.Identity{PID: int32(1000 + i)}}
		if i >= n-2 {
			proc.PID = 0
		} else if random.IntN(3) > 0 {
			p.Order = append(p.Order, plan.Member{Process: int32(i), Role: plan.Role(random.IntN(2))})
		}
		g.Processes = append(g.Processes, proc)
	}
	for i := range 1 + random.IntN(8) {
		s := waitgraph.Source{Channel: waitgraph.Channel(random.IntN(13)), Name: fmt.Sprintf("source:[%d]", i)}
		for h := range n {
			if random.IntN(3) == 0 {
				s.Holders = append(s.Holders, int32(h))
			}
		}
		g.Sources = append(g.Sources, s)
		w := plan.Wait{Waiter: int32(random.IntN(n)), Source: int32(i)}
		switch random.IntN(4) {
		case 0:
			p.Bystanders = append(p.Bystanders, plan.Bystander{Wait: w})
		case 1:
			p.Exposed = append(p.Exposed, w)
			fallthrough
		default:
			p.Conditions = append(p.Conditions, plan.Condition{Wait: w, Fires: random.IntN(2) == 0})
		}
		if random.IntN(5) == 0 {
			p.Unaccounted = append(p.Unaccounted, int32(i))
		}
	}
	return g, p
}
