package target

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Self is what a selection needs to know about its caller and the system.
type Self struct {
	// PID is the caller's thread group id in its own pid namespace. The
	// caller must be among the processes, or its ancestors cannot be told.
	PID int32
	// NowNS is CLOCK_BOOTTIME in nanoseconds, the clock of start times.
	NowNS uint64
	// Cmdline returns a process's arguments, separated by spaces, and "" when
	// it has none or is gone. It is called for --full only, once for each
	// process that every other flag admits. See [Cmdline].
	Cmdline func(pid int32) string
	// Cgroups returns the ids of a cgroup v2 directory and of all below it.
	// It is called for --cgroup only. See cgroup2.IDs.
	Cgroups func(path string) ([]uint64, error)
}

// Reason says why a process that matched may not be killed.
type Reason uint8

const (
	ReasonSelf Reason = iota
	ReasonAncestor
	ReasonKernelThread
	ReasonNamespaceInit
	ReasonNotVisible
	ReasonDead
	ReasonProtected
)

var reasons = [...]string{"bpfkill itself", "ancestor of bpfkill", "kernel thread",
	"init of a pid namespace", "outside this pid namespace", "already dead (zombie)",
	"protected by --protect"}

func (r Reason) String() string { return reasons[r] }

// Excluded is a process that the flags match and that is not killed all the same.
type Excluded struct {
	Process int32 // index into the processes
	Reason  Reason
}

// Select returns the indexes of the processes to kill, ascending, and those
// that matched but are excluded, ascending. It fails when the caller is not
// among the processes or when a cgroup cannot be resolved.
func (s *Selector) Select(procs []waitgraph.Process, self Self) ([]int32, []Excluded, error) {
	barred, me, err := s.barred(procs, self.PID)
	if err != nil {
		return nil, nil, err
	}
	m := match{Selector: s, self: self, me: me}
	if m.cgroupIDs, err = s.resolveCgroups(self); err != nil {
		return nil, nil, err
	}
	var selected []int32
	var excluded []Excluded
	for i := range procs {
		reason, never := barred[int32(i)]
		if !m.attributes(&procs[i]) || !m.name(&procs[i], never && reason.noCmdline()) {
			continue
		}
		if never {
			excluded = append(excluded, Excluded{int32(i), reason})
			continue
		}
		selected = append(selected, int32(i))
	}
	return selected, excluded, nil
}

// Protected marks the processes that must not join a kill set in any role:
// the caller, its ancestors, what --protect matches, and all that cannot or
// must not be signalled. It fails when the caller is not among the processes.
func (s *Selector) Protected(procs []waitgraph.Process, self Self) ([]bool, error) {
	barred, _, err := s.barred(procs, self.PID)
	if err != nil {
		return nil, err
	}
	protected := make([]bool, len(procs))
	for i := range barred {
		protected[i] = true
	}
	return protected, nil
}

// noCmdline reports whether a process excluded for r has no command line that
// could be read; pgrep matches such a process by its name.
func (r Reason) noCmdline() bool {
	return r == ReasonKernelThread || r == ReasonNotVisible || r == ReasonDead
}

// barred returns why processes may not be killed, by index, and the caller.
func (s *Selector) barred(procs []waitgraph.Process, pid int32) (map[int32]Reason, *waitgraph.Process, error) {
	barred := map[int32]Reason{}
	index := make(map[int32]int32, len(procs))
	for i := range procs {
		if p := &procs[i]; p.PID > 0 {
			index[p.PID] = int32(i)
		}
		if reason, ok := s.neverKilled(&procs[i]); ok {
			barred[int32(i)] = reason
		}
	}
	me, ok := index[pid]
	if !ok || pid <= 0 {
		return nil, nil, fmt.Errorf("bpfkill (pid %d) is not in its own snapshot, so its ancestors cannot be told apart: refusing to select; is /proc of another pid namespace?", pid)
	}
	barred[me] = ReasonSelf
	// A chain of parents longer than the table is a loop: a snapshot taken
	// while processes were reparented may hold one.
	for i, n := procs[me].PPID, 0; n < len(procs); n++ {
		at, ok := index[i]
		if !ok || at == me {
			break
		}
		if _, already := barred[at]; !already {
			barred[at] = ReasonAncestor
		}
		i = procs[at].PPID
	}
	return barred, &procs[me], nil
}

