package waitgraph

import "slices"

// effects are what the signals of one event do to whom.
type effects struct {
	woken []int32
	ended []int32
	// moved are those that stop or go on, of which their parents are told, and
	// trapped those that stop for their tracers.
	moved, trapped []int32
}

// begin returns the scratch, empty: one event is looked at at a time.
func (e *exits) begin() *effects {
	f := &e.effects
	f.woken, f.ended, f.moved, f.trapped = f.woken[:0], f.ended[:0], f.moved[:0], f.trapped[:0]
	return f
}

// signal adds what a signal does to p, who reacts to it in that way, and to those
// who read its signals.
func (e *exits) signal(f *effects, p, sig int32, reaction *Signals) {
	proc := &e.processes[p]
	switch {
	case sig <= 0 || !e.alive[p]:
		return
	case sig == sigCONT && proc.Stopped:
		// Whatever it does with the signal otherwise (prepare_signal).
		f.woken, f.moved = append(f.woken, p), append(f.moved, p)
	case reaction.Deadly.Has(sig) && (!proc.Stopped || sig == sigKILL):
		f.ended = append(f.ended, p)
		return
	case reaction.Interruptible.Has(sig):
		f.woken = append(f.woken, p)
	}
	if !reaction.Accepted.Has(sig) {
		return
	}
	if q := e.kin[p].SignalQueue; q >= 0 {
		for _, s := range e.sleepersOf(q) {
			f.woken = append(f.woken, s.process)
		}
	}
	switch {
	case proc.Stopped:
	case reaction.Stopping.Has(sig):
		f.moved = append(f.moved, p)
	case reaction.Trapped.Has(sig):
		f.trapped = append(f.trapped, p)
	}
}

// emit adds the exits of holders as what brings the effects about.
func (e *exits) emit(c Channel, holders []int32, f *effects) {
	e.source(c, holders, f.woken)
	e.deadly(c, holders, f.ended)
	for _, p := range f.trapped {
		if tracer := e.kin[p].Tracer; tracer >= 0 {
			e.relayed(holders, e.notice(tracer, p))
		}
	}
	for _, p := range f.moved {
		e.move(p, holders)
	}
}

// move says who is told that p stops or goes on, once holders have exited: its
// parent, or who adopted it.
func (e *exits) move(p int32, holders []int32) {
	parent := e.kin[p].Parent
	if parent < 0 {
		return
	}
	if !slices.Contains(holders, parent) {
		e.relayed(holders, e.notice(parent, p))
		return
	}
	// The parent last: its reaper is who adopts.
	holders = slices.DeleteFunc(slices.Clone(holders), func(h int32) bool { return h == parent })
	e.adopters(append(holders, parent), func(holders []int32, reaper int32) {
		e.relayed(holders, e.notice(reaper, p))
	})
}
