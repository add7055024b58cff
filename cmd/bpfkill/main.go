// Bpfkill kills a set of processes so that nobody who was asleep runs
// because of it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/bpfkill/bpfkill/internal/window"
)

func main() {
	if window.IsGuardian() {
		os.Exit(window.Guard())
	}
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, kill)
	os.Exit(exitStatus(err, os.Stderr))
}

// killFunc carries out what the options ask for. The report goes to stdout,
// notes and progress to stderr. An error returned after the first signal must
// be an [exitError].
type killFunc func(ctx context.Context, o *options, stdout, stderr io.Writer) error

// run is the whole command but for the exit. It does not touch the system
// before kill.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, kill killFunc) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	switch {
	case o.help:
		_, err := io.WriteString(stdout, helpText())
		return err
	case o.version:
		_, err := fmt.Fprintln(stdout, versionText())
		return err
	}
	if !o.quiet {
		for _, w := range o.selector.Warnings() {
			fmt.Fprintln(stderr, "bpfkill: warning:", w)
		}
	}
	return kill(ctx, o, stdout, stderr)
}
