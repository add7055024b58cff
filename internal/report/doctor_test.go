package report

import (
	"bytes"
	"strings"
	"testing"
)

func TestDoctorText(t *testing.T) {
	d := &Doctor{Kernel: "6.1.0", Engine: "loop", Works: true, Features: []Feature{
		{Name: "tripwire", Answer: Yes, Needed: true, Since: "5.10", Detail: "killed a process of its own"},
		{Name: "batch engine", Answer: No, Since: "6.13"},
		{Name: "SCHED_FIFO", Answer: No, Detail: "operation not permitted"},
		{Name: "cgroup.kill", Answer: Unknown, Since: "5.14", Detail: "no cgroup v2 \x1b hierarchy"},
	}}
	var out bytes.Buffer
	if err := WriteDoctor(&out, d, FormatText); err != nil {
		t.Fatal(err)
	}
	want := `bpfkill doctor: Linux 6.1.0
tripwire      yes               killed a process of its own
batch engine  no (Linux 6.13)
SCHED_FIFO    no                operation not permitted
cgroup.kill   could not tell    no cgroup v2 ? hierarchy
engine auto takes  loop
bpfkill can kill here
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	d.Works, d.Engine, d.Features[0].Answer = false, "", Unknown
	out.Reset()
	if err := WriteDoctor(&out, d, FormatText); err != nil || !strings.HasSuffix(out.String(), "none\nbpfkill cannot kill here: tripwire\n") {
		t.Errorf("%s, %v", out.String(), err)
	}
}

func TestDoctorJSON(t *testing.T) {
	var out bytes.Buffer
	d := &Doctor{Kernel: "6.1.0", Features: []Feature{{Name: "x", Answer: No, Since: "6.13"}}}
	if err := WriteDoctor(&out, d, FormatJSON); err != nil {
		t.Fatal(err)
	}
	want := `{
  "version": 1,
  "kernel": "6.1.0",
  "features": [
    {
      "name": "x",
      "answer": "no",
      "needed": false,
      "since": "6.13",
      "detail": ""
    }
  ],
  "engine": "",
  "works": false
}
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
