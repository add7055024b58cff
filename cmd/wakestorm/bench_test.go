package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/bench"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
)

// runBenchCommand runs a small benchmark in each of its outputs.
func runBenchCommand(t *testing.T, args ...string) string {
	t.Helper()
	nstest.Require(t)
	if nstest.InVM() {
		t.Skip("guests have no procps and no Go to build bpfkill with")
	}
	bpfkill := filepath.Join(t.TempDir(), "bpfkill")
	if out, err := exec.Command("go", "build", "-o", bpfkill, "../bpfkill").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := command(append([]string{"bench", "--bpfkill", bpfkill}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	return stdout.String()
}

// TestBench: every strategy kills the whole set, and has figures that fit together.
func TestBench(t *testing.T) {
	out := runBenchCommand(t, "--processes", "20", "--runs", "1", "--parts", "kill,start,watch", "--output", "json")
	got := map[string]bench.Sample{}
	for line := range strings.Lines(out) {
		var s bench.Sample
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got[s.Strategy] = s
	}
	for _, name := range bench.Names() {
		s, ok := got[name]
		if !ok {
			if strings.Contains(name, "batch") && loader.HaveBatch() != nil {
				continue
			}
			t.Errorf("%s: no row", name)
			continue
		}
		delete(got, name)
		if s.Part != bench.PartKill || s.Processes != 20 || s.WindowNS == 0 || s.WindowNS > s.GoneNS || s.GoneNS > s.WholeNS ||
			s.ReturnedNS == 0 || s.Ran > 20 || s.Woken != 0 {
			t.Errorf("%s: figures that do not fit together: %+v", name, s)
		}
		corral := strings.HasPrefix(name, "bpfkill-") && !strings.HasSuffix(name, "-nocorral")
		if corral && s.Ran != 0 {
			t.Errorf("%s: %d of the corralled ran inside the window", name, s.Ran)
		}
		if strings.HasPrefix(name, "bpfkill-") && (s.ReportedNS > 2*s.WindowNS || s.WindowNS > 2*s.ReportedNS) {
			t.Errorf("%s: bpfkill says %d ns, the stopwatch %d", name, s.ReportedNS, s.WindowNS)
		}
	}
	parts := map[string]int{}
	for name, s := range got { // of the other parts
		parts[s.Part]++
		if s.WholeNS == 0 || s.Part == bench.PartStart && s.MaxRSSBytes < 1<<20 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if parts[bench.PartStart] != 1 || parts[bench.PartWatch] != 2 || len(parts) != 2 {
		t.Errorf("readings of other parts: %v, want one of the start, and two of the watch", parts)
	}
}

// TestBenchOutputs: what people read and what benchstat does.
func TestBenchOutputs(t *testing.T) {
	for output, want := range map[string][]string{
		"go":    {"cpu: ", "BenchmarkKill/strategy=pkill/processes=5 \t1\t", " window-ns", "strategy=bpfkill-loop/"},
		"table": {"Killing 5 sleeping processes", "pkill -9 NAME", "RAN INSIDE", "BAR"},
	} {
		out := runBenchCommand(t, "--processes", "5", "--runs", "2", "--parts", "kill", "--strategies", "pkill,bpfkill-loop,bpfkill-batch", "--output", output)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("--output %s: no %q in\n%s", output, w, out)
			}
		}
	}
}
