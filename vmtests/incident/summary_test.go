package incident

import (
	"strings"
	"testing"
)

// What a table says of the bars, and of runs that failed.
func TestTable(t *testing.T) {
	run := func(strategy string, pages uint64, gap float64) *Result {
		return &Result{Strategy: strategy, Kernel: "6.1.0", SwapInPages: pages, HeartbeatGapMS: gap,
			Routers: 2, RouterBytes: 8192, PageBytes: 4096}
	}
	failed := run("servers", 3, 600)
	failed.Run, failed.Trouble = 3, "exit status 1"
	machines := Machines([]*Result{
		run("bpfkill", 0, 50), run("bpfkill", 1, 60), run("bpfkill", 0, 100),
		run("servers", 4, 300), run("servers", 5, 900), failed,
	})
	if len(machines) != 1 {
		t.Fatalf("%d machines, want one", len(machines))
	}
	table := machines[0].Table()
	for _, want := range []string{
		"no page swapped in (2 of 3 runs)", "below 100 ms (2 of 3 runs)", "memory swapped in (2 of 3 runs)", "it is 10.0 times as long, of medians",
		"| `bpfkill` | 3 | 0 (0–1) |", "Run 3 of `kill -9, servers only` failed: exit status 1",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in\n%s", want, table)
		}
	}
	if alone := Machines([]*Result{run("bpfkill", 0, 50)})[0].Table(); strings.Contains(alone, "Asked") {
		t.Errorf("there is nothing to compare with:\n%s", alone)
	}
}
