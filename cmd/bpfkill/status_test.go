package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// unharmed fails unless everybody in the storm lives and sleeps on.
func unharmed(t *testing.T, s *storm.Storm) {
	t.Helper()
	alive, err := s.Alive()
	if err != nil {
		t.Fatal(err)
	}
	if len(alive) != len(s.Processes()) {
		t.Errorf("%d of %d live", len(alive), len(s.Processes()))
	}
	if woken := s.Woken(); len(woken) != 0 {
		t.Errorf("%d were woken", len(woken))
	}
}

func TestNothingIsSignalled(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 8)
	tests := []struct {
		name   string
		args   []string
		status int
		stderr string // a part of the one line
	}{
		{"no match", []string{"--target", "nosuchprocess"}, exitNoMatch, "no process matched"},
		{"bare argument", []string{"smtpserver"}, exitUsage, "--target smtpserver"},
		{"no selection", nil, exitUsage, "usage: bpfkill --target"},
		{"bad regex", []string{"--target", "smtp("}, exitUsage, "smtp("},
		{"unknown flag", []string{"--frobnicate"}, exitUsage, "frobnicate"},
		{"bad number", []string{"--pid", "12x"}, exitUsage, "12x"},
		{"parking", []string{"--target", storm.Target, "--bystanders", "park"}, exitUsage, "parking does not exist yet"},
		{"too many", []string{"--target", storm.Target, "--max", "7"}, exitFatal, "--max 7"},
		{"no cgroup of its own", []string{"--target", storm.Target, "--engine", "cgroup"}, exitFatal, "--engine cgroup"},
		{"no such cgroup", []string{"--cgroup", "/no/such"}, exitFatal, "/no/such"},
	}
	if loader.HaveBatch() != nil {
		tests = append(tests, struct {
			name   string
			args   []string
			status int
			stderr string
		}{"engine that this kernel has not", []string{"--target", storm.Target, "--engine", "batch"}, exitFatal, loader.BatchSince})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := runBpfkill(t, tt.args...)
			if o.status != tt.status || !strings.Contains(o.stderr, tt.stderr) || strings.Count(o.stderr, "\n") != 1 {
				t.Errorf("exit status %d, stderr %q; want %d and one line with %q", o.status, o.stderr, tt.status, tt.stderr)
			}
			if o.stdout != "" {
				t.Errorf("stdout %q", o.stdout)
			}
			unharmed(t, s)
		})
	}
}

func TestDryRunKillsNobody(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 8)
	for _, format := range []string{"text", "json", "dot"} {
		o := runBpfkill(t, "--target", storm.Target, "--dry-run", "--output", format)
		if o.status != exitGone || o.stdout == "" || o.stderr != "" {
			t.Errorf("%s: exit status %d, stdout %q, stderr %q", format, o.status, o.stdout, o.stderr)
		}
		if format == "json" {
			var top map[string]json.RawMessage
			if err := json.Unmarshal([]byte(o.stdout), &top); err != nil {
				t.Fatal(err)
			}
			if _, ok := top["result"]; ok || string(top["dry_run"]) != "true" {
				t.Errorf("a dry run has a result, or does not say that it is one: %s", o.stdout)
			}
			if got, want := len(o.report.Plan.Processes), len(s.Processes()); got != want {
				t.Errorf("%d processes planned, want %d", got, want)
			}
		}
		unharmed(t, s)
	}
}

// A dry run is what a script asks before it kills.
func TestDryRunOfTooMany(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 8)
	all := len(s.Processes())
	for args, want := range map[string]int{
		"--max 1 -q": exitFatal, fmt.Sprintf("--max %d", all-1): exitFatal, fmt.Sprintf("--max %d", all): exitGone,
	} {
		o := runBpfkill(t, append([]string{"--target", storm.Target, "--dry-run"}, strings.Fields(args)...)...)
		if o.status != want || strings.Contains(o.stderr, "more than --max") != (want == exitFatal) {
			t.Errorf("%s: exit status %d, stderr %q", args, o.status, o.stderr)
		}
		if quiet := strings.Contains(args, "-q"); (o.stdout == "") != quiet {
			t.Errorf("%s: stdout %q", args, o.stdout)
		}
	}
	unharmed(t, s)
}

// A plan takes seconds on a machine in distress, and ends when it is told to.
func TestInterruptedWhileItPlans(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"--dry-run"}, nil} {
		o, err := parseOptions(append([]string{"--target", storm.Target}, args...))
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		err = kill(ctx, o, &stdout, &stderr)
		if status := exitStatus(err, &stderr); status != exitFatal || stdout.Len() > 0 || !strings.Contains(stderr.String(), "interrupted") {
			t.Errorf("%v: exit status %d, stdout %q, stderr %q", args, status, stdout.String(), stderr.String())
		}
	}
	unharmed(t, s)
}

// An exit status that is not 0 always has its line.
func TestUnseenForksAreSaid(t *testing.T) {
	for _, test := range []struct {
		lost   uint64
		err    error
		status int
	}{{0, nil, exitGone}, {3, nil, exitSurvivors}, {0, unix.ENOMEM, exitSurvivors}} {
		var stderr bytes.Buffer
		s := &session{options: &options{quiet: true}, stderr: &stderr}
		status := s.unseenForks(test.lost, test.err)
		if said := strings.Count(stderr.String(), "\n") == 1; status != test.status || said != (status != exitGone) {
			t.Errorf("%d lost, %v: exit status %d, stderr %q", test.lost, test.err, status, stderr.String())
		}
	}
}

