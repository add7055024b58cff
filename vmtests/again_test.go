package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// A test that fails once in hundreds of runs on an emulated machine is told apart
// from one that fails: it runs again, alone, againRuns times in a fresh machine.
// If it passes all of them the kernel passes, and is called unstable, with what
// the failure printed. More than againTests failures are nobody's accident.
const (
	againRuns  = 3
	againTests = 2
)

// suspects returns the programs of a manifest narrowed to the tests that failed,
// nil where another try would say nothing: something else went wrong, or too much.
func suspects(v protocol.Verdict, programs []protocol.Program) []protocol.Program {
	if v.Trouble != "" || len(v.Outcomes) != len(programs) {
		return nil
	}
	var narrowed []protocol.Program
	failed := 0
	for i, o := range v.Outcomes {
		if o.Status == "" {
			continue
		}
		var tests []string
		runs := 0 // that failed
		for _, name := range o.Failures {
			top, _, _ := strings.Cut(name, "/")
			if !slices.Contains(tests, top) {
				tests = append(tests, top)
			}
			if name == top {
				runs++
			}
		}
		if runs > len(tests) { // of several runs, one of them failed more than once
			return nil
		}
		failed += len(tests)
		if o.Status != "exit status 1" || len(tests) == 0 || failed > againTests {
			return nil
		}
		p := programs[i]
		p.Args = append(slices.Clone(p.Args),
			"-test.run=^("+strings.Join(tests, "|")+")$", fmt.Sprintf("-test.count=%d", againRuns))
		narrowed = append(narrowed, p)
	}
	return narrowed
}

// namesOf lists the tests of narrowed programs.
func namesOf(programs []protocol.Program) string {
	var names []string
	for _, p := range programs {
		names = append(names, p.Name+" "+p.Args[len(p.Args)-2])
	}
	return strings.Join(names, ", ")
}

// withManifest returns a copy of an initramfs in which a manifest takes the place
// of the first: what a later archive holds is unpacked over what an earlier one did.
func withManifest(t *testing.T, initramfs string, m protocol.Manifest) (string, error) {
	data, err := os.ReadFile(initramfs)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	b := bytes.NewBuffer(data)
	archive := newCPIOWriter(b)
	archive.file(protocol.ManifestPath, 0o644, text)
	if err := archive.close(); err != nil {
		return "", err
	}
	name := filepath.Join(t.TempDir(), "initramfs.cpio")
	return name, os.WriteFile(name, b.Bytes(), 0o644)
}

// unstable boots a fresh machine for the tests that failed, and reports whether
// they pass there every time. say gets what became of it.
func unstable(t *testing.T, guest vm, v protocol.Verdict, m protocol.Manifest, say func(string)) bool {
	again := suspects(v, m.Programs)
	if len(again) == 0 {
		return false
	}
	initramfs, err := withManifest(t, guest.initramfs, protocol.Manifest{Env: m.Env, Programs: again})
	if err != nil {
		t.Error(err)
		return false
	}
	guest.initramfs = initramfs
	result, err := decide(t.Context(), t.Logf, guest.boot)
	if err != nil {
		say(fmt.Sprintf("%s: run again, alone, and the guest died: %v", namesOf(again), err))
		return false
	}
	packages := make([]testPackage, len(again))
	if problems := judge(result.verdict, packages, false); len(problems) > 0 {
		say("run again, alone: " + strings.Join(problems, "; "))
		return false
	}
	say(fmt.Sprintf("UNSTABLE: %s failed once, and then passed %d times of %d, alone in a fresh machine", namesOf(again), againRuns, againRuns))
	return true
}

func TestSuspects(t *testing.T) {
	programs := []protocol.Program{{Name: "./a", Args: []string{"-test.v", "-test.run=TestX|TestY"}}, {Name: "./b"}}
	green := protocol.Outcome{Name: "./a"}
	red := func(status string, failures ...string) protocol.Outcome {
		return protocol.Outcome{Name: "./b", Status: status, Failures: failures}
	}
	for _, tc := range []struct {
		name     string
		outcomes []protocol.Outcome
		trouble  string
		want     string
	}{
		{"one", []protocol.Outcome{green, red("exit status 1", "TestA/sub", "TestA")}, "", "./b -test.run=^(TestA)$"},
		{"two packages", []protocol.Outcome{red("exit status 1", "TestX"), red("exit status 1", "TestA")}, "",
			"./a -test.run=^(TestX)$, ./b -test.run=^(TestA)$"},
		{"two tests", []protocol.Outcome{green, red("exit status 1", "TestA", "TestB")}, "", "./b -test.run=^(TestA|TestB)$"},
		{"three tests", []protocol.Outcome{green, red("exit status 1", "TestA", "TestB", "TestC")}, "", ""},
		{"three tests of two packages", []protocol.Outcome{red("exit status 1", "TestX"), red("exit status 1", "TestA", "TestB")}, "", ""},
		{"a panic", []protocol.Outcome{green, red("exit status 2", "TestA")}, "", ""},
		{"killed", []protocol.Outcome{green, red("signal: killed", "TestA")}, "", ""},
		{"no test named", []protocol.Outcome{green, red("exit status 1")}, "", ""},
		{"not all were run", []protocol.Outcome{green}, "", ""},
		{"green", []protocol.Outcome{green, green}, "", ""},
		{"trouble", []protocol.Outcome{green, red("exit status 1", "TestA")}, "mount /proc", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := protocol.Verdict{Outcomes: tc.outcomes, Trouble: tc.trouble}
			if got := namesOf(suspects(v, programs)); got != tc.want {
				t.Errorf("suspects: %q, want %q", got, tc.want)
			}
		})
	}
	if got := programs[0].Args; len(got) != 2 {
		t.Errorf("the first run's arguments were changed: %q", got)
	}
}
