package loader

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/storm"
)

// BenchmarkSnapshot reads 10,000 processes with 100,000 descriptors, the ends of
// pipes, each of which two descriptors hold.
func BenchmarkSnapshot(b *testing.B) {
	s := snapshotter(b)
	st, err := storm.Start(b.Context(), storm.Options{Topology: "sleepers", Processes: 10_000, Descriptors: 10})
	must(b, err)
	defer st.Stop()
	must(b, st.WaitReady(b.Context()))
	began := processCPU(b)
	for b.Loop() {
		snap, err := s.Take()
		must(b, err)
		b.ReportMetric(float64(len(snap.Processes)), "processes")
		b.ReportMetric(float64(len(snap.Descriptors)), "descriptors")
	}
	b.ReportMetric((processCPU(b)-began)/float64(b.N), "cpu-ms/op")
}

// processCPU is the processor time of this process in milliseconds.
func processCPU(b *testing.B) float64 {
	var r unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &r))
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e6
}
