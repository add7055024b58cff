// Package report says what a kill planned and what it did: as text for
// people, as JSON for programs (schema 1), as DOT for a drawing of the plan.
//
// A figure is either measured (everything in [Result]) or labelled predicted.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// SchemaVersion is the version of the JSON schema that [WriteJSON] writes.
const SchemaVersion = 1

// Report is one run of bpfkill. Its JSON form is schema 1: fields are added,
// never renamed.
type Report struct {
	Version int     `json:"version"` // SchemaVersion
	Kernel  string  `json:"kernel"`  // release as uname prints it
	Engine  string  `json:"engine"`  // the engine used, or that would be
	DryRun  bool    `json:"dry_run"`
	Plan    Plan    `json:"plan"`
	Result  *Result `json:"result,omitempty"` // nil when nothing was signalled
}

// Plan is a kill set in the order of its signals, with everything that the
// wait graph says about it.
type Plan struct {
	Processes   []Process     `json:"processes"`
	Conditions  []Condition   `json:"conditions"`
	Bystanders  []Bystander   `json:"bystanders"`
	Exposed     []Wait        `json:"exposed"`
	Unaccounted []Unaccounted `json:"unaccounted"`
	Predicted   Predicted     `json:"predicted"`
	// Incomplete counts what the snapshot could not read: where it is not
	// zero, somebody may wait of whom the plan knows nothing.
	Incomplete Incomplete `json:"incomplete"`

	names map[int32]string // comm by pid, of everybody that the plan mentions
}

// Process is one member of the kill set.
type Process struct {
	Order     int    `json:"order"` // 0 is signalled first
	PID       int32  `json:"pid"`
	StartNS   uint64 `json:"start_ns"` // nanoseconds since boot
	Comm      string `json:"comm"`
	Role      string `json:"role"`    // "target" or "dependent"
	Because   string `json:"because"` // why a dependent dies, "" for a target
	RSSBytes  uint64 `json:"rss_bytes"`
	SwapBytes uint64 `json:"swap_bytes"`
}

// Condition is one wait condition: the waiter wakes when the last of the
// holders dies. A pid of 0 is a process outside the caller's pid namespace.
type Condition struct {
	Waiter  int32   `json:"waiter"`
	Channel string  `json:"channel"`
	Source  string  `json:"source"`
	Holders []int32 `json:"holders"`
	Fires   bool    `json:"fires"` // all holders are in the kill set
}

// Bystander is a wake that the kill causes outside the kill set.
type Bystander struct {
	PID       int32  `json:"pid"`
	Comm      string `json:"comm"`
	Channel   string `json:"channel"`
	Source    string `json:"source"`
	SwapBytes uint64 `json:"swap_bytes"`
	Action    string `json:"action"` // "wake" or "park"
	// Indirect: not the kill set wakes it, but somebody whom that wakes or ends.
	Indirect bool `json:"indirect"`
	// Dies: what wakes it is a signal that ends it. It is not bpfkill's, so nothing
	// protects from it.
	Dies bool `json:"dies"`

	holders []int32
}

// Wait is a condition that no order can satisfy.
type Wait struct {
	Waiter  int32  `json:"waiter"`
	Channel string `json:"channel"`
	Source  string `json:"source"`
}

// Unaccounted is a source with more references than holders were found.
type Unaccounted struct {
	Source       string `json:"source"`
	Found        int64  `json:"found"`
	KernelCounts int64  `json:"kernel_counts"`
}

// Predicted are figures that follow from the wait graph; none was measured.
type Predicted struct {
	WakesIfKilledNaively       int    `json:"wakes_if_killed_naively"`
	SwapInBytesIfKilledNaively uint64 `json:"swap_in_bytes_if_killed_naively"`
	Wakes                      int    `json:"wakes"`
}

// Incomplete is [waitgraph.Incomplete] with the names of the schema; a value
// of the one converts to the other.
type Incomplete struct {
	Queues  int `json:"queues"`
	Raced   int `json:"raced"`
	Records int `json:"records"`
	// Callbacks are queue entries that no task sleeps on (asynchronous polls, kernel users).
	Callbacks int `json:"callbacks"`
}

