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
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, commands{kill, watch})
	os.Exit(exitStatus(err, os.Stderr))
}

// commands are what the tool does. Results go to stdout, notes and progress to
// stderr.
type commands struct {
	// kill carries out what the options ask for. An error returned after the
	// first signal must be an [exitError].
	kill  func(ctx context.Context, o *options, stdout, stderr io.Writer) error
	watch func(ctx context.Context, o *watchOptions, stdout, stderr io.Writer) error
}

// run is the whole tool but for the exit. It does not touch the system before
// it calls a command.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, c commands) error {
	if len(args) > 0 && args[0] == "watch" {
		return runWatch(ctx, args[1:], stdout, stderr, c.watch)
	}
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
	return c.kill(ctx, o, stdout, stderr)
}

func runWatch(ctx context.Context, args []string, stdout, stderr io.Writer,
	watch func(context.Context, *watchOptions, io.Writer, io.Writer) error) error {
	o, err := parseWatchOptions(args)
	if err != nil {
		return err
	}
	if o.help {
		_, err := io.WriteString(stdout, watchHelpText())
		return err
	}
	return watch(ctx, o, stdout, stderr)
}
