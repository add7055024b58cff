package loader

import (
	"errors"
	"fmt"
	"math"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// trail is the set of marks of the functions on a waker's kernel stack.
type trail uint64

// Marks. The first three are the kernel side's own, see record.h.
const (
	markExit      trail = 1 << iota // where a process exits: the trail ends there
	markInterrupt                   // where interrupts and exceptions enter the kernel
	markKernel                      // hands on a lock or a page of the kernel's own
	markPipe
	markChild
	markFutex
	markParentDeath
)

// Where interrupts and exceptions enter the kernel: a part of its text, not a
// function.
const irqTextStart, irqTextEnd = "__irqentry_text_start", "__irqentry_text_end"

// landmark is a kernel function that says something when a wake comes from
// inside it. Compilers add .isra, .part, .constprop and .cold to some names,
// and inline static functions on one kernel but not on another.
type landmark struct {
	name  string
	marks trail
}

var landmarks = []landmark{
	{"do_exit", markExit},
	{irqTextStart, markInterrupt}, {irqTextEnd, 0},

	// Whoever waits for these would run on in any case.
	{"rwsem_wake", markKernel}, {"up_read", markKernel}, {"up_write", markKernel},
	{"mutex_unlock", markKernel}, {"__mutex_unlock_slowpath", markKernel}, {"up", markKernel},
	{"percpu_up_write", markKernel}, {"folio_unlock", markKernel}, {"unlock_page", markKernel},
	{"wake_page_function", markKernel}, {"bit_wake_function", markKernel}, {"var_wake_function", markKernel},

	{"pipe_release", markPipe}, // fifo_open shares it: FIFOs count as pipes
	{"do_notify_parent", markChild},
	{"exit_notify", markChild},
	{"mm_release", markChild}, // a vfork parent gets its child's memory back
	{"exit_mm_release", markChild},
	{"futex_wake", markFutex},
	{"forget_original_parent", markParentDeath},
}

// channel names the channel of a wake, the most telling mark first.
func (t trail) channel() waitgraph.Channel {
	for _, m := range []struct {
		mark    trail
		channel waitgraph.Channel
	}{
		{markPipe, waitgraph.ChannelPipe},
		{markFutex, waitgraph.ChannelFutex},
		{markParentDeath, waitgraph.ChannelParentDeath},
		{markChild, waitgraph.ChannelChild},
	} {
		if t&m.mark != 0 {
			return m.channel
		}
	}
	return waitgraph.ChannelOther
}

// landmarksMax is LANDMARKS_MAX of record.h.
const landmarksMax = 128

// landmarkTable reads where the landmarks are in the running kernel.
func landmarkTable() ([]observeLandmark, error) {
	marks := make(map[string]trail, len(landmarks))
	for _, l := range landmarks {
		marks[l.name] = l.marks
	}
	text, err := functionRanges(func(name []byte) bool { _, ok := marks[string(name)]; return ok })
	if err != nil {
		return nil, err
	}
	return layOut(text, marks)
}

// layOut makes the kernel side's table: ascending, without overlaps, and of
// its full length.
func layOut(text []textRange, marks map[string]trail) ([]observeLandmark, error) {
	var irqEnd uint64
	exit := false
	for _, t := range text {
		exit = exit || marks[t.name] == markExit
		if t.name == irqTextEnd {
			irqEnd = t.start
		}
	}
	if !exit {
		return nil, errors.New("kernel symbol do_exit not found: the kernel must be built with CONFIG_KALLSYMS")
	}
	table := make([]observeLandmark, 0, landmarksMax)
	for _, t := range text {
		if t.name == irqTextStart {
			t.end = irqEnd
		}
		if t.end == 0 { // the last symbol of all
			t.end = t.start + 4096
		}
		if marks[t.name] != 0 {
			table = append(table, observeLandmark{Start: t.start, End: t.end, Marks: uint64(marks[t.name])})
		}
	}
	if len(table) > landmarksMax {
		return nil, fmt.Errorf("%d kernel functions tell wakes apart: no more than %d fit", len(table), landmarksMax)
	}
	for len(table) < landmarksMax {
		table = append(table, observeLandmark{Start: math.MaxUint64})
	}
	return table, nil
}
