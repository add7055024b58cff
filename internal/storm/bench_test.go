package storm

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkStart stages 2,000 processes: the time until all are asleep, and
// the memory that the machine has less of.
func BenchmarkStart(b *testing.B) {
	var ready, stop time.Duration
	for b.Loop() {
		before, began := available(b), time.Now()
		s, err := Start(b.Context(), Options{Topology: "smtp", Processes: 941})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.WaitReady(b.Context()); err != nil {
			b.Fatal(err)
		}
		n := float64(len(s.members))
		b.ReportMetric(n, "processes")
		b.ReportMetric((before-available(b))/n, "kB/process")
		ready += time.Since(began)
		began = time.Now()
		if err := s.Stop(); err != nil {
			b.Fatal(err)
		}
		stop += time.Since(began)
	}
	b.ReportMetric(float64(ready.Milliseconds())/float64(b.N), "ms-until-ready")
	b.ReportMetric(float64(stop.Milliseconds())/float64(b.N), "ms-to-stop")
}

func available(b *testing.B) float64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
