package incident

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Group is the runs of one strategy under one kernel on machines of one kind.
type Group struct {
	Strategy *Strategy
	Results  []*Result // by pages swapped in
}

// Machine is the groups that can be compared: same kernel, architecture, clock, size.
type Machine struct {
	Kernel, Arch, Clock string
	CPUs                int
	Groups              []Group   // as Strategies lists them
	Lost                []*Result // runs whose machine died before it had measured anything
}

// Read reads results, one JSON object a line.
func Read(r io.Reader) ([]*Result, error) {
	var all []*Result
	lines := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var one Result
			if err := json.Unmarshal(line, &one); err != nil {
				return nil, fmt.Errorf("result %d: %w", n, err)
			}
			if _, err := Lookup(one.Strategy); err != nil {
				return nil, fmt.Errorf("result %d: %w", n, err)
			}
			all = append(all, &one)
		}
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Machines groups results, the machines by architecture and age of their kernel.
func Machines(results []*Result) []*Machine {
	var machines []*Machine
	for _, r := range results {
		i := slices.IndexFunc(machines, func(m *Machine) bool {
			first := m.first()
			return m.Kernel == r.Kernel && m.Arch == r.Arch && m.Clock == r.Clock && m.CPUs == r.CPUs &&
				first.Servers == r.Servers && first.Routers == r.Routers && first.RouterBytes == r.RouterBytes &&
				(!first.Measured() || !r.Measured() || sameMemory(first.MemoryBytes, r.MemoryBytes))
		})
		if i < 0 {
			i = len(machines)
			machines = append(machines, &Machine{Kernel: r.Kernel, Arch: r.Arch, Clock: r.Clock, CPUs: r.CPUs})
		}
		machines[i].add(r)
	}
	slices.SortStableFunc(machines, func(a, b *Machine) int {
		return cmp.Or(cmp.Compare(a.Arch, b.Arch), slices.Compare(a.version(), b.version()))
	})
	for _, m := range machines {
		slices.SortFunc(m.Groups, func(a, b Group) int { return cmp.Compare(a.place(), b.place()) })
		for _, g := range m.Groups {
			slices.SortStableFunc(g.Results, func(a, b *Result) int { return cmp.Compare(a.SwapInPages, b.SwapInPages) })
		}
	}
	return machines
}

// sameMemory holds for machines of one size: what a kernel keeps for itself differs by
// some pages from boot to boot.
func sameMemory(a, b int64) bool { return max(a, b)-min(a, b) < 8<<20 }

// version is the kernel's, as far as its release begins with one.
func (m *Machine) version() []int {
	v := make([]int, 3)
	_, _ = fmt.Sscanf(m.Kernel, "%d.%d.%d", &v[0], &v[1], &v[2])
	return v
}

func (g Group) place() int {
	return slices.IndexFunc(Strategies, func(s Strategy) bool { return s.Name == g.Strategy.Name })
}

// first is any of its runs; where there is one, one that was measured.
func (m *Machine) first() *Result {
	if len(m.Groups) > 0 {
		return m.Groups[0].Results[0]
	}
	return m.Lost[0]
}

func (m *Machine) add(r *Result) {
	if !r.Measured() {
		m.Lost = append(m.Lost, r)
		return
	}
	i := slices.IndexFunc(m.Groups, func(g Group) bool { return g.Strategy.Name == r.Strategy })
	if i < 0 {
		strategy, err := Lookup(r.Strategy)
		if err != nil {
			return // Read lets none through
		}
		i = len(m.Groups)
		m.Groups = append(m.Groups, Group{Strategy: strategy})
	}
	m.Groups[i].Results = append(m.Groups[i].Results, r)
}

// Middle is the run with the median of the pages swapped in (of two, the lower).
func (g Group) Middle() *Result { return g.Results[(len(g.Results)-1)/2] }

// spread is the median of a figure and, where runs differ, its extremes.
func (g Group) spread(of func(*Result) float64, format func(float64) string) string {
	values := g.values(of)
	low, high := format(values[0]), format(values[len(values)-1])
	if low == high {
		return low
	}
	return fmt.Sprintf("%s (%s–%s)", format(g.median(of)), low, high)
}

// values are a figure's, ascending.
func (g Group) values(of func(*Result) float64) []float64 {
	var values []float64
	for _, r := range g.Results {
		values = append(values, of(r))
	}
	slices.Sort(values)
	return values
}

