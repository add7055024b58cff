package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/bpfkill/bpfkill/internal/storm"
)

// dryRun names the row.
const dryRun = "bpfkill --dry-run"

const dryRunProcesses = 1000

// starts measures a bpfkill that kills nobody, as a whole process.
func (l *lab) starts(add func(Sample) error) error {
	set, err := l.stage(shape{processes: dryRunProcesses})
	if err != nil {
		return err
	}
	for run := range l.Runs {
		l.say("%s: run %d of %d", PartStart, run+1, l.Runs)
		t, err := timed(l.Bpfkill, "--dry-run", "--target", storm.Target)
		if err == nil {
			err = add(Sample{
				Part: PartStart, Strategy: dryRun, Processes: dryRunProcesses, Run: run,
				WholeNS: t.WallNS, MaxRSSBytes: t.MaxRSSBytes,
			})
		}
		if err != nil {
			return errors.Join(err, set.end())
		}
	}
	return set.end()
}

// taken is what a program took.
type taken struct {
	WallNS      uint64
	MaxRSSBytes int64
}

// timed runs a program below a small one: the kernel counts what the parent had
// as the child's.
func timed(argv ...string) (t taken, err error) {
	out, err := helping(roleTimer, argv...).Output()
	if err != nil {
		return t, fmt.Errorf("run %v: %w", argv, err)
	}
	return t, json.Unmarshal(out, &t)
}

// timer is that small one: it runs a program and prints what it took.
func timer(argv []string) error {
	if len(argv) == 0 {
		return errors.New("no program to time")
	}
	os.Unsetenv(roleVariable)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	began := monotonicNS()
	if err := cmd.Run(); err != nil {
		return err
	}
	t := taken{WallNS: monotonicNS() - began}
	t.MaxRSSBytes = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return json.NewEncoder(os.Stdout).Encode(t)
}
