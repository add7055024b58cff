package loader

import (
	"slices"
	"syscall"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestNamespaceDiesWithItsInit: an init that asked for SIGKILL at its parent's death
// gets it, and takes its namespace along.
func TestNamespaceDiesWithItsInit(t *testing.T) {
	nstest.Require(t)
	p := startNested(t, "idle")
	p.says(t)
	v := take(t)
	init := v.process(t, p.PID)
	if init.ParentDeathSignal != int32(syscall.SIGKILL) {
		t.Fatalf("the parent-death signal of %v is %d, and the test is about SIGKILL", init, init.ParentDeathSignal)
	}
	at := v.pids[p.PID]
	inside := int32(-1)
	for i := range v.Kin {
		if v.Kin[i].Parent == at {
			inside = int32(i)
		}
	}
	ends := func(holder, waiter int32) bool {
		return slices.ContainsFunc(waitgraph.New(v.Snapshot).Sources, func(s waitgraph.Source) bool {
			return s.Deadly && s.Channel == waitgraph.ChannelParentDeath &&
				slices.Equal(s.Holders, []int32{holder}) && slices.Contains(s.Waiters, waiter)
		})
	}
	if parent := v.Kin[at].Parent; !ends(parent, at) {
		t.Errorf("%v is not said to die with its parent", init)
	}
	if inside < 0 || !ends(at, inside) {
		t.Errorf("process %d is not said to die with the init of its namespace", inside)
	}
}
