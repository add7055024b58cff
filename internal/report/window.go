package report

import "fmt"

// Window is how the window went, as the killer and the kernel measured it. Times
// are nanoseconds on the kernel's clock.
type Window struct {
	ArmNS     uint64 `json:"arm_ns"`     // from the first target confined to the opening
	DeliverNS uint64 `json:"deliver_ns"` // from the opening until the engine was done
	ReapNS    uint64 `json:"reap_ns"`    // until the corral opened
	OpenNS    uint64 `json:"open_ns"`    // until everybody had its CPUs back

	// TargetSwitches counts context switches to the kill set during delivery,
	// ReapSwitches from there until the corral opened.
	TargetSwitches uint64 `json:"target_switches"`
	ReapSwitches   uint64 `json:"reap_switches"`

	// bpfkill's own during delivery. Involuntary is a context switch where somebody
	// of higher priority took the CPU.
	KillerMinorFaults         int64 `json:"killer_minor_faults"`
	KillerMajorFaults         int64 `json:"killer_major_faults"`
	KillerVoluntarySwitches   int64 `json:"killer_voluntary_switches"`
	KillerInvoluntarySwitches int64 `json:"killer_involuntary_switches"`

	Corral Corral `json:"corral"`
	Reap   Reap   `json:"reap"`
}

// Reap says whose memory was freed before its process could run again and, dying,
// read it back from swap.
type Reap struct {
	Swapped int `json:"swapped"` // processes of the kill set with memory on swap
	Reaped  int `json:"reaped"`
	// LeftOut are those that must not be reaped early, or could not.
	LeftOut []Skipped `json:"left_out"`
}

// Corral is the one CPU at a time that the kill set was confined to during the window.
type Corral struct {
	CPU     int  `json:"cpu"`     // when it was opened
	Threads int  `json:"threads"` // confined; 0 where there was no corral
	Moves   int  `json:"moves"`   // to another CPU while memory was freed, and back
	Closed  bool `json:"closed"`  // nobody of the kill set was outside
	// LeftOut are those of the kill set that could not be confined. They were
	// killed all the same.
	LeftOut []Skipped `json:"left_out"`
}

// window says who of the kill set ran while it was being killed.
func (t *text) window() {
	w := &t.r.Result.Window
	how := "no corral"
	if c := &w.Corral; c.Threads > 0 {
		how = fmt.Sprintf("%s confined to CPU %d", count(c.Threads, "thread", "threads"), c.CPU)
	}
	t.row("ran inside the window", fmt.Sprint(w.TargetSwitches+w.ReapSwitches), "%s", how)
	if r := &w.Reap; r.Swapped > 0 {
		t.row("freed before they ran", fmt.Sprint(r.Reaped), "of %d with memory on swap", r.Swapped)
	}
	if t.verbose {
		t.row("window", "", "armed %s, delivered %s, reaped %s, opened %s; bpfkill itself: %s, %s",
			humanNS(w.ArmNS), humanNS(w.DeliverNS), humanNS(w.ReapNS), humanNS(w.OpenNS),
			count(w.KillerMinorFaults+w.KillerMajorFaults, "page fault", "page faults"),
			count(w.KillerVoluntarySwitches+w.KillerInvoluntarySwitches, "context switch", "context switches"))
	}
}

func (t *text) windowWarnings(w *Window) {
	c := &w.Corral
	for _, group := range t.reasons(c.LeftOut) {
		t.warnf("left out of the corral, and free to run during the window (%s): %s", group.why,
			capped(group.names, t.limit(maxPIDs), ", "))
	}
	if c.Threads > 0 && !c.Closed {
		t.warnf("the kill set started threads faster than they could be confined: some were free to run during the window")
	}
	for _, group := range t.reasons(w.Reap.LeftOut) {
		t.warnf("not freed before it ran, and maybe paged in to die (it %s): %s", group.why,
			capped(group.names, t.limit(maxPIDs), ", "))
	}
}

// reason is why some processes were left out of something.
type reason struct {
	why   string
	names []string
}

// reasons groups who was left out by why, in the order in which the reasons come.
func (t *text) reasons(skipped []Skipped) []reason {
	var groups []reason
	at := map[string]int{}
	for _, s := range skipped {
		i, ok := at[s.Why]
		if !ok {
			i = len(groups)
			at[s.Why] = i
			groups = append(groups, reason{why: printable(s.Why)})
		}
		groups[i].names = append(groups[i].names, t.name(s.PID))
	}
	return groups
}
