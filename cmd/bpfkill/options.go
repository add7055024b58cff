package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/bpfkill/bpfkill/internal/plan"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/target"
)

// Values of --engine.
const (
	engineAuto   = "auto"
	engineBatch  = "batch"
	engineCgroup = "cgroup"
	engineLoop   = "loop"
)

// Values of --corral.
const (
	corralAuto = "auto"
	corralOff  = "off"
)

// options is a checked command line. Nothing in it has touched the system.
type options struct {
	selector *target.Selector // compiled selection, --protect included

	dependents plan.Dependents
	bystanders string        // what is done about bystanders: "wake"
	engine     string        // engineAuto, engineBatch, engineCgroup or engineLoop
	corral     string        // corralAuto or corralOff
	max        int           // largest kill set allowed, 0 for no limit
	timeout    time.Duration // how long exits are awaited, always positive
	dryRun     bool

	output  report.Format
	quiet   bool // no text report, notes, warnings or progress; errors stay
	verbose bool // verifier logs, a row for each process

	help, version bool
}

// flagValues are the flags as pflag parses them, before they are checked.
type flagValues struct {
	options
	selection
	dependentsName, bystandersName, formatName string
}

// flags declares every flag, in the groups of the help text.
func (v *flagValues) flags() (selection, kill, output *pflag.FlagSet) {
	k := newFlagSet("kill")
	k.StringVar(&v.dependentsName, "dependents", "descendants", "`WHO` dies too, of those that the kill would wake:\ndescendants (of a target; default), all, none")
	k.StringVar(&v.bystandersName, "bystanders", "wake", "`HOW` the rest of those are treated: wake (default)")
	k.StringArrayVar(&v.target.Protect, "protect", nil, "never kill those whose name matches `REGEX` (repeatable)")
	k.StringVar(&v.engine, "engine", engineAuto, "deliver signals by `NAME`: auto (default; batch where\nthis kernel has it, else loop), batch, cgroup, loop")
	k.StringVar(&v.corral, "corral", corralAuto, "`HOW` the kill set is kept from running in the window:\nauto (default; all of it on bpfkill's own CPU), off")
	k.IntVar(&v.max, "max", 0, "refuse to kill more than `N` processes (default: 0,\nno limit)")
	k.DurationVar(&v.timeout, "timeout", 10*time.Second, "wait `TIME` for processes to exit (default 10s)")
	k.BoolVarP(&v.dryRun, "dry-run", "n", false, "print the plan and signal nobody")

	o := newFlagSet("output")
	o.StringVar(&v.formatName, "output", "text", "write the report as `FMT`: text (default), json, dot")
	o.BoolVarP(&v.quiet, "quiet", "q", false, "no text report, notes, warnings or progress;\nerrors stay")
	o.BoolVarP(&v.verbose, "verbose", "v", false, "a row for each process; verifier logs")
	o.BoolVarP(&v.version, "version", "V", false, "print the version and exit")
	o.BoolVarP(&v.help, "help", "h", false, "print this text and exit")
	return v.selection.flags(), k, o
}

// parseOptions checks args. Every error is a usage error that names the flag.
func parseOptions(args []string) (*options, error) {
	var v flagValues
	all := newFlagSet("bpfkill")
	selection, kill, output := v.flags()
	for _, set := range []*pflag.FlagSet{selection, kill, output} {
		all.AddFlagSet(set)
	}
	if err := all.Parse(args); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	if v.help || v.version {
		return &v.options, nil
	}
	if all.NArg() > 0 {
		return nil, unexpectedArgument("bpfkill", all.Arg(0))
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	var err error
	v.selector, err = v.compile(all, "bpfkill")
	return &v.options, err
}

// check turns the enumerated flags into what they mean.
func (v *flagValues) check() error {
	var ok bool
	if v.dependents, ok = map[string]plan.Dependents{
		"descendants": plan.DependentsDescendants,
		"all":         plan.DependentsAll,
		"none":        plan.DependentsNone,
	}[v.dependentsName]; !ok {
		return badChoice("--dependents", v.dependentsName, "descendants, all, none")
	}
	switch v.bystandersName {
	case "wake":
		v.bystanders = v.bystandersName
	case "park":
		return usageErrorf("--bystanders park: parking does not exist yet; bystanders can only be left to wake (--bystanders wake)")
	default:
		return badChoice("--bystanders", v.bystandersName, "wake")
	}
	switch v.engine {
	case engineAuto, engineBatch, engineCgroup, engineLoop:
	default:
		return badChoice("--engine", v.engine, "auto, batch, cgroup, loop")
	}
	if v.corral != corralAuto && v.corral != corralOff {
		return badChoice("--corral", v.corral, "auto, off")
	}
	var err error
	if v.output, err = report.ParseFormat(v.formatName); err != nil {
		return usageErrorf("invalid argument %q for --output: %w", v.formatName, err)
	}
	if v.max < 0 {
		return usageErrorf("invalid argument \"%d\" for --max: not a number of processes", v.max)
	}
	if v.timeout <= 0 {
		return usageErrorf("invalid argument %q for --timeout: must be positive", v.timeout)
	}
	if v.quiet && v.verbose {
		return usageErrorf("--quiet and --verbose exclude each other")
	}
	return nil
}

func badChoice(flag, value, choices string) error {
	return usageErrorf("invalid argument %q for %s: must be one of %s", value, flag, choices)
}

// unexpectedArgument says how to select what a bare argument was meant to.
func unexpectedArgument(command, arg string) error {
	flag := "--target"
	if _, err := strconv.ParseUint(arg, 10, 31); err == nil {
		flag = "--pid"
	}
	quoted := arg
	if strings.ContainsFunc(arg, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,+@%", r)
	}) {
		quoted = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	return usageErrorf("unexpected argument %q: selection is by flag: %s %s %s", arg, command, flag, quoted)
}
