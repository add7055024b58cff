package main

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/pflag"
)

const helpHead = `Kill processes so that nobody who was asleep runs because of it.

Usage:
  bpfkill --target REGEX [flags]
  bpfkill watch --target REGEX [flags]   show who wakes whom; kills nobody
  bpfkill doctor                         say what works on this machine

Values of one flag widen the selection, different flags narrow it. Never killed:
bpfkill and its ancestors, kernel threads, the init of any pid namespace.
`

const helpTail = `
Exit status:
  0   every process of the kill set is gone
  1   no process matched
  2   the command line is wrong
  3   fatal, and nothing was signalled
  4   the window ran, but some processes survived the timeout, each named; or
      forks were not seen, so that some may have
  64  some processes could not be signalled
`

// helpText is what --help prints.
func helpText() string {
	var v flagValues
	selection, kill, output := v.flags()
	var b strings.Builder
	b.WriteString(helpHead)
	b.WriteString("\nSelection, as in pgrep(1); at least one of these:\n" + flagTable(selection))
	b.WriteString("\nKill:\n" + flagTable(kill))
	b.WriteString("\nOutput:\n" + flagTable(output))
	b.WriteString(helpTail)
	return b.String()
}

// flagTable lists flags in the order of their declaration. pflag's own listing
// would make the first column as wide as the longest list of values.
func flagTable(set *pflag.FlagSet) string {
	const column = 23
	var b strings.Builder
	set.VisitAll(func(f *pflag.Flag) {
		argument, usage := pflag.UnquoteUsage(f)
		head := "      --" + f.Name
		if f.Shorthand != "" {
			head = "  -" + f.Shorthand + ", --" + f.Name
		}
		if f.Value.Type() != "bool" {
			head += " " + argument
		}
		for i, line := range strings.Split(usage, "\n") {
			if i > 0 {
				head = ""
			}
			fmt.Fprintf(&b, "%-*s  %s\n", column, head, line)
		}
	})
	return b.String()
}

// release is the version of a release binary, set by the linker: such binaries
// are the same whether or not git knows the sources.
var release string

// versionText is what --version prints.
func versionText() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	info.Main.Version = cmp.Or(release, info.Main.Version)
	return formatVersion(info)
}

func formatVersion(info *debug.BuildInfo) string {
	version := info.Main.Version
	if version == "" {
		version = "(devel)"
	}
	var commit, modified string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				modified = ", modified"
			}
		}
	}
	if commit != "" {
		version += " (commit " + commit[:min(12, len(commit))] + modified + ")"
	}
	return "bpfkill " + version + ", needs Linux 5.10 or later with BTF"
}
