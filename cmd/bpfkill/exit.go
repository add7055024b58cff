package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/bpfkill/bpfkill/internal/target"
)

// Exit statuses. 0, 1, 2 and 3 mean what they mean to pkill(1), 64 what it
// means to kill(1).
const (
	exitGone      = 0  // every process of the kill set is gone
	exitNoMatch   = 1  // no process matched the selection
	exitUsage     = 2  // the command line is wrong
	exitFatal     = 3  // fatal, and nothing was signalled
	exitSurvivors = 4  // the window ran, but some survived the timeout
	exitPartial   = 64 // some processes could not be signalled
)

// exitError is an error that carries the status to exit with. A nil err has
// nothing to say: the report has said it already.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usageErrorf(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// exitStatus says which status err stands for, and prints its message to
// stderr in one line. An error without a status happened before anything was
// signalled: whoever signals must say how it ended.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return exitGone
	}
	status := exitFatal
	var exit *exitError
	var usage *target.UsageError
	switch {
	case errors.As(err, &exit):
		status = exit.status
		if exit.err == nil {
			return status
		}
	case errors.As(err, &usage):
		status = exitUsage
	}
	fmt.Fprintf(stderr, "bpfkill: %v\n", err)
	return status
}
