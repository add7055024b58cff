package loader

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestStopwatch: who is signalled is timed from the signal to the end, who is not
// stays without a time, and a reset begins anew.
func TestStopwatch(t *testing.T) {
	nstest.Require(t)
	s, err := storm.Start(t.Context(), storm.Options{Topology: "sleepers", Processes: 3})
	must(t, err)
	defer s.Stop()
	must(t, s.WaitReady(t.Context()))
	snap := take(t)
	var procs []waitgraph.KernelIdentity
	for _, member := range s.Processes() {
		for _, p := range snap.Processes {
			if int(p.PID) == member.PID {
				procs = append(procs, p.KernelIdentity())
			}
		}
	}
	w, err := NewStopwatch(len(procs))
	must(t, err)
	defer w.Close()

	must(t, w.Reset(procs))
	must(t, unix.Kill(s.Processes()[0].PID, unix.SIGKILL))
	var got []Timing
	eventually(t, "the killed is gone", func() bool {
		got, err = w.Timings()
		must(t, err)
		return got[0].GoneNS != 0
	})
	if f := got[0]; f.KernelIdentity != procs[0] || f.SignalledNS == 0 || f.RanNS < f.SignalledNS || f.GoneNS < f.RanNS {
		t.Errorf("the killed process's times are out of order: %+v", f)
	}
	for i, living := range got[1:] {
		if living != (Timing{KernelIdentity: procs[i+1]}) {
			t.Errorf("a process that nobody signalled has times: %+v", living)
		}
	}
	must(t, w.Reset(procs[1:]))
	got, err = w.Timings()
	must(t, err)
	if len(got) != 2 || got[0] != (Timing{KernelIdentity: procs[1]}) {
		t.Errorf("after a reset: %+v", got)
	}
}
