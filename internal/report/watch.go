package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Watch is one interval of a watch: who woke whom in it. Its JSON form is one
// object of schema 1 on a line; fields are added, never renamed.
type Watch struct {
	Version    int       `json:"version"` // SchemaVersion
	Time       time.Time `json:"time"`    // the end of the interval
	ElapsedNS  int64     `json:"elapsed_ns"`
	IntervalNS int64     `json:"interval_ns"`
	Selected   int       `json:"selected"` // processes
	Met        int       `json:"met"`      // others that the selected have woken
	Wakes      []Contact `json:"wakes"`    // in JSON those of the interval only
	LostEvents uint64    `json:"lost_events"`
}

// Contact counts the wakes of one process by another through one channel.
type Contact struct {
	Cause     int32  `json:"cause"` // the waking process, 0 where not visible
	CauseComm string `json:"cause_comm"`
	PID       int32  `json:"pid"` // the woken process, 0 where not visible
	Comm      string `json:"comm"`
	Channel   string `json:"channel"`
	Count     uint64 `json:"count"` // in the interval
	Total     uint64 `json:"total"` // since the watch began
}

// WriteWatchJSON writes w as one line.
func WriteWatchJSON(out io.Writer, w *Watch) error {
	line := *w
	line.Version = SchemaVersion
	line.Wakes = slices.DeleteFunc(slices.Clone(w.Wakes), func(c Contact) bool { return c.Count == 0 })
	line.Wakes = nonNil(line.Wakes)
	sortContacts(line.Wakes)
	return encode(out, &line, "")
}

func sortContacts(contacts []Contact) {
	slices.SortFunc(contacts, func(a, b Contact) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(b.Total, a.Total), cmp.Compare(a.Cause, b.Cause),
			cmp.Compare(a.PID, b.PID), cmp.Compare(a.Channel, b.Channel))
	})
}

// WatchText writes a watch for people: by name, or with Verbose by process.
// Totals outlive the processes.
type WatchText struct {
	Verbose bool

	last   Watch
	totals map[watchRow]uint64
}

// watchRow is what is counted together.
type watchRow struct{ waker, wakee, channel string }

// watchLine is a row with its figures.
type watchLine struct {
	watchRow
	wakers, wakees map[int32]bool
	count, total   uint64
}

// Add takes the next interval.
func (t *WatchText) Add(w *Watch) {
	if t.totals == nil {
		t.totals = map[watchRow]uint64{}
	}
	if len(t.totals) > maxTotals {
		clear(t.totals)
	}
	t.last = *w
	for i := range w.Wakes {
		t.totals[t.row(&w.Wakes[i])] += w.Wakes[i].Count
	}
}

// maxTotals bounds the memory of a watch that sees many processes come and go:
// beyond it totals start anew.
const maxTotals = 1 << 17

func (t *WatchText) row(c *Contact) watchRow {
	r := watchRow{printable(c.CauseComm), printable(c.Comm), channelLabel(c.Channel)}
	if t.Verbose {
		r.waker, r.wakee = withPID(r.waker, c.Cause), withPID(r.wakee, c.PID)
	}
	return r
}

// lines are the rows of the last interval and of all before, the busiest first.
func (t *WatchText) lines() []*watchLine {
	rows := make(map[watchRow]*watchLine, len(t.totals))
	for r, total := range t.totals {
		rows[r] = &watchLine{watchRow: r, wakers: map[int32]bool{}, wakees: map[int32]bool{}, total: total}
	}
	for i := range t.last.Wakes {
		c := &t.last.Wakes[i]
		l := rows[t.row(c)]
		l.wakers[c.Cause], l.wakees[c.PID] = true, true
		l.count += c.Count
	}
	return slices.SortedFunc(maps.Values(rows), busier)
}

func busier(a, b *watchLine) int {
	return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(b.total, a.total), strings.Compare(a.waker, b.waker),
		strings.Compare(a.wakee, b.wakee), strings.Compare(a.channel, b.channel))
}

func withPID(comm string, pid int32) string {
	if pid == 0 {
		return comm + "[?]"
	}
	return fmt.Sprintf("%s[%d]", comm, pid)
}

// names says a side of a row: the name, and of how many processes.
func (t *WatchText) names(name string, pids map[int32]bool) string {
	if t.Verbose {
		return name
	}
	return times(name, max(len(pids), 1))
}

// perSecond is a rate with one digit after the point.
func perSecond(n uint64, intervalNS int64) string {
	if intervalNS <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(n)*1e9/float64(intervalNS))
}

// Lines is a line for each row in which anything happened in the last interval.
func (t *WatchText) Lines() []byte {
	var out strings.Builder
	at := t.last.Time.Format(time.TimeOnly)
	for _, l := range t.lines() {
		if l.count > 0 {
			fmt.Fprintf(&out, "%s %9s/s  %s -> %s  %s\n", at, perSecond(l.count, t.last.IntervalNS),
				t.names(l.waker, l.wakers), t.names(l.wakee, l.wakees), l.channel)
		}
	}
	if out.Len() == 0 {
		fmt.Fprintf(&out, "%s %9s/s\n", at, "0.0")
	}
	return []byte(out.String())
}

// Screen draws the watch on a terminal of so many columns and rows, over what it
// drew before.
func (t *WatchText) Screen(columns, rows int) []byte {
	table := t.table(t.lines(), t.last.IntervalNS)
	if limit := max(rows-1, 3); len(table) > limit {
		table = append(table[:limit-1], fmt.Sprintf("%d more rows", len(table)-limit+1))
	}
	var out strings.Builder
	out.WriteString("\x1b[H")
	for _, line := range table {
		if columns > 0 && utf8.RuneCountInString(line) > columns {
			line = string([]rune(line)[:columns])
		}
		out.WriteString(line + "\x1b[K\n")
	}
	out.WriteString("\x1b[J")
	return []byte(out.String())
}

// Summary is the table of the whole watch, its rates on average.
func (t *WatchText) Summary() []byte {
	lines := t.lines()
	for _, l := range lines {
		l.count = l.total
	}
	slices.SortFunc(lines, busier)
	return []byte(strings.Join(t.table(lines, t.last.ElapsedNS), "\n") + "\n")
}

func (t *WatchText) table(lines []*watchLine, intervalNS int64) []string {
	w := &t.last
	head := fmt.Sprintf("bpfkill watch: %s, %d more woken by them, %s",
		count(w.Selected, "process selected", "processes selected"), w.Met, humanNS(uint64(max(w.ElapsedNS, 0))))
	if w.LostEvents > 0 {
		head += "; " + count(w.LostEvents, "wake was not counted", "wakes were not counted")
	}
	if len(lines) == 0 {
		return []string{head, "nobody was woken"}
	}
	waker, wakee := len("WAKER"), len("WAKEE")
	for _, l := range lines {
		waker = max(waker, utf8.RuneCountInString(t.names(l.waker, l.wakers)))
		wakee = max(wakee, utf8.RuneCountInString(t.names(l.wakee, l.wakees)))
	}
	out := []string{head, fmt.Sprintf("%10s %10s  %-*s  %-*s  %s", "PER SECOND", "TOTAL", waker, "WAKER", wakee, "WAKEE", "CHANNEL")}
	for _, l := range lines {
		out = append(out, fmt.Sprintf("%10s %10d  %-*s  %-*s  %s", perSecond(l.count, intervalNS), l.total,
			waker, t.names(l.waker, l.wakers), wakee, t.names(l.wakee, l.wakees), l.channel))
	}
	return out
}
