package loader

import (
	"testing"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestReact has one row for each rule of which thread gets a signal, and of what
// comes of it (prepare_signal, complete_signal and get_signal of the kernel).
func TestReact(t *testing.T) {
	const (
		sigTERM = 15
		sigSTOP = 19
		dies    = "dies"
	)
	sleeps, runs := taker{state: 'S'}, taker{state: 'R'}
	blocks := func(t taker) taker { t.blocked = ^waitgraph.SignalSet(0); return t }
	awaits := func(t taker) taker { t.awaited = ^waitgraph.SignalSet(0); return t }
	traced := func(t taker) taker { t.traced = true; return t }
	gone := taker{state: 'Z', exiting: true}
	for _, test := range []struct {
		name    string
		threads []taker
		init    bool
		sig     int32
		what    uint8
		first   int
		want    string
	}{
		{"asleep, caught", []taker{sleeps}, false, sigCHLD, signalCaught, 0, "wakes"},
		{"asleep, by default ignored", []taker{sleeps}, false, sigCHLD, 0, 0, "nothing"},
		{"asleep, ignored", []taker{sleeps}, false, sigTERM, signalIgnored, 0, "nothing"},
		{"asleep, by default deadly", []taker{sleeps}, false, sigTERM, 0, 0, "wakes, dies"},
		{"running, caught", []taker{runs}, false, sigCHLD, signalCaught, 0, "is queued"},
		{"running, by default deadly", []taker{runs}, false, sigTERM, 0, 0, dies},
		{"blocked", []taker{blocks(sleeps)}, false, sigTERM, 0, 0, "is queued"},
		{"awaited, deadly by default", []taker{awaits(sleeps)}, false, sigTERM, 0, 0, "wakes"},
		{"awaited, ignored", []taker{awaits(sleeps)}, false, sigTERM, signalIgnored, 0, "wakes"},
		{"the leader runs and blocks it, a thread awaits it", []taker{blocks(runs), awaits(sleeps)}, false, sigCHLD, 0, 0, "wakes"},
		{"the leader runs and takes it, whatever a thread does", []taker{runs, sleeps}, false, sigCHLD, signalCaught, 0, "is queued"},
		{"sent to the thread that sleeps", []taker{runs, sleeps}, false, sigCHLD, signalCaught, 1, "wakes"},
		{"sent to some thread", []taker{runs, sleeps}, false, sigCHLD, signalCaught, -1, "wakes"},
		{"the leader is gone", []taker{gone, sleeps}, false, sigCHLD, signalCaught, 0, "wakes"},
		{"the leader is gone, deadly", []taker{gone, blocks(sleeps), sleeps}, false, sigTERM, 0, 0, "wakes, dies"},
		{"all are gone", []taker{gone}, false, sigTERM, 0, 0, "is queued"},
		{"in no state to be woken", []taker{{state: 'D'}}, false, sigCHLD, signalCaught, 0, "is queued"},
		{"stopped, to go on later", []taker{{state: 'T'}}, false, sigTERM, 0, 0, dies},
		{"stopped for its tracer", []taker{traced(taker{state: 't'})}, false, sigTERM, 0, 0, "is queued"},
		{"traced: its tracer decides", []taker{traced(sleeps)}, false, sigTERM, 0, 0, "wakes, is trapped"},
		{"traced: shown although ignored", []taker{traced(sleeps)}, false, sigCHLD, 0, 0, "wakes, is trapped"},
		{"traced: SIGKILL", []taker{traced(taker{state: 't'})}, false, sigKILL, 0, 0, dies},
		{"only another thread is traced", []taker{blocks(sleeps), traced(sleeps)}, false, sigTERM, 0, 0, "wakes, dies"},
		{"stops by default", []taker{sleeps}, false, sigSTOP, 0, 0, "wakes, stops"},
		{"an init drops what would end it", []taker{sleeps}, true, sigTERM, 0, 0, "nothing"},
		{"an init's handler", []taker{sleeps}, true, sigTERM, signalCaught, 0, "wakes"},
		{"an init, SIGKILL from outside", []taker{sleeps}, true, sigKILL, 0, 0, "wakes, dies"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s waitgraph.Signals
			p := receiver{threads: test.threads, init: test.init}
			p.react(&s, test.sig, test.what, test.first)
			got := ""
			for _, set := range []struct {
				set  waitgraph.SignalSet
				name string
			}{{s.Interruptible, "wakes"}, {s.Deadly, dies}, {s.Stopping, "stops"}, {s.Trapped, "is trapped"}} {
				switch {
				case !set.set.Has(test.sig):
				case got == "":
					got = set.name
				default:
					got += ", " + set.name
				}
			}
			switch {
			case got == "" && s.Accepted.Has(test.sig):
				got = "is queued"
			case got == "":
				got = "nothing"
			}
			if got != test.want {
				t.Errorf("the process %s, want %s", got, test.want)
			}
		})
	}
}
