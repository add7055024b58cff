package bench

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// table collects everything, and prints it for people at the end.
type table struct {
	w       io.Writer
	samples []Sample
}

func (t *table) add(s Sample) error {
	t.samples = append(t.samples, s)
	return nil
}

func (t *table) end() error {
	machine(t.w)
	t.print()
	return t.bars()
}

func (t *table) print() {
	t.kills(PartKill, "")
	t.kills(PartBusy, fmt.Sprintf(" while %d others want each CPU", hogsPerCPU))
	t.kills(PartSizes, "")
	t.memory()
	t.readings(PartSnapshot, "Reading %d processes and their descriptors, ms", "DESCRIPTORS", func(s []Sample) string {
		return fmt.Sprint(s[0].Descriptors)
	})
	t.readings(PartStart, "bpfkill as a whole, %d processes on the machine, ms", "PEAK MiB", func(s []Sample) string {
		return fmt.Sprintf("%.1f", spreadOf(s, maxRSS).max/(1<<20))
	})
	t.readings(PartWatch, "Two processes pass a byte back and forth "+fmt.Sprint(turns)+" times while %d others sleep, ms", "US A TURN", func(s []Sample) string {
		return fmt.Sprintf("%.2f", spreadOf(s, wholeNS).median/turns/1e3)
	})
}

// of picks the samples of one row. Processes of 0 are any.
func (t *table) of(part, strategy string, processes int) (out []Sample) {
	for _, s := range t.samples {
		if s.Part == part && s.Strategy == strategy && (processes == 0 || s.Processes == processes) {
			out = append(out, s)
		}
	}
	return out
}

// list returns what distinct values the samples of a part have, in their order.
func list[T comparable](t *table, part string, of func(*Sample) T) (out []T) {
	for i := range t.samples {
		s := &t.samples[i]
		if v := of(s); s.Part == part && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func processesOf(s *Sample) int   { return s.Processes }
func strategyOf(s *Sample) string { return s.Strategy }

// ms prints a spread of nanoseconds.
func ms(s spread) string {
	return fmt.Sprintf("%.2f\t%.2f … %.2f", s.median/1e6, s.min/1e6, s.max/1e6)
}

func (t *table) kills(part, how string) {
	for _, n := range list(t, part, processesOf) {
		fmt.Fprintf(t.w, "\nKilling %d sleeping processes%s, %d runs of each in turns, ms: median, and least … most\n\n", n, how, t.runs(part, n))
		tw := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "STRATEGY\tWINDOW\t\tAGAINST BPFKILL\tRAN INSIDE\tGONE AFTER\t\tWHOLE\t\t")
		us := spreadOf(t.of(part, ours, n), windowNS)
		for i := range strategies {
			samples := t.of(part, strategies[i].name, n)
			if len(samples) == 0 {
				continue
			}
			window := spreadOf(samples, windowNS)
			ratio := "-"
			if us.median > 0 {
				ratio = fmt.Sprintf("%.2f", window.median/us.median)
			}
			inside := spreadOf(samples, ran)
			fmt.Fprintf(tw, "%s\t%s\t%s\t%.0f … %.0f\t%s\t%s\t\n", strategies[i].what, ms(window), ratio, inside.min, inside.max,
				ms(spreadOf(samples, goneNS)), ms(spreadOf(samples, wholeNS)))
		}
		tw.Flush()
	}
}

// runs counts the turns.
func (t *table) runs(part string, processes int) (n int) {
	for _, s := range t.samples {
		if s.Part == part && s.Processes == processes {
			n = max(n, s.Run+1)
		}
	}
	return n
}

func (t *table) memory() {
	rows := list(t, PartMemory, strategyOf)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(t.w, "\nKilling %d processes of %d MiB, from the start of the program, ms\n\n", memoryProcesses, memoryMiB)
	tw := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "STRATEGY\tMEMORY FREE\t\tSINCE THE FIRST SIGNAL\t\tWINDOW\t\t")
	for _, name := range rows {
		samples := t.of(PartMemory, name, 0)
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t\n", describe(name), ms(spreadOf(samples, freeNS)), ms(spreadOf(samples, freeAfterNS)),
			ms(spreadOf(samples, windowNS)))
	}
	tw.Flush()
}

// readings is a part whose samples have a duration and something else.
func (t *table) readings(part, title, column string, value func([]Sample) string) {
	rows := list(t, part, strategyOf)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(t.w, "\n"+title+"\n\n", t.of(part, rows[0], 0)[0].Processes)
	tw := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\tTIME\t\t%s\tRUNS\t\n", column)
	for _, name := range rows {
		samples := t.of(part, name, 0)
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t\n", name, ms(spreadOf(samples, wholeNS)), value(samples), len(samples))
	}
	tw.Flush()
}
