package window

import (
	"math"
	"os"
	"testing"

	"github.com/bpfkill/bpfkill/internal/affinity"
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