func TestWithoutPrivileges(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 2)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		caps []uintptr
		want []string
	}{
		{"none", nil, []string{"CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"}},
		{"one missing", []uintptr{unix.CAP_BPF, unix.CAP_SYSLOG}, []string{"CAP_PERFMON"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command(bin, "--target", storm.Target)
			unprivileged(t, cmd, tt.caps...)
			o := runTool(t, cmd)
			if o.status != exitFatal || strings.Count(o.stderr, "\n") != 1 {
				t.Errorf("exit status %d, stderr %q", o.status, o.stderr)
			}
			for _, c := range []string{"CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG"} {
				if strings.Contains(o.stderr, c) != slices.Contains(tt.want, c) {
					t.Errorf("stderr %q, want exactly %v named", o.stderr, tt.want)
				}
			}
			unharmed(t, s)
		})
	}
}

// TestDependentsNone leaves the routers alone: they are bystanders, and the
// measured wakes name exactly them.
func TestDependentsNone(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 16)
	o := runBpfkill(t, "--target", storm.Target, "--dependents", "none", "--output", "json")
	if o.status != exitGone {
		t.Fatalf("exit status %d, stderr %q", o.status, o.stderr)
	}
	var routers, planned, measured []int32
	for _, p := range s.Processes() {
		if p.Comm == "router" {
			routers = append(routers, int32(p.PID))
		}
	}
	for _, b := range exceptParent(o.report.Plan.Bystanders) {
		planned = append(planned, b.PID)
	}
	for _, w := range o.report.Result.Wakes {
		if int(w.PID) == os.Getpid() {
			continue // as their parent
		}
		if w.Killed || !w.Predicted || w.Channel != "pipe" || w.Count == 0 {
			t.Errorf("wake %+v", w)
		}
		measured = append(measured, w.PID)
	}
	for _, pids := range [][]int32{routers, planned, measured} {
		slices.Sort(pids)
	}
	if !slices.Equal(planned, routers) || !slices.Equal(measured, routers) {
		t.Errorf("routers %v, planned bystanders %v, measured wakes %v", routers, planned, measured)
	}
	if got, want := o.report.Result.Signalled, 16; got != want {
		t.Errorf("%d signalled, want the %d servers", got, want)
	}
}

// TestSurvivorIsNamed kills a process whose tracer holds it at its exit.
func TestSurvivorIsNamed(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread() // ptrace is a matter between threads
	defer runtime.UnlockOSThread()
	held := decoy(t, "heldfast")
	release := holdAtExit(t, held.PID)

	cmd := toolCommand(t, "--target", "heldfast", "--timeout", "500ms", "--output", "json", "--quiet")
	o := runTool(t, cmd)
	release()
	if o.status != exitSurvivors {
		t.Fatalf("exit status %d, stderr %q, stdout %s", o.status, o.stderr, o.stdout)
	}
	got := o.report.Result.Survivors
	if len(got) != 1 || int(got[0].PID) != held.PID || got[0].Comm != "heldfast" || got[0].State != "t" {
		t.Errorf("survivors %+v, want heldfast[%d] in state t", got, held.PID)
	}
	// No progress, for it is no terminal; but --quiet does not hide a failure.
	if want := fmt.Sprintf("bpfkill: \"heldfast\", process %d, survived, in state t\n", held.PID); o.stderr != want {
		t.Errorf("stderr %q, want %q", o.stderr, want)
	}
}

func TestProgressOnATerminal(t *testing.T) {
	nstest.Require(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	held := decoy(t, "heldfast")
	release := holdAtExit(t, held.PID)
	defer release()
	master, slave := openPTY(t)
	cmd := toolCommand(t, "--target", "heldfast", "--timeout", "500ms")
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, slave
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != exitSurvivors {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	slave.Close()
	shown := make([]byte, 4096)
	n, _ := master.Read(shown)
	if !strings.Contains(string(shown[:n]), "0 of 1 gone") {
		t.Errorf("the terminal shows %q", shown[:n])
	}
}

func toolCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(bin, args...)
}

// holdAtExit makes this thread the tracer of pid, which will stop on its way
// out until release is called.
func holdAtExit(t *testing.T, pid int) (release func()) {
	t.Helper()
	if err := unix.PtraceAttach(pid); err != nil {
		t.Fatal(err)
	}
	var st unix.WaitStatus
	if _, err := unix.Wait4(pid, &st, unix.WALL, nil); err != nil || !st.Stopped() {
		t.Fatalf("wait for the tracee: %v, status %v", err, st)
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACEEXIT); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceCont(pid, 0); err != nil {
		t.Fatal(err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		for ctx.Err() == nil {
			if err := unix.PtraceDetach(pid); err == nil || err == unix.ESRCH {
				return
			}
		}
		t.Errorf("tracee %s does not let go", strconv.Itoa(pid))
	}
}
