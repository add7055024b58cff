package main

import (
	"errors"
	"time"

	"github.com/spf13/pflag"

	"github.com/bpfkill/bpfkill/internal/target"
)

// selection are the flags by which any command selects processes.
type selection struct {
	target       target.Options
	olderSeconds uint32
}

func newFlagSet(name string) *pflag.FlagSet {
	set := pflag.NewFlagSet(name, pflag.ContinueOnError)
	set.SortFlags = false
	set.Usage = func() {} // an error is one line
	return set
}

func (v *selection) flags() *pflag.FlagSet {
	// Values are split at commas by the selection itself: pflag's own slices
	// take an empty value for no value, and would widen the selection.
	s := newFlagSet("selection")
	s.StringArrayVar(&v.target.Names, "target", nil, "name matches `REGEX` (POSIX extended; repeatable)")
	s.BoolVarP(&v.target.Exact, "exact", "x", false, "--target must match the whole name")
	s.BoolVarP(&v.target.Full, "full", "f", false, "--target matches command lines (pages targets in)")
	s.StringArrayVarP(&v.target.PIDs, "pid", "p", nil, "process id is one of `PID,...`")
	s.StringArrayVarP(&v.target.EUIDs, "euid", "u", nil, "effective user is one of `USER,...`, names or numbers")
	s.StringArrayVarP(&v.target.UIDs, "uid", "U", nil, "real user is one of `USER,...`, names or numbers")
	s.StringArrayVarP(&v.target.Parents, "parent", "P", nil, "parent is one of `PID,...`")
	s.StringArrayVarP(&v.target.PGroups, "pgroup", "g", nil, "process group is one of `PGID,...` (0: bpfkill's own)")
	s.StringArrayVarP(&v.target.Sessions, "session", "s", nil, "session is one of `SID,...` (0: bpfkill's own)")
	s.StringArrayVar(&v.target.Cgroups, "cgroup", nil, "in the cgroup v2 `PATH` or below it (repeatable)")
	s.Uint32Var(&v.olderSeconds, "older", 0, "started at least `SECONDS` ago")
	return s
}

// compile checks the selection of a command line that set parsed. Command is how
// the tool was called.
func (v *selection) compile(set *pflag.FlagSet, command string) (*target.Selector, error) {
	if set.Changed("older") && v.olderSeconds == 0 {
		return nil, usageErrorf(`invalid argument "0" for --older: every process is older than that`)
	}
	v.target.OlderThan = time.Duration(v.olderSeconds) * time.Second
	v.target.LookupUser = target.LookupUser
	selector, err := target.Compile(v.target)
	if errors.Is(err, target.ErrNothingSelected) {
		return nil, usageErrorf("%w; usage: %s --target REGEX [flags]", err, command)
	}
	return selector, err
}
