package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Limits that keep the text on a screen, whatever the kill set.
const (
	maxNames = 5  // names or runs in one row
	maxPIDs  = 10 // processes listed for one reason
)

// WriteText writes r for people. Verbose adds a row for each process of the
// kill set and lists what is otherwise counted.
func WriteText(w io.Writer, r *Report, verbose bool) error {
	t := text{r: r, plan: &r.Plan, verbose: verbose}
	if r.Result == nil {
		t.planned()
	} else {
		t.done()
	}
	t.flushRows()
	if r.Result != nil {
		t.survivors()
		t.skipped()
	}
	t.warnings()
	if verbose {
		t.processes()
	}
	_, err := w.Write(t.out.Bytes())
	return err
}

type text struct {
	r       *Report
	plan    *Plan
	verbose bool
	out     bytes.Buffer
	rows    [][3]string
}

func (t *text) linef(format string, args ...any) { fmt.Fprintf(&t.out, format+"\n", args...) }

// row adds a line of the table: what, how many, and in words.
func (t *text) row(label, value, format string, args ...any) {
	t.rows = append(t.rows, [3]string{label, value, fmt.Sprintf(format, args...)})
}

func (t *text) flushRows() {
	labels, values := 26, 7
	for _, r := range t.rows {
		labels = max(labels, utf8.RuneCountInString(r[0]))
		values = max(values, utf8.RuneCountInString(r[1]))
	}
	for _, r := range t.rows {
		line := fmt.Sprintf("%-*s  %-*s  %s", labels, r[0], values, r[1], r[2])
		t.linef("%s", strings.TrimRight(line, " "))
	}
	t.rows = nil
}

func (t *text) limit(n int) int {
	if t.verbose {
		return int(^uint(0) >> 1)
	}
	return n
}

// name says a process as the user knows it.
func (t *text) name(pid int32) string {
	if pid == 0 {
		return "a process outside this pid namespace"
	}
	comm, ok := t.plan.names[pid]
	if !ok {
		comm = "?"
	}
	return fmt.Sprintf("%s[%d]", printable(comm), pid)
}

// engine says how and where, for the headline.
func (t *text) engine() string {
	return fmt.Sprintf("%s engine, Linux %s", t.r.Engine, t.r.Kernel)
}

// planned is the table of a dry run. Everything in it is a prediction.
func (t *text) planned() {
	p := t.plan
	if len(p.Processes) == 0 {
		t.linef("bpfkill: would kill nobody (%s)", t.engine())
		return
	}
	t.linef("bpfkill: would kill %s (%s); nobody was signalled", t.killSet(nil), t.engine())
	var rss, swap uint64
	dependents := 0
	for i := range p.Processes {
		rss += p.Processes[i].RSSBytes
		swap += p.Processes[i].SwapBytes
		if p.Processes[i].Role == "dependent" {
			dependents++
		}
	}
	t.row("kill set", fmt.Sprint(len(p.Processes)), "%s, %s; %s resident, %s swapped out",
		count(len(p.Processes)-dependents, "target", "targets"), count(dependents, "dependent", "dependents"),
		humanBytes(rss), humanBytes(swap))
	t.row("order", "", "%s", capped(runs(p.Processes), t.limit(maxNames), ", then "))
	bystanders, who := t.plannedBystanders()
	t.row("bystanders (predicted)", fmt.Sprint(bystanders), "%s", who)
	t.row("wakes (predicted)", fmt.Sprint(p.Predicted.Wakes), "plain kill would %s", t.naive("wake", "bring"))
}

// naive says what killing the targets alone would do, in the mood asked for.
func (t *text) naive(wake, bring string) string {
	n := t.plan.Predicted
	return fmt.Sprintf("%s %s and %s back up to %s (predicted)", wake,
		count(n.WakesIfKilledNaively, "process", "processes"), bring, humanBytes(n.SwapInBytesIfKilledNaively))
}

// done is the table of a kill. Everything in it was measured, but for what is
// called predicted.
func (t *text) done() {
	r := t.r.Result
	t.headline()
	t.row("woken before their signal", fmt.Sprint(r.EarlyWakes), "user-mode returns after the window opened   %d", r.UserReturns)
	t.window()
	t.row("bystanders", fmt.Sprint(r.BystanderWakes), "%s", t.wokenBystanders())
	t.bystandersCost()
	if n, who := t.sleptOn(); n > 0 {
		t.row("expected to wake, did not", fmt.Sprint(n), "%s", who)
	}
	if r.Tripped > 0 {
		t.row("caught by the tripwire", fmt.Sprint(r.Tripped), "woken, and dead before they reached user mode")
	}
	if r.Inherited > 0 {
		t.row("forked meanwhile", fmt.Sprint(r.Inherited), "children of the dying, which were to die, too")
	}
	swapIns := "0"
	if r.SwapInPages > 0 {
		swapIns = count(r.SwapInPages, "page", "pages")
	}
	t.row("swap-ins", swapIns, "plain kill would have %s", t.naive("woken", "brought"))
	if r.MajorFaults > 0 {
		t.row("major faults", fmt.Sprint(r.MajorFaults), "")
	}
	if r.Gone > 0 {
		t.row("gone after", humanNS(r.ExitNS.Max), "memory freed %s", humanBytes(r.FreedBytes))
	}
}

func (t *text) headline() {
	r := t.r.Result
	not := make(map[int32]bool, len(r.Survivors)+len(r.Skipped))
	for _, s := range r.Survivors {
		not[s.PID] = true
	}
	for _, s := range r.Skipped {
		not[s.PID] = true
	}
	window := "in one window of " + humanNS(r.WindowNS)
	switch {
	case r.WindowNS == 0: // the first signal was the last
		window = "at once"
	case r.Rounds > 1:
		window = fmt.Sprintf("in %s, %d rounds", humanNS(r.WindowNS), r.Rounds)
	}
	line := fmt.Sprintf("bpfkill: %s killed %s", t.killSet(not), window)
	if len(not) >= len(t.plan.Processes) && r.Gone == 0 {
		line = "bpfkill: nobody was killed"
	}
	if n := len(r.Survivors); n > 0 {
		line += fmt.Sprintf(", %d SURVIVED", n)
	}
	if n := len(r.Skipped); n > 0 {
		line += fmt.Sprintf(", %d skipped", n)
	}
	t.linef("%s (%s)", line, t.engine())
}

func (t *text) survivors() {
	if len(t.r.Result.Survivors) == 0 {
		return
	}
	t.linef("still alive:")
	for _, s := range t.r.Result.Survivors {
		t.linef("  %s[%d]  %s", printable(s.Comm), s.PID, stateLabel(s.State))
	}
}

func (t *text) skipped() {
	for _, group := range t.reasons(t.r.Result.Skipped) {
		t.linef("skipped, %s: %s", group.why, capped(group.names, t.limit(maxPIDs), ", "))
	}
}

// processes lists the kill set, one row each, in the order of the signals.
func (t *text) processes() {
	t.linef("\n%6s %8s %-15s %-9s %10s %10s  %s", "ORDER", "PID", "NAME", "ROLE", "RESIDENT", "SWAPPED", "BECAUSE")
	for i := range t.plan.Processes {
		p := &t.plan.Processes[i]
		line := fmt.Sprintf("%6d %8d %-15s %-9s %10s %10s  %s", p.Order+1, p.PID, printable(p.Comm), p.Role,
			humanBytes(p.RSSBytes), humanBytes(p.SwapBytes), printable(p.Because))
		t.linef("%s", strings.TrimRight(line, " "))
	}
}
