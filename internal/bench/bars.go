package bench

import (
	"fmt"
	"slices"
	"text/tabwriter"
)

// bar is a figure that is to be reached.
type bar struct {
	what     string
	atLeast  bool
	wanted   float64
	measured float64
	unit     string
}

func (b *bar) reached() bool {
	if b.atLeast {
		return b.measured >= b.wanted
	}
	return b.measured <= b.wanted
}

func (b *bar) sign() string {
	if b.atLeast {
		return "≥"
	}
	return "≤"
}

// size is the set that the bars are about, where it was measured.
const size = 1000

// bars prints those that the samples say something about.
func (t *table) bars() error {
	var all []bar
	all = append(all, t.windowBars()...)
	all = append(all, t.otherBars()...)
	if len(all) == 0 {
		return nil
	}
	fmt.Fprint(t.w, "\nOf medians, unless said\n\n")
	tw := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "BAR\tWANTED\tMEASURED\t\t")
	for i := range all {
		b := &all[i]
		verdict := "reached"
		if !b.reached() {
			verdict = "MISSED"
		}
		fmt.Fprintf(tw, "%s\t%s %g%s\t%.2f%s\t%s\t\n", b.what, b.sign(), b.wanted, b.unit, b.measured, b.unit, verdict)
	}
	return tw.Flush()
}

// ratio is one strategy's median against another's, false where either is missing.
func (t *table) ratio(part, strategy, other string, processes int, of func(*Sample) uint64) (float64, bool) {
	a, b := t.of(part, strategy, processes), t.of(part, other, processes)
	below := spreadOf(b, of).median
	if len(a) == 0 || below == 0 {
		return 0, false
	}
	return spreadOf(a, of).median / below, true
}

func (t *table) windowBars() (out []bar) {
	if r, ok := t.ratio(PartKill, pkill, ours, size, windowNS); ok {
		out = append(out, bar{"window of pkill -9 against bpfkill's", true, 25, r, ""})
	}
	if r, ok := t.ratio(PartKill, cgroupKill, ours, size, windowNS); ok {
		out = append(out, bar{"window of a cgroup.kill write against bpfkill's", true, 25, r, ""})
	}
	if r, ok := t.ratio(PartKill, ours, groupFIFO, size, windowNS); ok {
		out = append(out, bar{"window of bpfkill against kill(-pgid) under SCHED_FIFO", false, 1.25, r, ""})
	}
	if r, ok := t.ratio(PartBusy, pkill, ours, size, windowNS); ok {
		out = append(out, bar{"pkill -9 against bpfkill while others want the CPUs", true, 25, r, ""})
	}
	if r, ok := t.ratio(PartBusy, cgroupKill, ours, size, windowNS); ok {
		out = append(out, bar{"cgroup.kill against bpfkill while others want the CPUs", true, 25, r, ""})
	}
	var per []float64
	for _, n := range list(t, PartSizes, processesOf) {
		if s := t.of(PartSizes, ours, n); len(s) > 0 {
			per = append(per, spreadOf(s, windowNS).median/float64(n))
		}
	}
	if len(per) > 1 {
		out = append(out, bar{"bpfkill's window by process, 100 to 10,000 of them, the longest against the shortest", false, 1.5, extent(per), ""})
	}
	all := slices.Concat(t.of(PartKill, ours, 0), t.of(PartBusy, ours, 0), t.of(PartSizes, ours, 0))
	if len(all) > 0 {
		out = append(out, bar{"targets that ran inside bpfkill's window, the most of all runs", false, 0, spreadOf(all, ran).max, ""})
		out = append(out, bar{"bpfkill's own report of its window against the stopwatch, the farthest off", false, 1.05, disagreement(all), ""})
	}
	return out
}

func extent(v []float64) float64 {
	low, high := v[0], v[0]
	for _, x := range v {
		low, high = min(low, x), max(high, x)
	}
	return high / low
}

// disagreement is how far apart the window in the report and the stopwatch's were,
// as a factor.
func disagreement(samples []Sample) float64 {
	worst := 1.0
	for _, s := range samples {
		if s.WindowNS > 0 && s.ReportedNS > 0 {
			worst = max(worst, extent([]float64{float64(s.WindowNS), float64(s.ReportedNS)}))
		}
	}
	return worst
}

func (t *table) otherBars() (out []bar) {
	if r, ok := t.ratio(PartKill, ours, pkill, size, wholeNS); ok {
		out = append(out, bar{"whole kill, from the start of the program to the last process gone, against pkill -9", false, 2, r, ""})
	}
	if r, ok := t.ratio(PartMemory, ours, pkill, 0, freeNS); ok {
		out = append(out, bar{"memory free again, from the start of the program, against pkill -9", false, 1.2, r, ""})
	}
	if r, ok := t.ratio(PartMemory, ours, pkill, 0, freeAfterNS); ok {
		out = append(out, bar{"the same from the first signal", false, 1.2, r, ""})
	}
	if s := t.of(PartSnapshot, ourSnapshot, 0); len(s) > 0 {
		out = append(out, bar{"snapshot of 10,000 processes with 100,000 descriptors", false, 60, spreadOf(s, wholeNS).median / 1e6, " ms"})
	}
	if r, ok := t.ratio(PartSnapshot, "/proc/*/fd", ourSnapshot, 0, wholeNS); ok {
		out = append(out, bar{"reading /proc/*/fd against the snapshot", true, 20, r, ""})
	}
	if s := t.of(PartStart, dryRun, 0); len(s) > 0 {
		out = append(out,
			bar{"bpfkill --dry-run", false, 120, spreadOf(s, wholeNS).median / 1e6, " ms"},
			bar{"its peak resident memory, the most", false, 48, spreadOf(s, maxRSS).max / (1 << 20), " MiB"})
	}
	if r, ok := t.ratio(PartWatch, watchedPipe, unwatchedPipe, 0, wholeNS); ok {
		out = append(out, bar{"passing a byte back and forth beside bpfkill watch of 1,000 idle processes", false, 1.05, r, ""})
	}
	return out
}
