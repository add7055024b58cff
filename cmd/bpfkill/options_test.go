package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/report"
)

// parsed is what a user of the command sees, and what reached the kill.
type parsed struct {
	status         int
	stdout, stderr string
	o              *options // nil when nothing was to be killed
	watch          *watchOptions
	doctor         *doctorOptions
}

// runUntilKill runs the command up to the point where it would touch the system.
func runUntilKill(killErr error, args ...string) parsed {
	var stdout, stderr bytes.Buffer
	var out parsed
	kill := func(_ context.Context, o *options, _, _ io.Writer) error {
		out.o = o
		return killErr
	}
	watch := func(_ context.Context, o *watchOptions, _, _ io.Writer) error {
		out.watch = o
		return killErr
	}
	doctor := func(_ context.Context, o *doctorOptions, _, _ io.Writer) error {
		out.doctor = o
		return killErr
	}
	err := run(context.Background(), args, &stdout, &stderr, commands{kill, watch, doctor})
	out.status = exitStatus(err, &stderr)
	out.stdout, out.stderr = stdout.String(), stderr.String()
	return out
}

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		args   string // separated by spaces, "''" for an empty one
		stderr string // in the one line
	}{
		{"", "no process selected: give at least one of --target"},
		{"", "usage: bpfkill --target REGEX [flags]"},
		{"-n", "no process selected"},
		{"--protect sshd", "no process selected"},
		{"smtpserver", `unexpected argument "smtpserver": selection is by flag: bpfkill --target smtpserver`},
		{"-x smtpserver", "selection is by flag: bpfkill --target smtpserver"},
		{"--target smtpserver router", `unexpected argument "router"`},
		{"812", "selection is by flag: bpfkill --pid 812"},
		{"a|b", "bpfkill --target 'a|b'"},
		{"watch", "no process selected: give at least one of --target"},
		{"watch", "usage: bpfkill watch --target REGEX [flags]"},
		{"watch smtpserver", "selection is by flag: bpfkill watch --target smtpserver"},
		{"watch 812", "selection is by flag: bpfkill watch --pid 812"},
		{"watch --target a --duration 0", `"0s" for --duration: must be positive`},
		{"watch --target a --duration 3", `"3" for "--duration"`},
		{"watch --target a --output dot", `"dot" for --output: must be one of text, json`},
		{"watch --target a --engine loop", "unknown flag: --engine"},
		{"watch --target a --older 0", `"0" for --older`},
		{"--target a watch", `unexpected argument "watch"`},
		{"doctor --target x", "unknown flag: --target"},
		{"doctor who", `unexpected argument "who"`},
		{"doctor --output dot", `"dot" for --output: must be one of text, json`},
		{"--target a(", `"a(" for --target`},
		{"--target ''", `"" for --target`},
		{"--target", "flag needs an argument: --target"},
		{"--target a --protect [", `"[" for --protect`},
		{"--nonsense", "unknown flag: --nonsense"},
		{"-9 --target a", "unknown shorthand flag: '9'"},
		{"-p x", `"x" for --pid`},
		{"--pid=", `"" for --pid`},
		{"--target a --pid ''", `"" for --pid`},
		{"-P -1", `"-1" for --parent`},
		{"-g x", `"x" for --pgroup`},
		{"-s x", `"x" for --session`},
		{"-u no-such-user-here", `"no-such-user-here" for --euid: no such user`},
		{"-U no-such-user-here", `"no-such-user-here" for --uid: no such user`},
		{"--cgroup=", `"" for --cgroup`},
		{"--older x", `"x" for "--older"`},
		{"--older -1", `"-1" for "--older"`},
		{"--older 1m", `"1m" for "--older"`},
		{"--older 0", `"0" for --older`},
		{"--full --pid 7", "give --target"},
		{"--target a --dependents some", `"some" for --dependents: must be one of descendants, all, none`},
		{"--target a --bystanders park", "--bystanders park: parking does not exist yet"},
		{"--target a --bystanders kill", `"kill" for --bystanders`},
		{"--target a --engine steam", `"steam" for --engine: must be one of auto, batch, cgroup, loop`},
		{"--target a --engine=", `"" for --engine`},
		{"--target a --output yaml", `"yaml" for --output: must be one of text, json, dot`},
		{"--target a --max x", `"x" for "--max"`},
		{"--target a --max -1", `"-1" for --max`},
		{"--target a --timeout 10", `"10" for "--timeout"`},
		{"--target a --timeout soon", `"soon" for "--timeout"`},
		{"--target a --timeout 0s", `"0s" for --timeout`},
		{"--target a --timeout -1s", `"-1s" for --timeout`},
		{"--target a -q -v", "--quiet and --verbose exclude each other"},
		{"--target a -n=maybe", `"maybe"`},
	}
	for _, tt := range tests {
		args := strings.Fields(tt.args)
		for i := range args {
			if args[i] == "''" {
				args[i] = ""
			}
		}
		got := runUntilKill(nil, args...)
		if got.status != exitUsage {
			t.Errorf("%q: exit status %d, want %d", tt.args, got.status, exitUsage)
		}
		if !strings.HasPrefix(got.stderr, "bpfkill: ") || !strings.Contains(got.stderr, tt.stderr) {
			t.Errorf("%q: stderr %q, want %q in it", tt.args, got.stderr, tt.stderr)
		}
		if strings.Count(got.stderr, "\n") != 1 || got.stdout != "" {
			t.Errorf("%q: stderr %q and stdout %q, want one line on stderr", tt.args, got.stderr, got.stdout)
		}
		if got.o != nil || got.watch != nil || got.doctor != nil {
			t.Errorf("%q: the system was touched", tt.args)
		}
	}
}

