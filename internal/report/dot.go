package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// maxDOTNodes is the most processes that are drawn one by one. A larger plan
// is drawn by name, or Graphviz needs minutes for a picture nobody can read.
const maxDOTNodes = 100

// WriteDOT writes the plan as a directed graph for Graphviz: an edge goes from
// a waiter to each holder that it waits for, labelled with the source. Targets
// are boxes, dependents ellipses, bystanders dashed, others dotted. Exposed
// waits are red, those that never fire dotted. Orders count from 1.
func WriteDOT(w io.Writer, r *Report) error {
	d := dot{plan: &r.Plan, nodes: map[dotKey]*dotNode{}, edges: map[dotEdgeKey]int{}}
	d.collect()
	if len(d.order) > maxDOTNodes {
		d = dot{plan: &r.Plan, nodes: map[dotKey]*dotNode{}, edges: map[dotEdgeKey]int{}, byName: true}
		d.collect()
	}
	_, err := w.Write(d.print())
	return err
}

// dotKey is a process, or all of one name and role.
type dotKey struct {
	pid        int32
	comm, role string
}

type dotNode struct {
	id          int
	key         dotKey
	count       int
	first, last int // orders, from 1; 0 outside the kill set
}

type dotEdgeKey struct {
	from, to *dotNode
	label    string
	style    string
}

type dot struct {
	plan   *Plan
	byName bool

	nodes     map[dotKey]*dotNode
	order     []*dotNode
	edges     map[dotEdgeKey]int // to the number of waits that it stands for
	edgeOrder []dotEdgeKey

	roles map[int32]string // of the kill set and the bystanders, by pid
}

func (d *dot) collect() {
	d.roles = make(map[int32]string, len(d.plan.Processes))
	for i := range d.plan.Processes {
		p := &d.plan.Processes[i]
		d.roles[p.PID] = p.Role
		n := d.node(p.PID, p.Comm, p.Role)
		n.count++
		n.last = p.Order + 1
		if n.first == 0 {
			n.first = n.last
		}
	}
	for _, b := range d.plan.Bystanders {
		if d.roles[b.PID] == "" || b.PID == 0 {
			d.roles[b.PID] = "bystander"
			d.node(b.PID, b.Comm, "bystander").count++
		}
	}
	exposed := make(map[Wait]bool, len(d.plan.Exposed))
	for _, w := range d.plan.Exposed {
		exposed[w] = true
	}
	for i := range d.plan.Conditions {
		c := &d.plan.Conditions[i]
		if d.roles[c.Waiter] == "" || d.roles[c.Waiter] == "bystander" {
			continue // bystanders are drawn below, others do not wake
		}
		style := ""
		switch {
		case exposed[Wait{c.Waiter, c.Channel, c.Source}]:
			style = "color=red, fontcolor=red"
		case !c.Fires:
			style = "style=dotted"
		}
		d.connect(c.Waiter, "", c.Holders, c.Channel, c.Source, style)
	}
	for i := range d.plan.Bystanders {
		b := &d.plan.Bystanders[i]
		d.connect(b.PID, b.Comm, b.holders, b.Channel, b.Source, "style=dashed")
	}
}

func (d *dot) node(pid int32, comm, role string) *dotNode {
	key := dotKey{pid, comm, role}
	if d.byName {
		key.pid = 0
	}
	n, ok := d.nodes[key]
	if !ok {
		n = &dotNode{id: len(d.order), key: key}
		d.nodes[key] = n
		d.order = append(d.order, n)
	}
	return n
}

// process finds the node of a process that an edge mentions.
func (d *dot) process(pid int32, comm string) *dotNode {
	if name, ok := d.plan.names[pid]; ok {
		comm = name
	}
	if role := d.roles[pid]; role != "" && (pid != 0 || comm != "") {
		return d.node(pid, comm, role)
	}
	n := d.node(pid, comm, "other")
	if pid != 0 {
		d.roles[pid] = "other"
		n.count++
	}
	return n
}

func (d *dot) connect(waiter int32, comm string, holders []int32, channel, source, style string) {
	from := d.process(waiter, comm)
	label := source
	if d.byName {
		label = channel
	}
	for _, h := range holders {
		key := dotEdgeKey{from, d.process(h, ""), label, style}
		if d.edges[key] == 0 {
			d.edgeOrder = append(d.edgeOrder, key)
		}
		d.edges[key]++
	}
}

func (d *dot) print() []byte {
	var b bytes.Buffer
	b.WriteString("digraph bpfkill {\n\trankdir=LR;\n\tnode [fontname=\"sans-serif\"];\n\tedge [fontname=\"sans-serif\", fontsize=10];\n")
	var comms []string
	byComm := map[string][]*dotNode{}
	for _, n := range d.order {
		if byComm[n.key.comm] == nil {
			comms = append(comms, n.key.comm)
		}
		byComm[n.key.comm] = append(byComm[n.key.comm], n)
	}
	slices.Sort(comms)
	for i, comm := range comms {
		indent := "\t"
		if grouped := len(byComm[comm]) > 1; grouped {
			fmt.Fprintf(&b, "\tsubgraph cluster_%d {\n\t\tlabel=%s;\n", i, dotQuote(printable(comm)))
			indent = "\t\t"
		}
		for _, n := range byComm[comm] {
			fmt.Fprintf(&b, "%sn%d [label=%s, %s];\n", indent, n.id, d.nodeLabel(n), dotShapes[n.key.role])
		}
		if indent == "\t\t" {
			b.WriteString("\t}\n")
		}
	}
	for _, e := range d.edgeOrder {
		label := e.label
		if d.byName {
			label = times(label, d.edges[e])
		}
		attributes := "label=" + dotQuote(label)
		if e.style != "" {
			attributes += ", " + e.style
		}
		fmt.Fprintf(&b, "\tn%d -> n%d [%s];\n", e.from.id, e.to.id, attributes)
	}
	b.WriteString("}\n")
	return b.Bytes()
}

var dotShapes = map[string]string{
	"target":    "shape=box",
	"dependent": "shape=ellipse",
	"bystander": "shape=ellipse, style=dashed",
	"other":     "shape=box, style=dotted",
}

func (d *dot) nodeLabel(n *dotNode) string {
	name := printable(n.key.comm)
	switch {
	case d.byName:
		name = times(name, n.count)
	case n.key.pid != 0:
		name = fmt.Sprintf("%s[%d]", name, n.key.pid)
	case name == "":
		name = "outside this pid namespace"
	}
	var place string
	switch {
	case n.first == 0:
		place = n.key.role
	case n.first == n.last:
		place = fmt.Sprintf("order %d", n.first)
	default:
		place = fmt.Sprintf("order %d–%d", n.first, n.last)
	}
	return dotQuote(name + "\n" + place)
}

// dotQuote writes a DOT string. Graphviz gives a meaning to backslashes and to
// character entities in labels, and a process chooses its name.
func dotQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch r {
		case '"':
			b.WriteString(`\"`)
		case '\\':
			b.WriteString(`\\`)
		case '\n':
			b.WriteString(`\n`)
		case '&':
			b.WriteString("&amp;")
		default:
			b.WriteString(printable(string(r)))
		}
	}
	b.WriteByte('"')
	return b.String()
}
