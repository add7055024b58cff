package window

import (
	"errors"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// Outcome says what became of the kill set.
type Outcome struct {
	// Signalled counts those of the kill set that got their signal from the
	// engine, Gone those of them that are dead. A zombie is dead. Children
	// forked in the race are not counted: the observer knows which of them
	// were signalled.
	Signalled, Gone int
	// Survivors are alive at the end, children forked in the race included. The state
	// of those of whom that is not known is '?'.
	Survivors []waitgraph.Process
	// Skipped were not signalled because they were gone already.
	Skipped []Failure
	// Refused could not be signalled.
	Refused []Failure
	// Rounds counts the passes until nobody was left to signal.
	Rounds int
	// Window is how the killer fared.
	Window Measured
}

// Failure is a process that was not signalled, and why.
type Failure struct {
	Process waitgraph.Process
	Err     error
}

// ErrGone says that a process exited before the window.
var ErrGone = errors.New("exited before the window")

// Measured is what the killer knows about its own window. Times are nanoseconds.
type Measured struct {
	// OpenedNS is when the window opened, on CLOCK_MONOTONIC. Signals before it
	// are somebody else's.
	OpenedNS  uint64
	ArmNS     uint64 // from the first target confined to the opening
	DeliverNS uint64 // from the opening until the engine is done
	ReapNS    uint64 // from there until the corral opens
	OpenNS    uint64 // until everybody has its CPUs back
	// MinorFaults and MajorFaults are the killer's own page faults while it
	// delivered. The context switches are those where it slept, and those where
	// somebody of higher priority took its CPU: SCHED_FIFO gives way to the stop
	// class, in which the kernel's soft lockup detector runs every few seconds.
	MinorFaults, MajorFaults               int64
	VoluntarySwitches, InvoluntarySwitches int64
	// TargetSwitches counts context switches to the kill set while the killer
	// delivered, ReapSwitches from there until the corral opened.
	TargetSwitches, ReapSwitches uint64
	// Corral is nil where there was none.
	Corral *Corral
	Reap   Reap
}

// Corral says who was confined.
type Corral struct {
	CPU     int // when it was opened
	Threads int
	// Moves is how often it went to another CPU while memory was freed.
	Moves int
	// Closed is unset where the kill set started threads outside faster than
	// they could be confined.
	Closed bool
	// LeftOut could not be confined: a cpuset forbids it the CPU (EINVAL), or it
	// is not ours to confine (EPERM).
	LeftOut []Failure
}