func (g Group) median(of func(*Result) float64) float64 {
	values := g.values(of)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// whole prints a figure without decimals.
func whole(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }

// columns of the table.
var columns = []struct {
	title string
	of    func(*Result) float64
}{
	{"pages swapped in", func(r *Result) float64 { return float64(r.SwapInPages) }},
	{"by the woken", func(r *Result) float64 { return float64(r.PagesWoken) }},
	{"by the dying", func(r *Result) float64 { return float64(r.PagesDying) }},
	{"major faults", func(r *Result) float64 { return float64(r.MajorFaults) }},
	{"ran user code", func(r *Result) float64 { return float64(r.RanUserCode) }},
	{"heartbeat gap, ms", func(r *Result) float64 { return r.HeartbeatGapMS }},
	{"before, ms", func(r *Result) float64 { return r.QuietGapMS }},
	{"all gone, ms", func(r *Result) float64 { return r.GoneMS }},
	{"PSI full, ms", func(r *Result) float64 { return float64(r.PSIFullUS) / 1000 }},
}

// Table is the machine's results in Markdown.
func (m *Machine) Table() string {
	var b strings.Builder
	b.WriteString("| how | runs |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c.title)
	}
	b.WriteString("\n|---|---:|" + strings.Repeat("---:|", len(columns)) + "\n")
	for _, g := range m.Groups {
		fmt.Fprintf(&b, "| `%s` | %d |", g.Strategy.Title, len(g.Results))
		for _, c := range columns {
			fmt.Fprintf(&b, " %s |", g.spread(c.of, whole))
		}
		b.WriteByte('\n')
	}
	b.WriteString(m.bars())
	for _, r := range m.Lost {
		fmt.Fprintf(&b, "\nRun %d of %q left nothing measured: %s\n", r.Run, r.Strategy, r.Trouble)
	}
	for _, g := range m.Groups {
		for _, r := range g.Results {
			if r.Boots > 1 {
				fmt.Fprintf(&b, "\nRun %d of `%s`: the first machine died, and this is the second.\n", r.Run, g.Strategy.Title)
			}
			if r.Trouble != "" {
				fmt.Fprintf(&b, "\nRun %d of `%s` failed: %s\n", r.Run, g.Strategy.Title, r.Trouble)
			}
		}
	}
	return b.String()
}

// gapBar is what bpfkill's heartbeat gap is to stay below.
const gapBar = 100 // ms

// bars says which runs reached what is asked of them, where both ways were run.
func (m *Machine) bars() string {
	ours, theirs := m.group("bpfkill"), m.group("servers")
	if ours == nil || theirs == nil {
		return ""
	}
	still := ours.count(func(r *Result) bool { return r.SwapInPages == 0 })
	quick := ours.count(func(r *Result) bool { return r.HeartbeatGapMS < gapBar })
	storms := theirs.count(func(r *Result) bool { return r.SwapInPages >= r.RouterPages() })
	gap := func(r *Result) float64 { return r.HeartbeatGapMS }
	return fmt.Sprintf("\nAsked for, and in how many runs it was so: with `%s` no page swapped in (%s) and a heartbeat gap below %d ms (%s); "+
		"with `%s` at least the routers' memory swapped in (%s). A gap ten times as long is asked for there: it is %.1f times as long, of medians.\n",
		ours.Strategy.Title, still, gapBar, quick, theirs.Strategy.Title, storms, theirs.median(gap)/ours.median(gap))
}

func (m *Machine) group(strategy string) *Group {
	for i := range m.Groups {
		if m.Groups[i].Strategy.Name == strategy {
			return &m.Groups[i]
		}
	}
	return nil
}

// count says of how many runs something holds.
func (g Group) count(holds func(*Result) bool) string {
	n := 0
	for _, r := range g.Results {
		if holds(r) {
			n++
		}
	}
	return fmt.Sprintf("%d of %d runs", n, len(g.Results))
}

// Caption says what kind of machine it was, and when.
func (m *Machine) Caption() string {
	var dates []string
	for _, g := range m.Groups {
		for _, r := range g.Results {
			dates = append(dates, r.Date)
		}
	}
	for _, r := range m.Lost {
		dates = append(dates, r.Date)
	}
	r := m.first()
	slices.Sort(dates)
	when := dates[0]
	if last := dates[len(dates)-1]; last != when {
		when += " to " + last
	}
	processors := "1 processor"
	if m.CPUs != 1 {
		processors = fmt.Sprintf("%d processors", m.CPUs)
	}
	clock := "the emulating machine's clock"
	if m.Clock == InstructionClock {
		clock = "a nanosecond for each instruction"
	}
	memory := ""
	if r.Measured() {
		memory = fmt.Sprintf(" %d MiB;", (r.MemoryBytes+1<<19)>>20)
	}
	return fmt.Sprintf("Linux %s, %s, %s, %s,%s %d servers and %d routers of %d MiB each; %s",
		m.Kernel, m.Arch, processors, clock, memory, r.Servers, r.Routers, r.RouterBytes>>20, when)
}
