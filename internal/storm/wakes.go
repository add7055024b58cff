package storm

import "slices"

// Effect says what a wake does to the process that is woken.
type Effect uint8

const (
	// Runs: its blocking call returns, or a signal handler of its own is called.
	Runs Effect = iota
	// Stirs: the kernel wakes it, and it goes back to sleep without leaving the
	// kernel. Its marks do not show it; a tracer of wakes does.
	Stirs
	// Dies: a signal that it does not handle ends it. No user code runs.
	Dies
)

// Wake is one way in which deaths reach a process.
type Wake struct {
	// Deaths are pids; when the last of them dies the process wakes.
	Deaths []int
	Effect Effect
	// Group is not 0 where the kernel wakes, for each such wake, one more of the
	// living members whose wakes have the same group; which ones is its own affair.
	Group int
}

// wake is a Wake whose deaths are members.
type wake struct {
	deaths []int
	effect Effect
	group  int
}

// Outcome says what the deaths of a set of members do to the others.
type Outcome struct {
	Woken   []Proc  // run user code
	SomeOf  []Share // of each, so many run user code
	Stirred []Proc  // woken by the kernel, and run no user code
	Killed  []Proc  // ended by a signal that the deaths bring about
	// Indirect are those of the above that only the deaths of the killed reach.
	Indirect []Proc
}

// Share is a group of members of whom some wake: at least one, and not all.
type Share struct {
	Members []Proc
	Wakes   int
}

// After returns what happens when exactly the pids in dead die, in an order in
// which nobody wakes who is to die, and what those that die of it cause in turn.
func (s *Storm) After(dead map[int]bool) Outcome {
	gone := make([]bool, len(s.members))
	for i := range gone {
		gone[i] = dead[s.pid(i)]
	}
	first := slices.Clone(gone)
	killed := s.killedBy(gone)
	var out Outcome
	groups := map[int]*Share{}
	for i := range s.members {
		if killed[i] {
			out.Killed = append(out.Killed, s.proc(i))
		}
		if s.members[i].reached(gone) && !s.members[i].reached(first) && !first[i] {
			out.Indirect = append(out.Indirect, s.proc(i))
		}
		if gone[i] {
			continue
		}
		group, calls, runs, stirs := 0, 0, false, false
		for _, w := range s.members[i].wakes {
			switch {
			case !w.happens(gone) || w.effect == Dies:
			case w.effect == Stirs:
				stirs = true
			case w.group != 0:
				group = w.group
				calls++
			default:
				runs = true
			}
		}
		switch {
		case runs:
			out.Woken = append(out.Woken, s.proc(i))
		case group != 0:
			if groups[group] == nil {
				groups[group] = &Share{Wakes: calls}
			}
			groups[group].Members = append(groups[group].Members, s.proc(i))
		case stirs:
			out.Stirred = append(out.Stirred, s.proc(i))
		}
	}
	for _, g := range groups {
		if len(g.Members) <= g.Wakes {
			out.Woken = append(out.Woken, g.Members...)
		} else {
			out.SomeOf = append(out.SomeOf, *g)
		}
	}
	return out
}

// killedBy adds to gone those that die of the deaths in it, and returns them.
func (s *Storm) killedBy(gone []bool) []bool {
	killed := make([]bool, len(gone))
	for changed := true; changed; {
		changed = false
		for i, m := range s.members {
			dies := func(w wake) bool { return w.effect == Dies && w.happens(gone) }
			if !gone[i] && slices.ContainsFunc(m.wakes, dies) {
				gone[i], killed[i], changed = true, true, true
			}
		}
	}
	return killed
}

// happens reports whether the last of the deaths has taken place.
func (w *wake) happens(gone []bool) bool {
	return !slices.ContainsFunc(w.deaths, func(i int) bool { return !gone[i] })
}

// reached reports whether any of a member's wakes has taken place.
func (m *member) reached(gone []bool) bool {
	return slices.ContainsFunc(m.wakes, func(w wake) bool { return w.happens(gone) })
}

// WokenBy lists the members outside dead, a set of pids, that certainly run user
// code when exactly those die; After tells the rest.
func (s *Storm) WokenBy(dead map[int]bool) []Proc { return s.After(dead).Woken }

// Dependents lists the members that are no targets, but must die with them if
// nobody is to run user code: all that may wake, closed to a fixpoint. Those that
// the deaths kill anyway are among them.
func (s *Storm) Dependents() []Proc {
	gone := make([]bool, len(s.members))
	for i, m := range s.members {
		gone[i] = m.comm == Target
	}
	for changed := true; changed; {
		changed = false
		for i, m := range s.members {
			reaches := func(w wake) bool { return w.effect != Stirs && w.happens(gone) }
			if !gone[i] && slices.ContainsFunc(m.wakes, reaches) {
				gone[i], changed = true, true
			}
		}
	}
	return s.procs(func(i int) bool { return gone[i] && s.members[i].comm != Target })
}
