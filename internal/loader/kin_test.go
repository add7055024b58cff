package loader

import (
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

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

// TestExitSignalOfUnheard: who was cloned to send nothing at its end sends SIGCHLD after
// all where its parent runs another program since.
func TestExitSignalOfUnheard(t *testing.T) {
	nstest.Require(t)
	for role, want := range map[string]int32{"unheard": 0, "unheard-exec": int32(syscall.SIGCHLD)} {
		p := start(t, role, nil)
		p.says(t)
		v := take(t)
		found := 0
		for i := range v.Kin {
			if v.Kin[i].Parent == v.pids[p.PID] {
				found++
				if got := v.Kin[i].ExitSignal; got != want {
					t.Errorf("%s: the exit signal is %d, want %d", role, got, want)
				}
			}
		}
		if found != 1 {
			t.Errorf("%s: %d children, want one", role, found)
		}
	}
}

// TestVforkSibling: who waits in vfork is not always the parent.
func TestVforkSibling(t *testing.T) {
	nstest.Require(t)
	p := start(t, "vfork", nil)
	p.says(t)
	var v *view
	eventually(t, "somebody waits in vfork", func() bool {
		v = take(t)
		return slices.ContainsFunc(v.Kin, func(k waitgraph.Kin) bool { return k.VforkCaller >= 0 })
	})
	caller, children := v.pids[p.PID], 0
	for i := range v.Kin {
		k := &v.Kin[i]
		if k.VforkCaller < 0 {
			continue
		}
		children++
		t.Cleanup(func() {
			p.in.Close() // it ends with that
			if _, err := unix.Wait4(int(v.Processes[i].PID), nil, 0, nil); err != nil {
				t.Errorf("wait for the sibling: %v", err)
			}
		})
		sources := waitgraph.New(v.Snapshot).Sources
		if k.VforkCaller != caller || k.Parent != v.pids[os.Getpid()] || !slices.ContainsFunc(sources, func(s waitgraph.Source) bool {
			return s.Channel == waitgraph.ChannelChild && slices.Equal(s.Holders, []int32{int32(i)}) && slices.Equal(s.Waiters, []int32{caller})
		}) {
			t.Errorf("%+v of %d, want %d to wait for it", k, v.Processes[i].PID, p.PID)
		}
	}
	if children != 1 {
		t.Errorf("%d processes in vfork, want one", children)
	}
}
