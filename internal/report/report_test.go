package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files of testdata anew")

func render(t *testing.T, r *Report, format Format, verbose bool) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, r, format, verbose); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestGolden(t *testing.T) {
	alternating, plain := incidentReport(40), incidentReport(40)
	p := alternating.Plan.Processes
	for i := range 40 { // router, server, router, server …
		p[2*i], p[2*i+1] = plain.Plan.Processes[i], plain.Plan.Processes[40+i]
	}
	nobody := killed(1)
	nobody.Result = &Result{Skipped: []Skipped{{811, "exited before the window"}, {812, "exited before the window"}}}
	tests := []struct {
		file    string
		r       *Report
		format  Format
		verbose bool
	}{
		{"killed.txt", killed(1000), FormatText, false},
		{"killed-verbose.txt", killed(3), FormatText, true},
		{"dry-run.txt", incidentReport(1000), FormatText, false},
		{"dry-run-alternating.txt", alternating, FormatText, false},
		{"went-wrong.txt", wentWrong(), FormatText, false},
		{"nobody.txt", nobody, FormatText, false},
		{"killed.json", killed(1), FormatJSON, false},
		{"dry-run.json", incidentReport(1), FormatJSON, false},
		{"small.dot", wentWrong(), FormatDOT, false},
		{"large.dot", incidentReport(1000), FormatDOT, false},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			got := render(t, tt.r, tt.format, tt.verbose)
			file := filepath.Join("testdata", tt.file)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// At three in the morning the report must not scroll away, whatever was killed.
func TestTextFitsAScreen(t *testing.T) {
	for name, r := range map[string]*Report{"killed": killed(1000), "planned": incidentReport(1000), "wrong": wentWrong()} {
		lines := strings.Split(string(render(t, r, FormatText, false)), "\n")
		if len(lines) > 24 {
			t.Errorf("%s: %d lines", name, len(lines))
		}
		for _, line := range lines {
			if !strings.HasPrefix(line, "warning: ") && utf8.RuneCountInString(line) > 132 {
				t.Errorf("%s: %d columns: %s", name, utf8.RuneCountInString(line), line)
			}
			for _, c := range line {
				if c < ' ' {
					t.Errorf("%s: control character %q in %q", name, c, line)
				}
			}
		}
	}
}

// Programs iterate over the arrays without asking whether they are there.
func TestJSONHasEveryFieldAndNoNull(t *testing.T) {
	full := render(t, &Report{Kernel: "6.1", Engine: "loop", Result: &Result{}}, FormatJSON, false)
	if bytes.Contains(full, []byte("null")) {
		t.Errorf("null in %s", full)
	}
	var got map[string]any
	if err := json.Unmarshal(full, &got); err != nil {
		t.Fatal(err)
	}
	requireKeys(t, "", got, "version", "kernel", "engine", "dry_run", "plan", "result")
	requireKeys(t, "plan", got["plan"], "processes", "conditions", "bystanders", "exposed", "unaccounted", "predicted", "incomplete")
	requireKeys(t, "result", got["result"], "signalled", "gone", "survivors", "skipped", "window_ns", "window", "tripped", "early_wakes",
		"user_returns", "inherited", "rounds", "wakes", "bystander_wakes", "swap_in_pages", "major_faults", "freed_bytes", "exit_ns", "lost_events", "lost")
	requireKeys(t, "lost", got["result"].(map[string]any)["lost"], "wakes", "costs", "forks", "signals", "exits", "tcp_states")
	window := got["result"].(map[string]any)["window"]
	requireKeys(t, "window", window, "arm_ns", "deliver_ns", "reap_ns", "open_ns", "target_switches", "reap_switches",
		"killer_minor_faults", "killer_major_faults", "killer_voluntary_switches", "killer_involuntary_switches", "corral", "reap")
	requireKeys(t, "corral", window.(map[string]any)["corral"], "cpu", "threads", "moves", "closed", "left_out")
	requireKeys(t, "reap", window.(map[string]any)["reap"], "swapped", "reaped", "left_out")
	if got["version"] != 1.0 {
		t.Errorf("version %v", got["version"])
	}

	dry := render(t, incidentReport(1), FormatJSON, false)
	got = nil
	if err := json.Unmarshal(dry, &got); err != nil {
		t.Fatal(err)
	}
	if _, ok := got["result"]; ok {
		t.Error("a dry run has a result")
	}
	plan := got["plan"].(map[string]any)
	first := func(list string) any { return plan[list].([]any)[0] }
	requireKeys(t, "processes", first("processes"), "order", "pid", "start_ns", "comm", "role", "because", "rss_bytes", "swap_bytes")
	requireKeys(t, "conditions", first("conditions"), "waiter", "channel", "source", "holders", "fires")
	requireKeys(t, "bystanders", first("bystanders"), "pid", "comm", "channel", "source", "swap_bytes", "action", "indirect", "dies")
	requireKeys(t, "incomplete", plan["incomplete"], "queues", "raced", "records", "callbacks")
	requireKeys(t, "predicted", plan["predicted"], "wakes_if_killed_naively", "swap_in_bytes_if_killed_naively", "wakes")
}

func requireKeys(t *testing.T, where string, object any, keys ...string) {
	t.Helper()
	m, ok := object.(map[string]any)
	if !ok {
		t.Errorf("%s is %T", where, object)
		return
	}
	for _, k := range keys {
		if _, ok := m[k]; !ok {
			t.Errorf("%s has no %q", where, k)
		}
	}
	for k := range m {
		if !slices.Contains(keys, k) {
			t.Errorf("%s has %q, which schema 1 does not know", where, k)
		}
	}
}

// Writing must not change the report: a caller may write it twice.
func TestWriteJSONLeavesTheReportAlone(t *testing.T) {
	r := &Report{Result: &Result{}}
	render(t, r, FormatJSON, false)
	if r.Version != 0 || r.Plan.Processes != nil || r.Result.Wakes != nil {
		t.Errorf("changed to %+v", r)
	}
}

// Numbers of the kernel's own stay inside: ids of the initial pid namespace
// mean nothing to the user, and addresses help an attacker. The fixture gives
// every process a KernelPID from 70000811 and an address for a cgroup id.
func TestNoKernelNumbers(t *testing.T) {
	for name, r := range map[string]*Report{"killed": killed(200), "planned": incidentReport(20), "wrong": wentWrong()} {
		for _, format := range []Format{FormatText, FormatJSON, FormatDOT} {
			out := strings.ToLower(string(render(t, r, format, true)))
			for _, secret := range []string{"ffff8880", "18446612", "700008", "0x"} {
				if strings.Contains(out, secret) {
					t.Errorf("%s, format %d: %q is printed", name, format, secret)
				}
			}
		}
	}
}

func TestParseFormat(t *testing.T) {
	for name, want := range map[string]Format{"text": FormatText, "json": FormatJSON, "dot": FormatDOT} {
		if got, err := ParseFormat(name); got != want || err != nil {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "JSON", "yaml"} {
		if _, err := ParseFormat(name); err == nil {
			t.Errorf("%q is a format", name)
		}
	}
}

func TestRuns(t *testing.T) {
	for names, want := range map[string]string{
		"a":                     "1 a",
		"a a b":                 "1–2 a ×2, 3 b",
		"a b a b":               "1 a, 2 b, 3 a, 4 b",
		"a b a b a b":           "1–6 (a, b) ×3",
		"a b a b a b a":         "1–6 (a, b) ×3, 7 a",
		"a b c a b c a b c d d": "1–9 (a, b, c) ×3, 10–11 d ×2",
	} {
		var processes []Process
		for comm := range strings.FieldsSeq(names) {
			processes = append(processes, Process{Comm: comm})
		}
		if got := strings.Join(runs(processes), ", "); got != want {
			t.Errorf("%s: %q, want %q", names, got, want)
		}
	}
}

// TestJSONIsSafeOnATerminal: names are chosen by processes.
func TestJSONIsSafeOnATerminal(t *testing.T) {
	const name = "a\x1b[2J\u009b2J\x7f\u00e9"
	var b bytes.Buffer
	if err := WriteJSON(&b, &Report{Plan: Plan{Processes: []Process{{Comm: name}}}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%U in %q", r, b.String())
		}
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back.Plan.Processes[0].Comm != name {
		t.Errorf("%v, %q, want %q", err, back.Plan.Processes[0].Comm, name)
	}
}

// TestWhoDiesIsNamed: --protect does not keep the kernel's signals from anybody.
func TestWhoDiesIsNamed(t *testing.T) {
	r := incidentReport(2)
	r.Plan.Bystanders = append(r.Plan.Bystanders, Bystander{PID: 901, Comm: "vim", Channel: "pty", Source: "exit of 811", Dies: true})
	text := string(render(t, r, FormatText, false))
	if want := "warning: 1 process dies outside the kill set"; !strings.Contains(text, want) || !strings.Contains(text, "vim (terminal)") {
		t.Errorf("%s\nwant %q, and vim", text, want)
	}
}