func TestOptions(t *testing.T) {
	tests := []struct {
		args []string
		want options
	}{
		{nil, options{}},
		{[]string{"--dependents", "all", "--engine", "loop", "--max=5", "--timeout=1m"},
			options{dependents: plan.DependentsAll, engine: engineLoop, max: 5, timeout: time.Minute}},
		{[]string{"--dependents=none", "-n", "-q", "--output=json"},
			options{dependents: plan.DependentsNone, dryRun: true, quiet: true, output: report.FormatJSON}},
		{[]string{"--bystanders=wake", "-v", "--output", "dot", "--engine=batch"},
			options{verbose: true, output: report.FormatDOT, engine: engineBatch}},
	}
	for _, tt := range tests {
		if tt.want.engine == "" {
			tt.want.engine = engineAuto
		}
		if tt.want.timeout == 0 {
			tt.want.timeout = 10 * time.Second
		}
		if tt.want.corral == "" {
			tt.want.corral = corralAuto
		}
		tt.want.bystanders = "wake"
		got := runUntilKill(nil, append([]string{"--target", "smtpserver"}, tt.args...)...)
		if got.o == nil || got.status != exitGone || got.stderr != "" {
			t.Errorf("%q: %+v", tt.args, got)
			continue
		}
		if got.o.selector == nil {
			t.Errorf("%q: no selector", tt.args)
		}
		got.o.selector = nil
		if *got.o != tt.want {
			t.Errorf("%q: options %+v, want %+v", tt.args, *got.o, tt.want)
		}
	}
}

func TestExitStatus(t *testing.T) {
	boom := errors.New("CAP_BPF is missing")
	tests := []struct {
		err    error
		status int
		stderr string
	}{
		{nil, 0, ""},
		{&exitError{exitNoMatch, nil}, 1, ""},
		{boom, 3, "bpfkill: CAP_BPF is missing\n"},
		{&exitError{exitFatal, boom}, 3, "bpfkill: CAP_BPF is missing\n"},
		{&exitError{exitSurvivors, nil}, 4, ""},
		{&exitError{exitPartial, boom}, 64, "bpfkill: CAP_BPF is missing\n"},
	}
	for _, tt := range tests {
		got := runUntilKill(tt.err, "--target", "x")
		if got.status != tt.status || got.stderr != tt.stderr {
			t.Errorf("%v: exit status %d, stderr %q, want %d, %q", tt.err, got.status, got.stderr, tt.status, tt.stderr)
		}
	}
}

