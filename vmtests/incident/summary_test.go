package incident

import (
	"strings"
	"testing"
)

// What a table says of the bars, and of runs that failed.
func TestTable(t *testing.T) {
	run := func(strategy string, pages uint64, gap float64) *Result {
		return &Result{Strategy: strategy, Kernel: "6.1.0", SwapInPages: pages, HeartbeatGapMS: gap,
			Routers: 2, RouterBytes: 8192, PageBytes: 4096, MemoryBytes: 500 << 20, PagesWoken: pages - pages/4, PagesDying: pages / 4, MajorFaults: 7}
	}
	failed := run("servers", 3, 600)
	failed.Run, failed.Trouble = 3, "exit status 1"
	again := run("servers", 5, 900)
	again.Run, again.Boots = 2, 2
	lost := run("bpfkill", 0, 0)
	lost.Run, lost.MemoryBytes, lost.Trouble = 4, 0, "the guest died: no verdict came"
	machines := Machines([]*Result{
		lost, run("bpfkill", 0, 50), run("bpfkill", 1, 60), run("bpfkill", 0, 100),
		run("servers", 4, 300), again, failed,
	})
	if len(machines) != 1 {
		t.Fatalf("%d machines, want one", len(machines))
	}
	table := machines[0].Table()
	for _, want := range []string{
		"no page swapped in (2 of 3 runs)", "below 100 ms (2 of 3 runs)", "memory swapped in (2 of 3 runs)", "it is 10.0 times as long, of medians",
		"| how | runs | pages swapped in | by the woken | by the dying | major faults |",
		"| `bpfkill` | 3 | 0 (0–1) |", "| `kill -9, servers only` | 3 | 4 (3–5) | 3 (3–4) | 1 (0–1) | 7 |",
		"Run 4 of \"bpfkill\" left nothing measured: the guest died: no verdict came", "Run 2 of `kill -9, servers only`: the first machine died", "Run 3 of `kill -9, servers only` failed: exit status 1",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in\n%s", want, table)
		}
	}
	if alone := Machines([]*Result{run("bpfkill", 0, 50)})[0].Table(); strings.Contains(alone, "Asked") {
		t.Errorf("there is nothing to compare with:\n%s", alone)
	}
	if dead := Machines([]*Result{lost}); len(dead) != 1 || !strings.Contains(dead[0].Caption()+dead[0].Table(), "left nothing measured") {
		t.Errorf("a run whose machine died is nowhere: %+v", dead)
	}
}
