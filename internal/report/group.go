package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// tally counts by key and remembers the order of first appearance.
type tally struct {
	keys   []string
	counts map[string]int
}

func (t *tally) add(key string) {
	if t.counts == nil {
		t.counts = map[string]int{}
	}
	if t.counts[key] == 0 {
		t.keys = append(t.keys, key)
	}
	t.counts[key]++
}

// sorted returns the keys, most frequent first, then by name.
func (t *tally) sorted() []string {
	keys := slices.Clone(t.keys)
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(t.counts[b], t.counts[a]), cmp.Compare(a, b))
	})
	return keys
}

// times writes a name that stands for n processes.
func times(name string, n int) string {
	if n == 1 {
		return name
	}
	return fmt.Sprintf("%s ×%d", name, n)
}

// killSet names the kill set without the processes of not: targets first,
// "1000 smtpserver + 1000 router".
func (t *text) killSet(not map[int32]bool) string {
	var targets, dependents tally
	for i := range t.plan.Processes {
		p := &t.plan.Processes[i]
		switch {
		case not[p.PID]:
		case p.Role == "dependent":
			dependents.add(printable(p.Comm))
		default:
			targets.add(printable(p.Comm))
		}
	}
	var parts []string
	for _, group := range []*tally{&targets, &dependents} {
		for _, name := range group.sorted() {
			parts = append(parts, fmt.Sprintf("%d %s", group.counts[name], name))
		}
	}
	if len(parts) > maxNames {
		rest := 0
		for _, part := range parts[maxNames:] {
			var n int
			fmt.Sscan(part, &n)
			rest += n
		}
		parts = append(parts[:maxNames], fmt.Sprintf("%d of other names", rest))
	}
	return strings.Join(parts, " + ")
}

// maxPeriod is the longest sequence of names that is recognised when it repeats.
const maxPeriod = 4

// runs says the order of signals in few items: one for each run of the same
// name, and one for names that take turns, as those of knots and pipelines do.
func runs(processes []Process) []string {
	var out []string
	for start := 0; start < len(processes); {
		period, length := repetition(processes[start:])
		var names []string
		for i := range period {
			names = append(names, printable(processes[start+i].Comm))
		}
		name := strings.Join(names, ", ")
		if length == 1 {
			out = append(out, fmt.Sprintf("%d %s", start+1, name))
		} else {
			if period > 1 {
				name = "(" + name + ")"
			}
			out = append(out, fmt.Sprintf("%d–%d %s ×%d", start+1, start+length, name, length/period))
		}
		start += length
	}
	return out
}

// repetition finds how many names at the start repeat, and over how many
// processes: 1 and the length of the run, unless names take turns three times.
func repetition(processes []Process) (period, length int) {
	for period = 1; period <= maxPeriod; period++ {
		length = period
		for length < len(processes) && processes[length].Comm == processes[length-period].Comm {
			length++
		}
		length -= length % period
		if period == 1 && length > 1 || length >= 3*period {
			return period, length
		}
	}
	return 1, 1
}

// byChannel gathers woken processes by name and by the channels that wake
// them. A process woken through several channels is counted once.
type byChannel struct {
	order []woken
	at    map[woken]int // index into channels
	chans [][]string
}

// woken tells processes apart. Those outside the pid namespace all have pid 0.
type woken struct {
	pid  int32
	comm string
}

func (b *byChannel) add(pid int32, comm, channel string) {
	if b.at == nil {
		b.at = map[woken]int{}
	}
	key := woken{pid, comm}
	i, ok := b.at[key]
	if !ok {
		i = len(b.order)
		b.at[key] = i
		b.order = append(b.order, key)
		b.chans = append(b.chans, nil)
	}
	if !slices.Contains(b.chans[i], channel) {
		b.chans[i] = append(b.chans[i], channel)
	}
}

func (b *byChannel) names() []string {
	var t tally
	for i, w := range b.order {
		slices.Sort(b.chans[i])
		t.add(printable(w.comm) + "\x00" + strings.Join(b.chans[i], ", "))
	}
	var out []string
	for _, key := range t.sorted() {
		comm, channels, _ := strings.Cut(key, "\x00")
		out = append(out, fmt.Sprintf("%s (%s)", times(comm, t.counts[key]), channels))
	}
	return out
}

// plannedBystanders counts the processes that the plan expects to wake outside
// the kill set, and names them by channel.
func (t *text) plannedBystanders() (int, string) {
	var b byChannel
	for _, w := range t.plan.Bystanders {
		b.add(w.PID, w.Comm, channelLabel(w.Channel))
	}
	return len(b.order), capped(b.names(), t.limit(maxNames), ", ")
}

// wokenBystanders names the processes outside the kill set that were seen to
// wake; those that the plan did not expect come first.
func (t *text) wokenBystanders() string {
	var expected, surprises byChannel
	for _, w := range t.r.Result.Wakes {
		switch {
		case w.Killed:
		case w.Predicted:
			expected.add(w.PID, w.Comm, channelLabel(w.Channel))
		default:
			surprises.add(w.PID, w.Comm, channelLabel(w.Channel)+", not predicted")
		}
	}
	return capped(append(surprises.names(), expected.names()...), t.limit(maxNames), ", ")
}

// sleptOn counts and names the bystanders that the plan expected to wake and
// nobody saw waking.
func (t *text) sleptOn() (int, string) {
	woke := map[woken]bool{}
	for _, w := range t.r.Result.Wakes {
		woke[woken{w.PID, w.Comm}] = true
	}
	var b byChannel
	for _, w := range t.plan.Bystanders {
		if !woke[woken{w.PID, w.Comm}] {
			b.add(w.PID, w.Comm, channelLabel(w.Channel))
		}
	}
	return len(b.order), capped(b.names(), t.limit(maxNames), ", ")
}
