package loader

import (
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestEveryTopologyIsMeasured: exactly those are measured to wake of whom the
// storm says so, and through what it says.
func TestEveryTopologyIsMeasured(t *testing.T) {
	nstest.Require(t)
	if nstest.InVM() {
		t.Skip("stages every storm there is, which takes minutes here: make accuracy with ACCURACY_KERNELS does it")
	}
	e := newExecutor(t)
	o := observe(t, e)
	for i := range storm.Topologies {
		topology := &storm.Topologies[i]
		if topology.Restless || topology.Late || topology.Uncharged { // others than the dying wake
			continue
		}
		t.Run(topology.Name, func(t *testing.T) {
			if err := topology.Supported(); err != nil {
				t.Skip(err)
			}
			s := stage(t, storm.Options{Topology: topology.Name, Processes: 6})
			v := take(t)
			dead := map[int]bool{}
			for _, p := range s.Targets() {
				dead[p.PID] = true
				must(t, e.Doom([]waitgraph.Process{v.process(t, p.PID)}))
			}
			for _, p := range s.Targets() {
				kill(t, p.PID)
			}
			m := measured{t, o, v}
			outcome := s.After(dead)
			eventually(t, "everybody's wake is counted", func() bool { return m.hasAll(outcome) })
			m.check(s, outcome, topology.Channel)
		})
	}
}

// measured compares an observation with a storm's own truth.
type measured struct {
	*testing.T
	o *Observer
	v *view
}

// channels are what each member was woken through, by pid.
func (m measured) channels() map[int][]waitgraph.Channel {
	obs, err := m.o.Collect()
	must(m, err)
	out := map[int][]waitgraph.Channel{}
	for pid, i := range m.v.pids {
		for _, w := range obs.Wakes {
			if w.Wakee == m.v.Processes[i].KernelIdentity() {
				out[pid] = append(out[pid], w.Channel)
			}
		}
	}
	return out
}

func (m measured) hasAll(want storm.Outcome) bool {
	got := m.channels()
	for _, p := range slices.Concat(want.Woken, want.Stirred, want.Killed) {
		if len(got[p.PID]) == 0 {
			return false
		}
	}
	return !slices.ContainsFunc(want.SomeOf, func(group storm.Share) bool {
		n := 0
		for _, p := range group.Members {
			n += min(len(got[p.PID]), 1)
		}
		return n < group.Wakes
	})
}

func (m measured) check(s *storm.Storm, want storm.Outcome, channel string) {
	m.Helper()
	if channel == waitgraph.ChannelFIFO.String() {
		channel = waitgraph.ChannelPipe.String() // a release does not tell them apart
	}
	expected := map[int]bool{}
	for _, group := range want.SomeOf {
		for _, p := range group.Members {
			expected[p.PID] = true
		}
	}
	for _, p := range slices.Concat(want.Woken, want.Stirred, want.Killed) {
		expected[p.PID] = true
	}
	named := len(expected) == 0
	got := m.channels()
	for _, p := range s.Processes() {
		for _, c := range got[p.PID] {
			named = named || c.String() == channel
			if !expected[p.PID] && p.Comm != storm.Target {
				m.Errorf("%+v is said to have woken through %v", p, c)
			}
			if c == waitgraph.ChannelOther && channel != c.String() {
				m.Errorf("%+v woke, and it is not said through what", p)
			}
		}
	}
	if !named {
		m.Errorf("nobody is said to have woken through %s: %v", channel, got)
	}
}
