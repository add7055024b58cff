package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
)

// results take the samples as they come.
type results interface {
	add(Sample) error
	end() error
}

// Show writes the results of earlier runs, as --output json gave them: each file
// may be a part of the whole.
func Show(files []string, w io.Writer) error {
	t := &table{w: w}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		d := json.NewDecoder(f)
		for {
			var s Sample
			if err := d.Decode(&s); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return fmt.Errorf("read %s: %w", file, err)
			}
			t.samples = append(t.samples, s)
		}
	}
	t.print()
	return t.bars()
}

func writer(o *Options, w io.Writer) results {
	switch o.Output {
	case "json":
		return &jsonLines{json.NewEncoder(w)}
	case "go":
		return &goLines{w: w}
	}
	return &table{w: w}
}

type jsonLines struct{ *json.Encoder }

func (j *jsonLines) add(s Sample) error { return j.Encode(s) }
func (j *jsonLines) end() error         { return nil }

// goLines is the Go benchmark format, a line for each run: benchstat takes them
// together.
type goLines struct {
	w      io.Writer
	headed bool
}

func (g *goLines) add(s Sample) error {
	if !g.headed {
		g.headed = true
		fmt.Fprintf(g.w, "goos: %s\ngoarch: %s\npkg: github.com/bpfkill/bpfkill/internal/bench\n", runtime.GOOS, runtime.GOARCH)
		fmt.Fprintf(g.w, "cpu: %s\n", cpuModel())
	}
	var b strings.Builder
	name := strings.NewReplacer(" ", "_", "/", "").Replace(s.Strategy)
	fmt.Fprintf(&b, "Benchmark%s/strategy=%s/processes=%d \t1", strings.ToUpper(s.Part[:1])+s.Part[1:], name, s.Processes)
	for _, m := range metrics {
		if v := m.of(&s); v != 0 || m.zero && s.WindowNS != 0 {
			fmt.Fprintf(&b, "\t%d %s", v, m.unit)
		}
	}
	_, err := fmt.Fprintln(g.w, b.String())
	return err
}

func (g *goLines) end() error { return nil }

// metrics are the figures of a sample in the Go benchmark format.
var metrics = []struct {
	unit string
	zero bool // a zero was measured
	of   func(*Sample) uint64
}{
	{"window-ns", false, windowNS},
	{"targets-ran", true, ran},
	{"targets-woken", true, func(s *Sample) uint64 { return uint64(s.Woken) }},
	{"gone-ns", false, goneNS},
	{"whole-ns", false, wholeNS},
	{"returned-ns", false, func(s *Sample) uint64 { return s.ReturnedNS }},
	{"free-ns", false, freeNS},
	{"rss-bytes", false, maxRSS},
}

func windowNS(s *Sample) uint64 { return s.WindowNS }
func ran(s *Sample) uint64      { return uint64(s.Ran) }
func goneNS(s *Sample) uint64   { return s.GoneNS }
func wholeNS(s *Sample) uint64  { return s.WholeNS }
func freeNS(s *Sample) uint64   { return s.FreeNS }

// freeAfterNS is from the first signal on.
func freeAfterNS(s *Sample) uint64 { return s.FreeNS - (s.WholeNS - s.GoneNS) }

func maxRSS(s *Sample) uint64 { return uint64(s.MaxRSSBytes) }

// spread is what several runs gave.
type spread struct{ median, min, max float64 }

func spreadOf(samples []Sample, of func(*Sample) uint64) spread {
	if len(samples) == 0 {
		return spread{}
	}
	v := make([]uint64, len(samples))
	for i := range samples {
		v[i] = of(&samples[i])
	}
	slices.Sort(v)
	middle := len(v) / 2
	median := float64(v[middle])
	if len(v)%2 == 0 {
		median = (median + float64(v[middle-1])) / 2
	}
	return spread{median, float64(v[0]), float64(v[len(v)-1])}
}
