package main

import (
	"bytes"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/vmtests/incident"
)

const someResults = `{"strategy":"bpfkill","kernel":"6.12.1","arch":"amd64","cpus":1,"date":"2026-11-25","run":1,"memory_bytes":500000000,"page_bytes":4096,"servers":3,"routers":3,"router_bytes":8388608,"swap_in_pages":0,"heartbeat_gap_ms":20}
{"strategy":"servers","kernel":"6.12.1","arch":"amd64","cpus":1,"date":"2026-11-25","run":1,"memory_bytes":500000000,"page_bytes":4096,"servers":3,"routers":3,"router_bytes":8388608,"swap_in_pages":6150,"heartbeat_gap_ms":900,"samples":[{"ms":0,"pages":0},{"ms":500,"pages":6150}]}
{"strategy":"servers","kernel":"6.12.1","arch":"amd64","cpus":1,"date":"2026-11-26","run":2,"memory_bytes":500000000,"page_bytes":4096,"servers":3,"routers":3,"router_bytes":8388608,"swap_in_pages":6144,"heartbeat_gap_ms":700}
{"strategy":"servers","kernel":"6.1.9","arch":"amd64","clock":"instructions","cpus":1,"date":"2026-11-26","run":1,"memory_bytes":500000000,"page_bytes":4096,"servers":3,"routers":3,"router_bytes":8388608,"swap_in_pages":6144,"heartbeat_gap_ms":700}
`

func TestPlot(t *testing.T) {
	dir := t.TempDir()
	results, document := filepath.Join(dir, "r.jsonl"), filepath.Join(dir, "d.md")
	for path, text := range map[string]string{
		results: someResults, document: "before\n" + tablesBegin + "old\n" + tablesEnd + "after\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"plot", "--results", results, "--document", document, "--picture", filepath.Join(dir, "p"), "--kernel", "6.12"}
	if err := run(args, nil, nil); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"before\n", "after\n", "Linux 6.12.1, amd64, 1 processor, the emulating machine's clock", "2026-11-25 to 2026-11-26",
		"| `bpfkill` | 1 | 0 |", "| `kill -9, servers only` | 2 | 6147 (6144–6150) |",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the document lacks %q:\n%s", want, text)
		}
	}
	older, newer := bytes.Index(text, []byte("Linux 6.1.9, amd64, 1 processor, a nanosecond for each instruction")), bytes.Index(text, []byte("Linux 6.12.1"))
	if older < 0 || older > newer {
		t.Errorf("the older kernel does not come first:\n%s", text)
	}
	if bytes.Contains(text, []byte("old")) {
		t.Error("the old tables are still there")
	}
	svg, err := os.ReadFile(filepath.Join(dir, "p.svg"))
	if err != nil || !strings.Contains(string(svg), "bpfkill: 0 B") {
		t.Errorf("the SVG does not name bpfkill's line (%v)", err)
	}
	f, err := os.Open(filepath.Join(dir, "p.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if image, err := png.Decode(f); err != nil || image.Bounds().Dx() < 1200 {
		t.Errorf("the PNG is no picture for a slide: %v", err)
	}
	if err := run([]string{"plot", "--results", results, "--picture", filepath.Join(dir, "p"), "--kernel", "5."}, nil, nil); err == nil {
		t.Error("a kernel without results was drawn")
	}
}

// Each strategy has a line of its own.
func TestPens(t *testing.T) {
	for _, s := range incident.Strategies {
		if _, ok := pens[s.Name]; !ok {
			t.Errorf("no pen for %s", s.Name)
		}
	}
}
