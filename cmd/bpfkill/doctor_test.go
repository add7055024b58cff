package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
)

// TestDoctor: where the other tests kill, the doctor says that bpfkill can. Those
// whom it tries things on are gone when it is done; nobody else is touched.
func TestDoctor(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 4)
	o := runBpfkill(t, "doctor", "--output", "json")
	var d report.Doctor
	if err := json.Unmarshal([]byte(o.stdout), &d); err != nil {
		t.Fatalf("exit status %d, stderr %q: %v in %s", o.status, o.stderr, err, o.stdout)
	}
	if o.status != exitGone || o.stderr != "" {
		t.Errorf("exit status %d, stderr %q", o.status, o.stderr)
	}
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
		if f.Name == "batch engine" && (f.Answer == report.Yes) != batch {
			t.Errorf("%+v", f)
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
