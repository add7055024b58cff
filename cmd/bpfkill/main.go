// Bpfkill kills a set of processes so that nobody who was asleep runs
// because of it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/window"
)

func main() {
	if window.IsGuardian() {
		os.Exit(window.Guard())
	}
	if isPatient() {
		os.Exit(lieDown())
	}
	// A reader of the report that went away must not end a kill half-way: the
	// write fails, and says so.
	signal.Ignore(unix.SIGPIPE)
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, commands{kill, watch, runDoctor})
	os.Exit(exitStatus(err, os.Stderr))
}

// endOnSignals returns a context that ends when this process is told to end, but
// by no signal that it was started to ignore, as nohup(1) does.
func endOnSignals(ctx context.Context) (context.Context, context.CancelFunc) {
	heard := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}
	heard = slices.DeleteFunc(heard, signal.Ignored)
	if len(heard) == 0 { // NotifyContext would take that for all there are
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, heard...)
}

// commands are what the tool does. Results go to stdout, notes and progress to
// stderr.
type commands struct {
	// kill carries out what the options ask for. An error returned after the
	// first signal must be an [exitError].
	kill   func(ctx context.Context, o *options, stdout, stderr io.Writer) error
	watch  func(ctx context.Context, o *watchOptions, stdout, stderr io.Writer) error
	doctor func(ctx context.Context, o *doctorOptions, stdout, stderr io.Writer) error
}

// run is the whole tool but for the exit. It does not touch the system before
// it calls a command.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, c commands) error {
	if len(args) > 0 {
		switch args[0] {
		case "watch":
			o, err := parseWatchOptions(args[1:])
			return runCommand(ctx, o, err, o != nil && o.help, watchHelpText, c.watch, stdout, stderr)
		case "doctor":
			o, err := parseDoctorOptions(args[1:])
			return runCommand(ctx, o, err, o != nil && o.help, doctorHelpText, c.doctor, stdout, stderr)
		}
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

// runCommand is the common part of the commands that have a name: the options
// are wrong, or ask for help, or are carried out.
func runCommand[O any](ctx context.Context, o *O, err error, help bool, text func() string,
	command func(context.Context, *O, io.Writer, io.Writer) error, stdout, stderr io.Writer) error {
	if err != nil {
		return err
	}
	if help {
		_, err := io.WriteString(stdout, text())
		return err
	}
	return command(ctx, o, stdout, stderr)
}
