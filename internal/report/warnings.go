package report

import (
	"fmt"
	"strings"
)

// warnings says in plain words whatever takes something from the figures or
// from the promise that nobody who slept runs.
func (t *text) warnings() {
	if r := t.r.Result; r != nil {
		t.resultWarnings(r)
	}
	t.dragged()
	t.exposed()
	t.unaccounted()
	t.incomplete()
}

func (t *text) warnf(format string, args ...any) { t.linef("warning: "+format, args...) }

func (t *text) resultWarnings(r *Result) {
	if r.UserReturns > 0 {
		t.warnf("%s that slept when the window opened ran in user mode after it: the kill did not keep its promise",
			count(r.UserReturns, "process", "processes"))
	}
	if r.EarlyWakes > 0 {
		who := ""
		var names []string
		for _, w := range r.Wakes {
			if w.Killed {
				names = append(names, fmt.Sprintf("%s by %s (%s)", t.name(w.PID), t.name(w.Cause), channelLabel(w.Channel)))
			}
		}
		if len(names) > 0 {
			who = ": " + capped(names, t.limit(maxNames), ", ")
		}
		t.warnf("in the kill set, %s woken by another's death before its own signal%s",
			count(r.EarlyWakes, "process was", "processes were"), who)
	}
	t.windowWarnings(&r.Window)
	if r.LostEvents > 0 {
		t.warnf("%s lost: wakes, returns and exits may be more than the report says",
			count(r.LostEvents, "measurement was", "measurements were"))
	}
}

// dragged names those that the kill set's deaths end by a signal of the kernel's.
func (t *text) dragged() {
	var b byChannel
	for _, w := range t.plan.Bystanders {
		if w.Dies {
			b.add(w.PID, w.Comm, channelLabel(w.Channel))
		}
	}
	if n := len(b.order); n > 0 {
		t.warnf("%s outside the kill set, which --protect does not keep from it, by a signal that comes with these deaths (predicted): %s",
			count(n, "process dies", "processes die"), capped(b.names(), t.limit(maxNames), ", "))
	}
}

func (t *text) exposed() {
	if len(t.plan.Exposed) == 0 {
		return
	}
	var b byChannel
	for _, w := range t.plan.Exposed {
		comm := "a process outside this pid namespace"
		if w.Waiter != 0 {
			comm = t.plan.names[w.Waiter]
		}
		b.add(w.Waiter, comm, channelLabel(w.Channel))
	}
	t.warnf("%s that no order satisfies, because processes wait on each other; only the tripwire stops those woken: %s",
		count(len(t.plan.Exposed), "wait", "waits"), capped(b.names(), t.limit(maxNames), ", "))
}

func (t *text) unaccounted() {
	if len(t.plan.Unaccounted) == 0 {
		return
	}
	var names []string
	for _, u := range t.plan.Unaccounted {
		names = append(names, fmt.Sprintf("%s (%d found, the kernel counts %d)", printable(u.Source), u.Found, u.KernelCounts))
	}
	t.warnf("%s with holders that the snapshot did not find, taken never to fire: %s",
		count(len(names), "wake source", "wake sources"), capped(names, t.limit(maxNames), ", "))
}

func (t *text) incomplete() {
	i := t.plan.Incomplete
	var what []string
	for _, part := range []struct {
		n               int
		one, many, fate string
	}{
		{i.Queues, "wait queue", "wait queues", "cut short"},
		{i.Raced, "wait queue", "wait queues", "changed while being read"},
		{i.Records, "record", "records", "dropped"},
		{i.Callbacks, "queue entry", "queue entries", "that no process sleeps on"},
	} {
		if part.n > 0 {
			what = append(what, count(part.n, part.one, part.many)+" "+part.fate)
		}
	}
	if len(what) > 0 {
		t.warnf("the snapshot is incomplete, so there may be waiters unknown to the plan: %s", strings.Join(what, ", "))
	}
}
