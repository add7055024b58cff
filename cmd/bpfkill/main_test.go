package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// A decoy of the same name lives outside the namespace while these tests kill
// inside it; the run fails if it does not outlive them.
func TestMain(m *testing.M) {
	if os.Getenv(burnVariable) != "" { // no test, and no decoy, which would be a target here
		burnCPU()
	}
	status := nstest.Main(m, nstest.Decoy(storm.Target))
	os.RemoveAll(buildDir)
	os.Exit(status)
}

// buildDir holds the tool when it was built for this run.
var buildDir string

// binary returns the tool under test: BPFKILL_BIN, or one built for this run.
var binary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("BPFKILL_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "bpfkill-test-")
	if err != nil {
		return "", err
	}
	buildDir = dir
	// Unprivileged users run it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bpfkill")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// toolRun is one run of the tool.
type toolRun struct {
	status         int
	stdout, stderr string
	report         report.Report
}

// runBpfkill runs the tool. With JSON output the report is decoded.
func runBpfkill(t *testing.T, args ...string) toolRun {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return runTool(t, exec.Command(bin, args...))
}

func runTool(t *testing.T, cmd *exec.Cmd) toolRun {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	exit := (*exec.ExitError)(nil)
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %v: %v", cmd.Args, err)
	}
	o := toolRun{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	// Without a result, so that a test that expects one fails with the rest of
	// what bpfkill said.
	o.report.Result = &report.Result{}
	if strings.HasPrefix(o.stdout, "{") {
		if err := json.Unmarshal(stdout.Bytes(), &o.report); err != nil {
			t.Fatalf("decode report: %v\n%s", err, o.stdout)
		}
	}
	return o
}

// stage starts a storm and waits until everybody sleeps.
func stage(t *testing.T, topology string, n int) *storm.Storm {
	t.Helper()
	return stageWith(t, storm.Options{Topology: topology, Processes: n})
}

func stageWith(t *testing.T, options storm.Options) *storm.Storm {
	t.Helper()
	s, err := storm.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// allGone fails for each member that is alive, and for each that ran user code
// after it woke: ground truth that does not come from bpfkill.
func allGone(t *testing.T, s *storm.Storm) {
	t.Helper()
	alive, err := s.Alive()
	if err != nil {
		t.Fatal(err)
	}
	if len(alive) > 0 {
		t.Errorf("%d processes survived, the first: %+v", len(alive), alive[0])
	}
	if woken := s.Woken(); len(woken) > 0 {
		t.Errorf("%d processes ran user code after the window opened, the first: %+v", len(woken), woken[0])
	}
}
