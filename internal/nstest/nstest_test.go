package nstest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const decoyName = "nstest-decoy"

func TestMain(m *testing.M) { os.Exit(Main(m, Decoy(decoyName))) }

// comms lists the names of all visible processes.
func comms(t *testing.T) map[string]int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]int{}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil { // it may have ended meanwhile
			names[strings.TrimSpace(string(b))]++
		}
	}
	return names
}

func TestTestsSeeOnlyThemselves(t *testing.T) {
	Require(t)
	if !inside {
		t.Skip("a virtual machine is private without a namespace")
	}
	if os.Getpid() == 1 || os.Getppid() != 1 {
		t.Errorf("pid %d, parent %d: want a child of pid 1", os.Getpid(), os.Getppid())
	}
	if got := Decoys(); len(got) != 1 || got[0] != decoyName {
		t.Errorf("decoys %q", got)
	}
	if n := comms(t)[decoyName]; n != 0 {
		t.Errorf("%d decoys are visible inside", n)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	Require(t)
	out, err := exec.Command("sh", "-c", "sleep 0 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("orphan %d was never reaped", pid)
		}
	}
}

func TestCommandPassesStatusAndOutput(t *testing.T) {
	Require(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137} {
		var out bytes.Buffer
		cmd, err := Command("sh", "-c", "echo $PPID; "+script)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = &out
		err = cmd.Run()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want || out.String() != "1\n" {
			t.Errorf("%q: exit status %d and output %q; want %d and a parent that is pid 1", script, got, &out, want)
		}
	}
}

func TestNamespaceDiesWithItsProgram(t *testing.T) {
	Require(t)
	cmd := exec.Command("sh", "-c", "sleep 1234 & exit 3")
	if err := InNamespace(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("%v, want exit status 3", err)
	}
	// The kernel ends an init only after everyone below it.
	if n := comms(t)["sleep"]; n != 0 {
		t.Errorf("%d processes outlived their namespace", n)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	Require(t)
	cmd, err := Command("sh", "-c", `trap 'echo trapped; exit 5' TERM; echo ready; while :; do sleep 0.01; done`)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("ready\n"))
	if _, err := out.Read(line); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	if _, err := rest.ReadFrom(out); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // its status is read below
	if got := cmd.ProcessState.ExitCode(); got != 5 || rest.String() != "trapped\n" {
		t.Errorf("exit status %d and output %q", got, &rest)
	}
}

// A decoy in this namespace, and a program that kills by name in one within:
// the only way to try this in a virtual machine.
func TestDecoyOutlivesANamespace(t *testing.T) {
	Require(t)
	d, err := StartDecoy("nstest-nested")
	if err != nil {
		t.Fatal(err)
	}
	if n := comms(t)["nstest-nested"]; n != 1 {
		t.Errorf("%d processes bear the decoy's name", n)
	}
	cmd, err := Command("sh", "-c", "kill -9 -1; exit 0")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil && cmd.ProcessState.ExitCode() != 137 {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := d.Alive(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(d.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := d.Alive(); err == nil {
		t.Error("a killed decoy is said to be alive")
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
}

// innerVariable makes TestInner a test of its own: "wait" or "fail".
const innerVariable = "NSTEST_INNER"

// TestInner is what the tests below run this binary for.
func TestInner(t *testing.T) {
	what := os.Getenv(innerVariable)
	if what == "" {
		t.Skip("runs only below TestMainEndsAsItsTestsDo")
	}
	Require(t)
	fmt.Println("inner test runs")
	if what == "fail" {
		t.Error("failing as asked")
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Error(err)
	}
}

// The binary is run again the way go test would.
func TestMainEndsAsItsTestsDo(t *testing.T) {
	Require(t)
	if !inside {
		t.Skip("a virtual machine has no decoys outside, and this test kills one")
	}
	for _, test := range []struct {
		name, inner string
		killDecoy   bool
		status      int
		says        string
	}{
		{"passing tests", "wait", false, 0, "PASS"},
		{"a failing test", "fail", false, 1, "failing as asked"},
		{"a dead decoy", "wait", true, 1, "does not answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestInner$", "-test.v", "-test.timeout=1m")
			cmd.Env = append(os.Environ(), innerVariable+"="+test.inner)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			out := bufio.NewReader(stdout)
			for line := ""; line != "inner test runs\n"; {
				if line, err = out.ReadString('\n'); err != nil {
					t.Fatalf("%v\n%s", err, &stderr)
				}
			}
			if test.killDecoy {
				killByName(t, decoyName)
			}
			stdin.Close()
			rest, err := io.ReadAll(out)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Wait() // its status is read below
			said := string(rest) + stderr.String()
			if got := cmd.ProcessState.ExitCode(); got != test.status || !strings.Contains(said, test.says) {
				t.Errorf("exit status %d, want %d and %q; it said:\n%s", got, test.status, test.says, said)
			}
		})
	}
}

// killByName kills the one process of that name in this test's own namespace.
func killByName(t *testing.T, name string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || strings.TrimSpace(string(b)) != name {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed++
	}
	if killed != 1 {
		t.Fatalf("%d processes named %s were killed, want 1", killed, name)
	}
}
