package incident

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/bpfkill/bpfkill/internal/storm"
	"golang.org/x/sys/unix"
)

// killed is how a killer ended.
type killed struct {
	status      int
	windowNS    uint64
	reap        reaped
	majorFaults uint64 // its own
	pages       uint64 // that it read from the disk
	err         error
}

// reaped are the processes with memory on swap of bpfkill's report, and those of them
// that had it freed before they could run.
type reaped struct{ Swapped, Reaped int }

// both are servers and routers by ascending pid: the order in which a scan of
// /proc finds them.
func (w *world) both() []int {
	all := slices.Concat(w.servers, w.routers)
	slices.Sort(all)
	return all
}

// killer is what kills by a strategy. Those that are not bpfkill know the pids
// already: looking for them costs nothing here, and reads nobody's memory.
func (w *world) killer(t *testing.T, strategy *Strategy) func() killed {
	t.Helper()
	if strategy.Args != nil {
		return w.bpfkill(t, strategy.Args)
	}
	switch strategy.Name {
	case "servers":
		return killAll(w.servers)
	case "pkill":
		return killAll(w.both())
	case "routers-first":
		return killAll(slices.Concat(w.routers, w.servers))
	case "cgroup.kill":
		return func() killed {
			return killed{err: os.WriteFile(w.cgroup+"/cgroup.kill", []byte("1"), 0)}
		}
	}
	t.Fatalf("no killer for %s", strategy.Name)
	return nil
}

// killAll is what kill(1) and pkill do once they know whom.
func killAll(pids []int) func() killed {
	return func() killed {
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return killed{err: fmt.Errorf("kill %d: %w", pid, err)}
			}
		}
		return killed{}
	}
}

func (w *world) bpfkill(t *testing.T, args []string) func() killed {
	t.Helper()
	tool := os.Getenv("BPFKILL_BIN")
	if tool == "" {
		t.Fatal("BPFKILL_BIN does not say where bpfkill is")
	}
	cmd := exec.Command(tool, append([]string{"--target", storm.Target, "--exact", "--output", "json"}, args...)...)
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	return func() killed {
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return killed{err: err}
		}
		k := killed{status: cmd.ProcessState.ExitCode()}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			k.majorFaults = uint64(usage.Majflt)
			k.pages = uint64(usage.Inblock) * 512 / uint64(os.Getpagesize())
		}
		var report struct {
			Result struct {
				WindowNS uint64          `json:"window_ns"`
				Window   json.RawMessage // how it went
			}
		}
		if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
			return killed{err: fmt.Errorf("exit status %d, and no report: %w", k.status, err)}
		}
		k.windowNS = report.Result.WindowNS
		var window struct{ Reap reaped }
		if err := json.Unmarshal(report.Result.Window, &window); err != nil {
			return killed{err: fmt.Errorf("bpfkill's window: %w", err)}
		}
		k.reap = window.Reap
		t.Logf("bpfkill's window: %s", report.Result.Window)
		if k.status != 0 {
			k.err = fmt.Errorf("exit status %d", k.status)
		}
		return k
	}
}