// NewPlan says p, a plan made from g, in the terms of the user: pids and
// names. Action is what is done about bystanders. The plan keeps nothing of
// its arguments. Set Incomplete from the snapshot afterwards.
func NewPlan(g *waitgraph.Graph, p *plan.Plan, action string) Plan {
	n := namer{g: g, names: map[int32]string{}, holders: map[int32][]int32{}}
	out := Plan{
		Processes:   make([]Process, 0, len(p.Order)),
		Conditions:  make([]Condition, 0, len(p.Conditions)),
		Bystanders:  make([]Bystander, 0, len(p.Bystanders)),
		Exposed:     make([]Wait, 0, len(p.Exposed)),
		Unaccounted: make([]Unaccounted, 0, len(p.Unaccounted)),
		Predicted: Predicted{
			WakesIfKilledNaively:       p.Predicted.NaiveWakes,
			SwapInBytesIfKilledNaively: p.Predicted.NaiveSwapInBytes,
			Wakes:                      p.Predicted.Wakes,
		},
		names: n.names,
	}
	for i, m := range p.Order {
		proc := &g.Processes[m.Process]
		out.Processes = append(out.Processes, Process{
			Order: i, PID: n.pid(m.Process), StartNS: proc.StartNS, Comm: proc.Comm,
			Role: m.Role.String(), Because: m.Because,
			RSSBytes: proc.RSSBytes, SwapBytes: proc.SwapBytes,
		})
	}
	for _, c := range p.Conditions {
		w := n.wait(c.Wait)
		out.Conditions = append(out.Conditions, Condition{w.Waiter, w.Channel, w.Source, n.holdersOf(c.Source), c.Fires})
	}
	for _, b := range p.Bystanders {
		w := n.wait(b.Wait)
		out.Bystanders = append(out.Bystanders, Bystander{
			PID: w.Waiter, Comm: g.Processes[b.Waiter].Comm, Channel: w.Channel, Source: w.Source,
			SwapBytes: b.SwapBytes, Action: action, Indirect: b.Indirect, Dies: b.Dies, holders: n.holdersOf(b.Source),
		})
	}
	for _, w := range p.Exposed {
		out.Exposed = append(out.Exposed, n.wait(w))
	}
	for _, i := range p.Unaccounted {
		s := &g.Sources[i]
		out.Unaccounted = append(out.Unaccounted, Unaccounted{s.Name, s.Found, s.Counted})
	}
	return out
}

// namer turns a graph's indexes into pids, and remembers the names of those
// that it turned.
type namer struct {
	g       *waitgraph.Graph
	names   map[int32]string
	holders map[int32][]int32 // by source: a thousand waiters share one list
}

func (n *namer) pid(process int32) int32 {
	p := &n.g.Processes[process]
	if p.PID != 0 {
		n.names[p.PID] = p.Comm
	}
	return p.PID
}

func (n *namer) wait(w plan.Wait) Wait {
	s := &n.g.Sources[w.Source]
	return Wait{n.pid(w.Waiter), s.Channel.String(), s.Name}
}

func (n *namer) holdersOf(source int32) []int32 {
	if pids, ok := n.holders[source]; ok {
		return pids
	}
	pids := make([]int32, 0, len(n.g.Sources[source].Holders))
	for _, h := range n.g.Sources[source].Holders {
		pids = append(pids, n.pid(h))
	}
	n.holders[source] = pids
	return pids
}

// Write writes r in a format. Verbose adds a row for each process to the text.
func Write(w io.Writer, r *Report, format Format, verbose bool) error {
	switch format {
	case FormatJSON:
		return WriteJSON(w, r)
	case FormatDOT:
		return WriteDOT(w, r)
	}
	return WriteText(w, r, verbose)
}

// WriteJSON writes r as one object of schema 1 and a newline. Arrays are
// never null.
func WriteJSON(w io.Writer, r *Report) error {
	out := *r
	out.Version = SchemaVersion
	p := &out.Plan
	p.Processes = nonNil(p.Processes)
	p.Conditions = nonNil(p.Conditions)
	for i := range p.Conditions {
		if p.Conditions[i].Holders == nil {
			p.Conditions[i].Holders = []int32{}
		}
	}
	p.Bystanders = nonNil(p.Bystanders)
	p.Exposed = nonNil(p.Exposed)
	p.Unaccounted = nonNil(p.Unaccounted)
	if r.Result != nil {
		result := *r.Result
		result.Survivors = nonNil(result.Survivors)
		result.Skipped = nonNil(result.Skipped)
		result.Wakes = nonNil(result.Wakes)
		result.Window.Corral.LeftOut = nonNil(result.Window.Corral.LeftOut)
		result.Window.Reap.LeftOut = nonNil(result.Window.Reap.LeftOut)
		out.Result = &result
	}
	return encode(w, &out, "  ")
}

// encode writes v as one JSON object and a newline. Control characters are escaped as
// JSON has it, and those beyond ASCII as well: names are chosen by processes, and some
// terminals obey them.
func encode(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := controls.WriteString(w, b.String())
	return err
}

// controls replaces DEL and the C1 control characters, which are in strings only.
var controls = func() *strings.Replacer {
	var pairs []string
	for r := rune(0x7f); r <= 0x9f; r++ {
		pairs = append(pairs, string(r), fmt.Sprintf("\\u%04x", r))
	}
	return strings.NewReplacer(pairs...)
}()

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
