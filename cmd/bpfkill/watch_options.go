package main

import (
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/bpfkill/bpfkill/internal/target"
)

// watchOptions is a checked command line of "bpfkill watch".
type watchOptions struct {
	selector *target.Selector
	duration time.Duration // 0 until interrupted
	json     bool
	verbose  bool
	help     bool
}

// watchFlags are the flags as pflag parses them.
type watchFlags struct {
	watchOptions
	selection
	formatName string
}

func (v *watchFlags) flags() (selection, watch *pflag.FlagSet) {
	w := newFlagSet("watch")
	w.DurationVar(&v.duration, "duration", 0, "stop after `TIME` (default: when interrupted)")
	w.StringVar(&v.formatName, "output", "text", "write `FMT`: text (default; a table on a terminal, else\nlines), json (an object a second)")
	w.BoolVarP(&v.verbose, "verbose", "v", false, "a row for each pair of processes, not of names")
	w.BoolVarP(&v.help, "help", "h", false, "print this text and exit")
	return v.selection.flags(), w
}

func parseWatchOptions(args []string) (*watchOptions, error) {
	var v watchFlags
	all := newFlagSet("bpfkill watch")
	selection, watch := v.flags()
	all.AddFlagSet(selection)
	all.AddFlagSet(watch)
	if err := all.Parse(args); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	if v.help {
		return &v.watchOptions, nil
	}
	if all.NArg() > 0 {
		return nil, unexpectedArgument("bpfkill watch", all.Arg(0))
	}
	if all.Changed("duration") && v.duration <= 0 {
		return nil, usageErrorf("invalid argument %q for --duration: must be positive", v.duration)
	}
	switch v.formatName {
	case "text":
	case "json":
		v.json = true
	default:
		return nil, badChoice("--output", v.formatName, "text, json")
	}
	var err error
	v.selector, err = v.compile(all, "bpfkill watch")
	return &v.watchOptions, err
}

const watchHelpHead = `Show who wakes whom among the selected processes and those that they wake, by
what it comes through. Nobody is killed.

Usage:
  bpfkill watch --target REGEX [flags]
`

const watchHelpTail = `
Exit status: 0 watched to the end, 1 no process matched, 2 the command line is
wrong, 3 the watch could not begin or go on.
`

func watchHelpText() string {
	var v watchFlags
	selection, watch := v.flags()
	return strings.Join([]string{watchHelpHead,
		"Selection, as in pgrep(1); at least one of these:\n" + flagTable(selection),
		"Watch:\n" + flagTable(watch) + watchHelpTail}, "\n")
}
