package vmtests

import (
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

func TestJudge(t *testing.T) {
	two := []testPackage{{path: "./a", feelsFault: "TestA"}, {path: "./b", feelsFault: "TestB"}}
	green := protocol.Outcome{Name: "./a", Counts: protocol.Counts{Passed: 2}}
	redA := protocol.Outcome{Name: "./a", Status: "exit status 1", Counts: protocol.Counts{Failed: 1}, Failures: []string{"TestA"}}
	redB := protocol.Outcome{Name: "./b", Status: "exit status 1", Counts: protocol.Counts{Failed: 1}, Failures: []string{"TestB"}}
	other := protocol.Outcome{Name: "./b", Status: "exit status 1", Counts: protocol.Counts{Failed: 1}, Failures: []string{"TestC"}}
	broken := protocol.Outcome{Name: "./b", Status: "signal: killed"}
	for _, tc := range []struct {
		name     string
		outcomes []protocol.Outcome
		trouble  string
		fault    bool
		want     string // part of the problems; empty for none
	}{
		{"green", []protocol.Outcome{green, green}, "", false, ""},
		{"red", []protocol.Outcome{green, redB}, "", false, "./b: exit status 1: TestB"},
		{"a package was not run", []protocol.Outcome{green}, "", false, "1 of 2 packages"},
		{"the guest could not", nil, "mount /proc", false, "mount /proc"},
		{"fault noticed", []protocol.Outcome{redA, redB}, "", true, ""},
		{"fault noticed by one", []protocol.Outcome{green, redB}, "", true, "TestA did not fail"},
		{"fault, and another test failed", []protocol.Outcome{redA, other}, "", true, "TestB did not fail"},
		{"fault, and a binary that broke", []protocol.Outcome{redA, broken}, "", true, "TestB did not fail"},
		{"fault, and the guest could not", nil, "mount /proc", true, "mount /proc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := strings.Join(judge(protocol.Verdict{Outcomes: tc.outcomes, Trouble: tc.trouble}, two, tc.fault), "\n")
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
				t.Errorf("judge = %q, want %q", got, tc.want)
			}
		})
	}
}