func TestWarningsAreForPeople(t *testing.T) {
	long := []string{"--target", "a-name-of-more-than-15-characters"}
	if got := runUntilKill(nil, long...); !strings.HasPrefix(got.stderr, "bpfkill: warning: --target") || got.status != exitGone {
		t.Errorf("%+v, want a warning", got)
	}
	if got := runUntilKill(nil, append(long, "-q")...); got.stderr != "" {
		t.Errorf("-q: stderr %q", got.stderr)
	}
}

func TestWatchOptions(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want watchOptions
	}{
		{nil, watchOptions{}},
		{[]string{"--duration", "90s", "--output=json", "-v"}, watchOptions{duration: 90 * time.Second, json: true, verbose: true}},
		{[]string{"--output", "text"}, watchOptions{}},
	} {
		got := runUntilKill(nil, append([]string{"watch", "--target", "smtpserver"}, tt.args...)...)
		if got.watch == nil || got.o != nil || got.status != exitGone || got.stderr != "" || got.watch.selector == nil {
			t.Errorf("%q: %+v", tt.args, got)
			continue
		}
		got.watch.selector = nil
		if *got.watch != tt.want {
			t.Errorf("%q: options %+v, want %+v", tt.args, *got.watch, tt.want)
		}
	}
}

// helpNames checks that a help text is complete and not too wide.
func helpNames(t *testing.T, help string, sets ...*pflag.FlagSet) {
	t.Helper()
	for _, set := range sets {
		set.VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(help, "--"+f.Name+" ") {
				t.Errorf("--%s is not in the help text", f.Name)
			}
		})
	}
	for line := range strings.Lines(help) {
		if len(line) > 81 {
			t.Errorf("wider than a terminal: %q", line)
		}
	}
}

func TestWatchHelp(t *testing.T) {
	got := runUntilKill(nil, "watch", "--help", "bare")
	if got.status != exitGone || got.stderr != "" || got.watch != nil {
		t.Errorf("%+v", got)
	}
	var v watchFlags
	selection, watch := v.flags()
	helpNames(t, got.stdout, selection, watch)
}

func TestDoctorOptions(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want doctorOptions
	}{
		{nil, doctorOptions{}},
		{[]string{"--output=json"}, doctorOptions{output: report.FormatJSON}},
	} {
		got := runUntilKill(nil, append([]string{"doctor"}, tt.args...)...)
		if got.doctor == nil || *got.doctor != tt.want || got.o != nil || got.status != exitGone || got.stderr != "" {
			t.Errorf("%q: %+v", tt.args, got)
		}
	}
	got := runUntilKill(nil, "doctor", "-h")
	if got.doctor != nil || got.status != exitGone {
		t.Errorf("%+v", got)
	}
	var o doctorOptions
	var formatName string
	helpNames(t, got.stdout, o.flags(&formatName))
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"-h"}, {"--help"}, {"--help", "bare", "--target", "("}} {
		got := runUntilKill(nil, args...)
		if got.status != exitGone || got.stderr != "" || got.o != nil {
			t.Errorf("%q: %+v", args, got)
		}
	}
	help := runUntilKill(nil, "--help").stdout
	var v flagValues
	selection, kill, output := v.flags()
	helpNames(t, help, selection, kill, output)
	if strings.Contains(help, "park") {
		t.Error("the help text offers parking, which does not exist yet")
	}
}

func TestVersion(t *testing.T) {
	if got := runUntilKill(nil, "-V"); got.status != exitGone || !strings.HasPrefix(got.stdout, "bpfkill ") || got.o != nil {
		t.Errorf("%+v", got)
	}
	info := debug.BuildInfo{Main: debug.Module{Version: "v1.2.0"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "8615adadeadbeefcafe0123456789abcdef01234"}, {Key: "vcs.modified", Value: "true"},
	}}
	const want = "bpfkill v1.2.0 (commit 8615adadeadb, modified), needs Linux 5.10 or later with BTF"
	if got := formatVersion(&info); got != want {
		t.Errorf("version %q, want %q", got, want)
	}
}
