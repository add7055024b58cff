package plan

import (
	"fmt"
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// sleepersOnOneInstance is a pipe whose only writer is process 0, and three
// readers that share an epoll instance, in the order of their turns 2, 1, 3.
func sleepersOnOneInstance(passedOn bool) *waitgraph.Graph {
	b := newPipes(4)
	b.add(0, []int32{0}, []int32{2, 1, 3})
	s := b.build()
	s.Sleepers = nil
	for _, p := range []int32{2, 1, 3} {
		s.Sleepers = append(s.Sleepers, waitgraph.Sleeper{Process: p, Via: waitgraph.ViaEpoll, File: -1, Line: 1, PassedOn: passedOn})
	}
	s.Lines = [][]int32{{2, 1, 3}}
	return waitgraph.New(s)
}

// say writes bystanders as their numbers, those that are indirect in brackets.
func say(p *Plan) string {
	var out []string
	for _, b := range p.Bystanders {
		if b.Indirect {
			out = append(out, fmt.Sprintf("(%d)", b.Waiter))
		} else {
			out = append(out, fmt.Sprint(b.Waiter))
		}
	}
	return fmt.Sprint(out)
}

func TestThoseWhoTakeTurns(t *testing.T) {
	for _, test := range []struct {
		name     string
		passedOn bool
		targets  []int32
		want     string
	}{
		{"the first wakes", false, []int32{0}, "[2]"},
		{"the first dies, the second wakes", false, []int32{0, 2}, "[1]"},
		{"each wakes the next", true, []int32{0}, "[(1) 2 (3)]"},
		{"the first dies, the second passes it on", true, []int32{0, 2}, "[1 (3)]"},
	} {
		p := Make(sleepersOnOneInstance(test.passedOn), test.targets, Options{Dependents: DependentsNone})
		if got := say(p); got != test.want {
			t.Errorf("%s: bystanders %s, want %s", test.name, got, test.want)
		}
	}
	// For the order all of them count: whoever is first may change.
	p := Make(sleepersOnOneInstance(false), []int32{0, 1, 2, 3}, Options{})
	if last := p.Order[len(p.Order)-1].Process; last != 0 {
		t.Errorf("signalled last is %d, want the holder", last)
	}
}

// TestWhatTheDyingTakeAlong: process 1 gets a deadly signal when 0 dies, and
// holds the pipe that 2 reads, together with 3 or alone.
func TestWhatTheDyingTakeAlong(t *testing.T) {
	for _, test := range []struct {
		name    string
		holders []int32
		targets []int32
		options Options
		order   []int32
		want    string
	}{
		{"alone", []int32{1}, []int32{0}, Options{Dependents: DependentsNone}, []int32{0}, "[1 (2)]"},
		{"another holder lives", []int32{1, 3}, []int32{0}, Options{Dependents: DependentsNone}, []int32{0}, "[1]"},
		{"another holder is killed", []int32{1, 3}, []int32{0, 3}, Options{Dependents: DependentsNone}, []int32{0, 3}, "[1 (2)]"},
		{"it joins the kill set", []int32{1}, []int32{0}, Options{Dependents: DependentsAll}, []int32{2, 1, 0}, "[]"},
	} {
		b := newPipes(4)
		b.add(0, test.holders, []int32{2})
		s := b.build()
		for range s.Processes {
			s.Kin = append(s.Kin, waitgraph.Kin{Parent: -1, Tracer: -1, VforkCaller: -1, ExitQueue: -1, SignalQueue: -1})
		}
		s.Kin[1].Parent = 0
		s.Processes[1].ParentDeathSignal = 15
		s.Processes[1].Deadly = waitgraph.SignalSet(0).With(15)
		p := Make(waitgraph.New(s), test.targets, test.options)
		if got := say(p); got != test.want {
			t.Errorf("%s: bystanders %s, want %s", test.name, got, test.want)
		}
		for _, b := range p.Bystanders {
			if b.Dies != (b.Waiter == 1) {
				t.Errorf("%s: %+v, and process 1 dies", test.name, b)
			}
		}
		var order []int32
		for _, m := range p.Order {
			order = append(order, m.Process)
		}
		if !slices.Equal(order, test.order) {
			t.Errorf("%s: order %v, want %v", test.name, order, test.order)
		}
	}
}

// TestWhoIsToldBySurvivors: process 1 goes on when 0 dies, and its tracer 2 is told
// of that by 1 itself, later.
func TestWhoIsToldBySurvivors(t *testing.T) {
	s := newPipes(3).build()
	for range s.Processes {
		s.Kin = append(s.Kin, waitgraph.Kin{Parent: -1, Tracer: -1, VforkCaller: -1, ExitQueue: -1, SignalQueue: -1})
	}
	const term = 15
	s.Kin[1].Parent, s.Kin[1].Tracer = 0, 2
	s.Processes[1].ParentDeathSignal = term
	s.Processes[1].Signals = waitgraph.Signals{
		Accepted: waitgraph.SignalSet(0).With(term), Interruptible: waitgraph.SignalSet(0).With(term),
		Trapped: waitgraph.SignalSet(0).With(term),
	}
	s.ChildWaits = []waitgraph.ChildWait{{Process: 2, Child: 1}}
	p := Make(waitgraph.New(s), []int32{0}, Options{Dependents: DependentsNone})
	if got, want := say(p), "[1 (2)]"; got != want {
		t.Errorf("bystanders %s, want %s", got, want)
	}
}
