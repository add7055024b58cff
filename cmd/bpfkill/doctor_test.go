package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/cgroup2"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// askDoctor returns what the doctor says, and its answers by feature.
func askDoctor(t *testing.T) (d report.Doctor, answers map[string]report.Answer) {
	t.Helper()
	o := runBpfkill(t, "doctor", "--output", "json")
	if err := json.Unmarshal([]byte(o.stdout), &d); err != nil {
		t.Fatalf("exit status %d, stderr %q: %v in %s", o.status, o.stderr, err, o.stdout)
	}
	if o.status != exitGone || o.stderr != "" {
		t.Errorf("exit status %d, stderr %q", o.status, o.stderr)
	}
	answers = map[string]report.Answer{}
	for _, f := range d.Features {
		answers[f.Name] = f.Answer
	}
	return d, answers
}

// TestDoctor: where the other tests kill, the doctor says that bpfkill can. Those
// whom it tries things on are gone when it is done; nobody else is touched.
func TestDoctor(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 4)
	d, answers := askDoctor(t)
	batch := loader.HaveBatch() == nil
	engine := engineLoop
	if batch {
		engine = engineBatch
	}
	if !d.Works || d.Engine != engine || d.Version != 1 {
		t.Errorf("works: %v, engine %q, want %q", d.Works, d.Engine, engine)
	}
	for _, f := range d.Features {
		if f.Needed && f.Answer != report.Yes {
			t.Errorf("%+v", f)
		}
	}
	// What this kernel has by its version, whatever it says when it is asked.
	for name, since := range map[string][2]int{
		"iterators": {5, 8}, "wait-queue walk": {5, 8}, "tripwire": {5, 10}, "loop engine": {5, 10}, "corral": {5, 10},
		"wakes measured": {5, 10}, "process_mrelease": {5, 15}, "pidfd_getfd": {5, 6}, "batch engine": {6, 13}, "cgroup.kill": {5, 14},
		"SCHED_FIFO": {}, "locked memory": {},
	} {
		want := report.No
		if nstest.KernelAtLeast(t, since[0], since[1]) {
			want = report.Yes
		}
		got, there := answers[name]
		if name == "cgroup.kill" && got == report.Unknown {
			continue // no cgroup below the root to look at
		}
		if !there || got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name, bit := range map[string]int{
		"CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_SYSLOG": unix.CAP_SYSLOG, "CAP_KILL": unix.CAP_KILL,
		"CAP_SYS_NICE": unix.CAP_SYS_NICE, "CAP_IPC_LOCK": unix.CAP_IPC_LOCK, "CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE,
	} {
		if held := effective(t)>>bit&1 != 0; (answers[name] == report.Yes) != held {
			t.Errorf("%s: %q, and it is held: %v", name, answers[name], held)
		}
	}
	unharmed(t, s)
	comms, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range comms {
		if b, err := os.ReadFile(c); err == nil && strings.HasPrefix(string(b), patientName) {
			t.Errorf("%s is still there", c)
		}
	}
}

// effective is the set of capabilities that count, as /proc has it.
func effective(t *testing.T) (set uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "CapEff:")
	if _, err := fmt.Sscanf(after, "%x", &set); err != nil {
		t.Fatal(err)
	}
	return set
}

func TestDoctorWithoutPrivileges(t *testing.T) {
	nstest.Require(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "doctor")
	unprivileged(t, cmd)
	o := runTool(t, cmd)
	if o.status != exitFatal || o.stderr != "" {
		t.Errorf("exit status %d, stderr %q", o.status, o.stderr)
	}
	for _, want := range []string{"CAP_BPF", "cannot kill here: CAP_BPF, CAP_PERFMON, CAP_SYSLOG", "not tried: see above"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%q is not in\n%s", want, o.stdout)
		}
	}
}

// TestDoctorIsRight: what the doctor says of each engine, of the corral, the early reap and
// the measurement is what kills come to. Of the tripwire, which the doctor has killed somebody,
// see the tests of internal/loader.
func TestDoctorIsRight(t *testing.T) {
	nstest.Require(t)
	mount, err := cgroup2.Mount()
	if err != nil {
		t.Fatal(err)
	}
	group, err := os.MkdirTemp(mount, "bpfkill-test-") // and so there is one for the doctor to look at
	if err != nil {
		t.Skipf("this machine lets nobody make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	d, answers := askDoctor(t)
	t.Run("auto", func(t *testing.T) {
		stage(t, "sleepers", 4)
		if o := runBpfkill(t, "--target", storm.Target, "--timeout", "2m", "--output", "json"); o.status != exitGone || o.report.Engine != d.Engine {
			t.Errorf("the doctor says that auto takes %q; a kill took %q, exit status %d", d.Engine, o.report.Engine, o.status)
		}
	})
	agrees := func(t *testing.T, feature string, works bool) {
		t.Helper()
		if (answers[feature] == report.Yes) != works {
			t.Errorf("the doctor says %q of %s; in a kill it worked: %v", answers[feature], feature, works)
		}
	}
	swappedOut := func(t *testing.T, topology string) {
		t.Helper()
		nstest.SwapSpace(t)
		if _, err := stageWith(t, storm.Options{Topology: topology, Processes: 4, MemBytes: 1 << 20}).SwapOut(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("early reap", func(t *testing.T) {
		swappedOut(t, "sleepers")
		o := runBpfkill(t, "--target", storm.Target, "--timeout", "2m", "--output", "json")
		if o.status != exitGone || o.report.Result.Window.Reap.Swapped != 4 {
			t.Fatalf("exit status %d, %+v", o.status, o.report.Result)
		}
		w := o.report.Result.Window
		agrees(t, "corral", w.Corral.Threads > 0)
		agrees(t, "process_mrelease", w.Reap.Reaped == 4)
	})
	t.Run("measurement", func(t *testing.T) {
		swappedOut(t, "herd")
		o := runBpfkill(t, "--target", storm.Target, "--dependents", "none", "--timeout", "2m", "--output", "json")
		if o.status != exitGone {
			t.Fatalf("exit status %d, %+v", o.status, o.report.Result)
		}
		wakes, swapIns := 0, 0
		for _, w := range o.report.Result.Wakes {
			if w.Channel == "pipe" {
				wakes++
				if w.SwapIns != nil && *w.SwapIns > 0 {
					swapIns++
				}
			}
		}
		agrees(t, "wakes measured", wakes == 4)
		agrees(t, "swap-ins of the woken", swapIns == 4)
	})
	for engine, feature := range map[string]string{engineBatch: "batch engine", engineLoop: "loop engine", engineCgroup: "cgroup.kill"} {
		t.Run(engine, func(t *testing.T) {
			s := stage(t, "sleepers", 4)
			for _, p := range s.Processes() {
				if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, p.PID), 0); err != nil {
					t.Fatal(err)
				}
			}
			o := runBpfkill(t, "--cgroup", "/"+filepath.Base(group), "--engine", engine, "--timeout", "2m", "--output", "json")
			want := report.No
			if o.status == exitGone && o.report.Result.Gone == len(s.Processes()) {
				want = report.Yes
			}
			if answers[feature] != want {
				t.Errorf("the doctor says %q; a kill: exit status %d, stderr %q", answers[feature], o.status, o.stderr)
			}
			if want == report.No {
				unharmed(t, s)
			}
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}