func (s *Selector) neverKilled(p *waitgraph.Process) (Reason, bool) {
	switch {
	case p.KernelThread:
		return ReasonKernelThread, true
	case p.PID <= 0:
		return ReasonNotVisible, true
	case p.NamespaceInit || p.PID == 1:
		return ReasonNamespaceInit, true
	case !p.Alive():
		return ReasonDead, true
	}
	for _, pattern := range s.protect {
		if pattern.match(p.Comm) {
			return ReasonProtected, true
		}
	}
	return 0, false
}

func (s *Selector) resolveCgroups(self Self) (map[uint64]bool, error) {
	if len(s.cgroups) == 0 {
		return nil, nil
	}
	ids := map[uint64]bool{}
	for _, path := range s.cgroups {
		found, err := self.Cgroups(path)
		if err != nil {
			return nil, fmt.Errorf("--cgroup %q: %w", path, err)
		}
		for _, id := range found {
			ids[id] = true
		}
	}
	return ids, nil
}

// match is one run of a selector over one snapshot.
type match struct {
	*Selector
	self      Self
	me        *waitgraph.Process
	cgroupIDs map[uint64]bool
}

// attributes reports whether p passes every flag but the name's.
func (m *match) attributes(p *waitgraph.Process) bool {
	return m.pids.admits(int64(p.PID)) &&
		m.parents.admits(int64(p.PPID)) &&
		admitsOwn(m.pgroups, p.PGID, m.me.PGID) &&
		admitsOwn(m.sessions, p.SID, m.me.SID) &&
		m.euids.admits(int64(p.EUID)) &&
		m.uids.admits(int64(p.UID)) &&
		(m.cgroupIDs == nil || m.cgroupIDs[p.CgroupID]) &&
		m.oldEnough(p)
}

// admitsOwn takes 0 in the set for the caller's own id, as pgrep does. An id
// that is 0 itself is one that this namespace does not see: only its absence
// from the flags admits it.
func admitsOwn(set idSet, id, own int32) bool {
	if set == nil {
		return true
	}
	return id != 0 && (set[int64(id)] || (set[0] && id == own))
}

func (m *match) oldEnough(p *waitgraph.Process) bool {
	if m.older == 0 {
		return true
	}
	return p.StartNS <= m.self.NowNS && time.Duration(m.self.NowNS-p.StartNS) >= m.older
}

// name reports whether one of the expressions matches p. byComm keeps --full
// from reading a command line.
func (m *match) name(p *waitgraph.Process, byComm bool) bool {
	if len(m.names) == 0 {
		return true
	}
	text := p.Comm
	if m.full && !byComm {
		// A process that cleared its arguments is known by its name.
		if cmdline := m.self.Cmdline(p.PID); cmdline != "" {
			text = cmdline
		}
	}
	return slices.ContainsFunc(m.names, func(e pattern) bool { return e.match(text) })
}

// Notes says in one line each what was excluded and why. Kernel threads and
// the dead are counted, others named, because a broad selection matches
// hundreds of those and the user meant none of them.
func Notes(procs []waitgraph.Process, excluded []Excluded) []string {
	var notes []string
	counts := map[Reason]int{}
	for _, e := range excluded {
		switch e.Reason {
		case ReasonSelf:
			// pgrep never reports itself either.
		case ReasonKernelThread, ReasonDead, ReasonNotVisible:
			counts[e.Reason]++
		default:
			p := &procs[e.Process]
			notes = append(notes, fmt.Sprintf("not killing %s[%d]: %v", printable(p.Comm), p.PID, e.Reason))
		}
	}
	for _, r := range []Reason{ReasonKernelThread, ReasonNotVisible, ReasonDead} {
		if n := counts[r]; n > 0 {
			notes = append(notes, fmt.Sprintf("not killing %d matching %s: %v", n, plural(n), r))
		}
	}
	return notes
}

func plural(n int) string {
	if n == 1 {
		return "process"
	}
	return "processes"
}

// printable keeps a process from driving the terminal through its name.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, s)
}
