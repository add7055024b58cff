package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
	"golang.org/x/sys/unix"
)

func TestTally(t *testing.T) {
	const output = `=== RUN   TestA
=== RUN   TestA/sub
    a_test.go:7: --- FAIL: is only text here
--- FAIL: TestA (0.00s)
    --- FAIL: TestA/sub (0.00s)
    --- PASS: TestA/other (0.00s)
=== RUN   TestB
    b_test.go:3: needs Linux 6.13 (bpf_send_signal_task)
--- SKIP: TestB (0.00s)
=== RUN   TestC
=== RUN   TestC/old
    c_test.go:5: a first word
    c_test.go:9: needs Linux 6.9
=== RUN   TestC/late
=== PAUSE TestC/late
=== CONT  TestC/late
    c_test.go:7: on the way
=== NAME  TestC/old
    c_test.go:9: needs Linux 6.9 (PIDFD_THREAD)
--- PASS: TestC (0.00s)
    --- SKIP: TestC/old (0.00s)
    --- PASS: TestC/late (0.00s)
=== RUN   TestD
FAIL
`
	var got tally
	for line := range strings.Lines(output) {
		got.count(strings.TrimRight(line, "\n"))
	}
	if want := (protocol.Counts{Passed: 3, Failed: 2, Skipped: 2}); got.Counts != want {
		t.Errorf("counts %+v, want %+v", got.Counts, want)
	}
	if got.running != "TestD" {
		t.Errorf("running %q, want TestD", got.running)
	}
	if want := []string{"TestA", "TestA/sub"}; !slices.Equal(got.failures, want) {
		t.Errorf("failures %q, want %q", got.failures, want)
	}
	if want := []string{
		"TestB: b_test.go:3: needs Linux 6.13 (bpf_send_signal_task)",
		"TestC/old: c_test.go:9: needs Linux 6.9 (PIDFD_THREAD)",
	}; !slices.Equal(got.skips, want) {
		t.Errorf("skips %q, want %q", got.skips, want)
	}
}

func TestDescribe(t *testing.T) {
	ran := protocol.Counts{Passed: 1}
	for _, tc := range []struct {
		name   string
		status unix.WaitStatus
		counts protocol.Counts
		want   string
	}{
		{"success", 0, ran, ""},
		{"all skipped", 0, protocol.Counts{Skipped: 2}, ""},
		{"failure", 1 << 8, ran, "exit status 1"},
		{"killed", 9, ran, "signal: killed"},
		{"nothing ran", 0, protocol.Counts{}, "no test ran"},
		{"exit status lies", 0, protocol.Counts{Failed: 1}, "failed tests under exit status 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := describe(tc.status, tc.counts); got != tc.want {
				t.Errorf("describe = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWhoKilled(t *testing.T) {
	const oom = "<3>[   9.0] Out of memory: Killed process 77 (window.test) total-vm:1kB\n"
	for _, tc := range []struct {
		overstayed bool
		log, want  string
	}{
		{true, oom, "time limit"},
		{false, "<6>[ 1.0] booting\n" + oom, "Killed process 77"},
		{false, "<6>[ 1.0] booting\n", "neither"},
	} {
		if got := whoKilled(tc.overstayed, tc.log); !strings.Contains(got, tc.want) {
			t.Errorf("whoKilled(%v, %q) = %q, want %q", tc.overstayed, tc.log, got, tc.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	const log = `<6>[    1.0] booting
<4>[    2.0] ------------[ cut here ]------------
<4>[    2.0] WARNING: CPU: 1 PID: 9 at kernel/x.c:7
<4>[    2.0] ---[ end trace 0000000000000000 ]---
<6>[    3.0] going on
<4>[    4.0] ------------[ cut here ]------------
<4>[    4.0] cut off
`
	got := warnings(log)
	if len(got) != 5 || !strings.Contains(got[1], "kernel/x.c:7") || !strings.Contains(got[4], "cut off") {
		t.Errorf("warnings = %q", got)
	}
}
