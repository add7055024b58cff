package main

import (
	"github.com/spf13/pflag"

	"github.com/bpfkill/bpfkill/internal/report"
)

// doctorOptions is a checked command line of "bpfkill doctor".
type doctorOptions struct {
	output report.Format // text or JSON
	help   bool
}

func (o *doctorOptions) flags(formatName *string) *pflag.FlagSet {
	f := newFlagSet("bpfkill doctor")
	f.StringVar(formatName, "output", "text", "write `FMT`: text (default), json")
	f.BoolVarP(&o.help, "help", "h", false, "print this text and exit")
	return f
}

func parseDoctorOptions(args []string) (*doctorOptions, error) {
	var o doctorOptions
	var formatName string
	f := o.flags(&formatName)
	if err := f.Parse(args); err != nil {
		return nil, &exitError{exitUsage, err}
	}
	if o.help {
		return &o, nil
	}
	if f.NArg() > 0 {
		return nil, usageErrorf("unexpected argument %q: bpfkill doctor examines this machine, and takes none", f.Arg(0))
	}
	switch formatName {
	case "text":
	case "json":
		o.output = report.FormatJSON
	default:
		return nil, badChoice("--output", formatName, "text, json")
	}
	return &o, nil
}

const doctorHelpHead = `Say what this kernel and these privileges allow, one row a feature. What can be
tried without harm is tried, on processes that the doctor starts for it.

Usage:
  bpfkill doctor [flags]

Flags:
`

const doctorHelpTail = `
Exit status: 0 bpfkill can kill here, 2 the command line is wrong, 3 it cannot.
`

func doctorHelpText() string {
	var o doctorOptions
	var formatName string
	return doctorHelpHead + flagTable(o.flags(&formatName)) + doctorHelpTail
}
