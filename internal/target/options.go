// Package target selects processes with the meaning that pgrep(1) gives to
// its flags.
//
// Selection is a pure function of the snapshot's processes: comm, ids and
// start times come from kernel memory, so nothing is paged in. The two flags
// that need more (--full reads command lines, --cgroup walks a cgroup tree)
// get it through function values of [Self].
package target

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CommLen is the most bytes that the kernel keeps of a process name
// (TASK_COMM_LEN less the terminating NUL).
const CommLen = 15

// Options are the selection flags as the user typed them. Values of one field
// widen the selection (OR), different fields narrow it (AND).
type Options struct {
	Names []string // --target: POSIX extended regular expressions
	Exact bool     // --exact: a name must match as a whole
	Full  bool     // --full: match the command line, which pages targets in

	// Lists of numbers or, for the users, login names. One element may carry
	// several values separated by commas, as on pgrep's command line.
	PIDs, EUIDs, UIDs, Parents, PGroups, Sessions []string

	Cgroups []string // --cgroup: cgroup v2 paths
	// OlderThan selects processes that started at least so long ago. Zero
	// selects any age.
	OlderThan time.Duration

	// Protect are expressions on the process name. What one of them matches
	// is never killed, neither as a target nor as a dependent.
	Protect []string

	// LookupUser turns a login name into a uid. It is not called for
	// numbers. Nil knows no names.
	LookupUser func(name string) (uint32, error)
}

// UsageError is a mistake in the selection flags: the user has to type
// something else. Its text names the flag and the value.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// ErrNothingSelected is wrapped by the [UsageError] for options without any
// selecting flag.
var ErrNothingSelected = errors.New("no process selected: give at least one of --target, --pid, --euid, --uid, --parent, --pgroup, --session, --cgroup, --older")

func usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// Selector is a compiled selection. It is immutable and safe for concurrent use.
type Selector struct {
	names    []pattern
	protect  []pattern
	full     bool
	cgroups  []string
	older    time.Duration
	pids     idSet
	parents  idSet
	pgroups  idSet
	sessions idSet
	euids    idSet
	uids     idSet
	warnings []string
}

// idSet is the values of one flag; nil selects everything.
type idSet map[int64]bool

func (s idSet) admits(id int64) bool { return s == nil || s[id] }

// Compile checks the options and prepares a selection. Every error is a
// [*UsageError].
func Compile(o Options) (*Selector, error) {
	s := &Selector{full: o.Full, cgroups: slices.Clone(o.Cgroups), older: o.OlderThan}
	if err := s.compileNames(o); err != nil {
		return nil, err
	}
	lists := []struct {
		flag, noun string
		values     []string
		min        int64 // a pid of 0 names nobody; a parent of 0 is one outside the namespace
		into       *idSet
	}{
		{"--pid", "a process id", o.PIDs, 1, &s.pids},
		{"--parent", "a process id", o.Parents, 0, &s.parents},
		{"--pgroup", "a process group id", o.PGroups, 0, &s.pgroups},
		{"--session", "a session id", o.Sessions, 0, &s.sessions},
	}
	for _, l := range lists {
		set, err := parseList(l.flag, l.values, func(v string) (int64, error) {
			n, err := strconv.ParseInt(v, 10, 32)
			if err != nil || n < l.min {
				return 0, usagef("invalid argument %q for %s: not %s", v, l.flag, l.noun)
			}
			return n, nil
		})
		if err != nil {
			return nil, err
		}
		*l.into = set
	}
	var err error
	if s.euids, err = parseUsers("--euid", o.EUIDs, o.LookupUser); err != nil {
		return nil, err
	}
	if s.uids, err = parseUsers("--uid", o.UIDs, o.LookupUser); err != nil {
		return nil, err
	}
	if o.OlderThan < 0 {
		return nil, usagef("invalid argument %v for --older: not a number of seconds", o.OlderThan)
	}
	if slices.Contains(o.Cgroups, "") {
		return nil, usagef(`invalid argument "" for --cgroup: empty path`)
	}
	if !s.selects() {
		return nil, &UsageError{ErrNothingSelected}
	}
	return s, nil
}

func (s *Selector) selects() bool {
	return len(s.names) > 0 || len(s.cgroups) > 0 || s.older > 0 || s.pids != nil ||
		s.parents != nil || s.pgroups != nil || s.sessions != nil || s.euids != nil || s.uids != nil
}

// Warnings are one-line remarks about flags that are valid but unlikely to do
// what was meant, as pgrep prints them.
func (s *Selector) Warnings() []string { return slices.Clone(s.warnings) }

func (s *Selector) compileNames(o Options) error {
	for _, expr := range o.Names {
		// With pgrep an empty pattern matches every process. Here it is far
		// likelier to be an unset shell variable, and the price is the machine.
		if expr == "" {
			return usagef(`invalid argument "" for --target: an empty pattern would match every process; use "." to mean that`)
		}
		p, err := compilePattern(expr, o.Exact)
		if err != nil {
			return usagef("invalid argument %q for --target: %w", expr, err)
		}
		if p.match("") {
			return usagef(`invalid argument %q for --target: it matches the empty text, and so every process; use "." to mean that`, expr)
		}
		if what := p.impossible(); what != "" && !o.Full {
			s.warnings = append(s.warnings, fmt.Sprintf("--target %q needs more than %d characters, and process names have no more: %s matches nothing; --full matches against the whole command line", expr, CommLen, what))
		}
		s.names = append(s.names, p)
	}
	if o.Full && len(o.Names) > 0 {
		s.warnings = append(s.warnings, "--full reads the command lines of all candidates out of their own memory: those that are swapped out are paged in")
	}
	if (o.Full || o.Exact) && len(o.Names) == 0 {
		return usagef("--full and --exact say how --target matches: give --target as well")
	}
	for _, expr := range o.Protect {
		if expr == "" {
			return usagef(`invalid argument "" for --protect: an empty pattern would protect every process`)
		}
		p, err := compilePattern(expr, false)
		if err != nil {
			return usagef("invalid argument %q for --protect: %w", expr, err)
		}
		// A target pattern that matches nothing is harmless. A protection that
		// matches nothing is not.
		if what := p.impossible(); what != "" {
			return usagef("invalid argument %q for --protect: process names have at most %d characters, so %s protects nothing", expr, CommLen, what)
		}
		s.protect = append(s.protect, p)
	}
	return nil
}

// parseList splits comma-separated values. An empty value is refused: it is
// what an unset shell variable leaves, and ignoring it would widen the
// selection.
func parseList(flag string, values []string, parse func(string) (int64, error)) (idSet, error) {
	if len(values) == 0 {
		return nil, nil
	}
	set := idSet{}
	for _, list := range values {
		for v := range strings.SplitSeq(list, ",") {
			if v == "" {
				return nil, usagef("invalid argument %q for %s: empty value", list, flag)
			}
			n, err := parse(v)
			if err != nil {
				return nil, err
			}
			set[n] = true
		}
	}
	return set, nil
}

func parseUsers(flag string, values []string, lookup func(string) (uint32, error)) (idSet, error) {
	return parseList(flag, values, func(v string) (int64, error) {
		if n, err := strconv.ParseUint(v, 10, 32); err == nil {
			return int64(n), nil
		}
		if lookup == nil {
			return 0, usagef("invalid argument %q for %s: not a user id", v, flag)
		}
		uid, err := lookup(v)
		if err != nil {
			return 0, usagef("invalid argument %q for %s: %w", v, flag, err)
		}
		return int64(uid), nil
	})
}
