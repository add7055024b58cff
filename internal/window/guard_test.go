package window

import (
	"errors"
	"math"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestRelated: whom the guardian takes for a child of the confined.
func TestRelated(t *testing.T) {
	self := int32(os.Getpid())   // a session leader that lives, as far as this test goes
	const nobody = math.MaxInt32 // the other numbers are beyond those of a fresh pid namespace
	parent, group, session, anybody := affinity.Only(1), affinity.Only(2), affinity.Only(3), affinity.Only(4)
	r := &restorer{
		began:   1000,
		parents: map[int32]affinity.Set{70007: parent}, groups: map[int32]affinity.Set{70008: group},
		sessions: map[int32]affinity.Set{70009: session}, anybody: anybody,
	}
	for _, tt := range []struct {
		name string
		pid  int32
		stat stat
		want affinity.Set
		ok   bool
	}{
		{"recorded", 70007, stat{ppid: 2, start: 5}, parent, true},
		{"child", 20, stat{ppid: 70007, session: self, start: 1001}, parent, true},
		{"child's child, parent gone", 20, stat{ppid: 2, pgrp: 70008, session: self, start: 1001}, group, true},
		{"with a group of its own", 20, stat{ppid: 2, pgrp: 20, session: 70009, start: 1001}, session, true},
		{"daemon", 20, stat{ppid: 1, pgrp: nobody, session: nobody, start: 1001}, anybody, true},
		{"daemon below a subreaper", 20, stat{ppid: 2, pgrp: nobody, session: nobody, start: 1001}, anybody, true},
		{"somebody else's child", 20, stat{ppid: 2, pgrp: self, session: self, start: 1001}, affinity.Set{}, false},
		{"daemon of before", 20, stat{ppid: 1, pgrp: nobody, session: nobody, start: 999}, affinity.Set{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := r.related(tt.pid, &tt.stat)
			if ok != tt.ok || got != tt.want {
				t.Errorf("%v, %v; want %v, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

// TestWhoCannotBeLetOutIsSaid: who has died needs nothing, anything else is an error.
func TestWhoCannotBeLetOutIsSaid(t *testing.T) {
	dead := exec.Command("true")
	must(t, dead.Run())
	r := restorer{unsettled: map[int32]stat{}}
	if everywhere := (affinity.Set{1}); r.restore(int32(dead.Process.Pid), &everywhere) || r.failed != nil {
		t.Errorf("of who has died: %v", r.failed)
	}
	if r.restore(int32(os.Getpid()), &affinity.Set{}) || !errors.Is(r.failed, unix.EINVAL) {
		t.Errorf("of CPUs that nobody has: %v, want %v", r.failed, unix.EINVAL)
	}
}

// TestRefusedPidfds: only want of descriptors or memory passes.
func TestRefusedPidfds(t *testing.T) {
	for err, refused := range map[error]bool{nil: false, unix.EMFILE: false, unix.ENFILE: false, unix.ENOMEM: false, unix.EPERM: true, unix.ENOSYS: true} {
		if got := (&pidfdSet{err: err}).refused(); (got != nil) != refused || refused && !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	s := newPidfdSet(1)
	defer s.Close()
	gone, here := waitgraph.Process{KernelPID: 1}, waitgraph.Process{KernelPID: 2}
	dead := exec.Command("true")
	must(t, dead.Run())
	gone.PID, here.PID = int32(dead.Process.Pid), int32(os.Getpid())
	if !s.open(&gone) || !s.open(&here) || s.used != 1 || s.err != nil {
		t.Errorf("%d in use, %v; want the living one's", s.used, s.err)
	}
	if s.open(&waitgraph.Process{KernelPID: 3, Identity: waitgraph.Identity{PID: here.PID}}) || s.refused() != nil {
		t.Errorf("opened beyond the limit, or refused: %v", s.refused())
	}
}
