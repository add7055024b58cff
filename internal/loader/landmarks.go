package loader

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// trail is the set of marks of the functions on a waker's kernel stack.
type trail uint64

// Marks. The first ten are the kernel side's own, see record.h.
const (
	markExit         trail = 1 << iota // where a process exits
	markInterrupt                      // where interrupts and exceptions enter the kernel
	markSoftirq                        // where deferred interrupt work runs
	markKernel                         // hands on a lock or a page of the kernel's own
	markTCPReceive                     // takes a segment for a TCP socket
	markNotifyParent                   // tells a parent, and whoever polls a pidfd
	markWait                           // no function's: the wakee waits for its children
	markTCP                            // sends on a TCP socket, closes it, or reads from it
	markQueue                          // wakes whoever is in a wait queue; never in a trail
	markPidfd                          // tells whoever polls a pidfd

	markPipe
	markFIFO
	markUnix
	markPTY
	markSignal // any
	markSigio
	markProcessGroup
	markPtrace
	markVfork
	markLock
	markFutex
	markFile // its last reference goes
	markEpoll
	markNotify // tells inotify and fanotify
)

// Where interrupts and exceptions enter the kernel: a part of its text, not a
// function.
const irqTextStart, irqTextEnd = "__irqentry_text_start", "__irqentry_text_end"

// int80 is in there since v6.7 (be5341eb0d43), and in later releases of older kernels: a
// system call all the same.
const int80 = "asm_int80_emulation"

// landmarks are the kernel functions that say something when a wake comes from
// inside them. Compilers add .isra, .part, .constprop and .cold to some names,
// and inline static functions on one kernel but not on another.
var landmarks = map[trail][]string{
	markExit:         {"do_exit"},
	markInterrupt:    {irqTextStart, "asm_fred_entrypoint_kernel", "fred_extint", "el1_irq", "el1h_64_irq", "el1h_64_irq_handler"},
	markSoftirq:      {"__do_softirq", "handle_softirqs", "__napi_poll"},
	markTCPReceive:   {"tcp_v4_rcv", "tcp_v6_rcv"},
	markQueue:        {"__wake_up", "__wake_up_common", "__wake_up_common_lock"},
	markNotifyParent: {"do_notify_parent", "do_notify_parent_cldstop"},
	// Whoever waits for these would run on in any case.
	markKernel: {
		"rwsem_wake", "up_read", "up_write", "mutex_unlock", "__mutex_unlock_slowpath", "up", "percpu_up_write",
		"folio_unlock", "unlock_page", "wake_page_function",
	},

	// The first of each is what a death comes through; the others are what an
	// ordinary wake does, and whoever unwinds from a sleep and passes it on.
	markPipe: {
		"pipe_release", "pipe_read", "pipe_write", "anon_pipe_read", "anon_pipe_write",
		"do_splice", "do_tee", "__do_sys_vmsplice",
	},
	// Since v6.15; before, and at a release, a FIFO cannot be told from a pipe.
	markFIFO: {"fifo_pipe_read", "fifo_pipe_write", "fifo_open"},
	markUnix: {
		"unix_release_sock", "unix_release", "unix_shutdown", "unix_accept", "unix_stream_connect",
		"unix_dgram_connect", "unix_stream_sendmsg", "unix_dgram_sendmsg", "unix_seqpacket_sendmsg",
		"unix_stream_recvmsg", "unix_stream_read_generic", "unix_dgram_recvmsg", "__unix_dgram_recvmsg",
	},
	markTCP: {
		"tcp_close", "__tcp_close", "inet_shutdown", "tcp_shutdown", "tcp_v4_connect", "tcp_v6_connect",
		"inet_csk_accept", "tcp_sendmsg", "tcp_sendmsg_locked", "tcp_recvmsg", "tcp_splice_read",
	},
	markPTY: {
		"tty_release", "pty_close", "__tty_hangup", "tty_vhangup", "tty_vhangup_session", "disassociate_ctty",
		"tty_write", "tty_read", "tty_ioctl",
	},

	markPidfd:        {"do_notify_pidfd"}, // inlined into do_notify_parent until v6.8
	markSignal:       {"__send_signal", "__send_signal_locked", "complete_signal"},
	markSigio:        {"kill_fasync", "send_sigio"}, // from a file's wake, whatever file it is
	markProcessGroup: {"__kill_pgrp_info", "kill_orphaned_pgrp"},
	markPtrace:       {"exit_ptrace"},
	markVfork:        {"mm_release", "exit_mm_release", "exec_mm_release"}, // the parent gets its memory back

	markLock: {
		"locks_remove_posix", "locks_remove_file", "locks_remove_flock", "locks_delete_block",
		"posix_lock_inode", "flock_lock_inode",
	},
	markFutex: {
		"futex_wake", "futex_wake_op", "futex_requeue", "futex_unlock_pi", "futex_exit_release",
		"exit_robust_list", "handle_futex_death", "exit_pi_state_list", "rt_mutex_futex_unlock",
	},
	markFile:   {"__fput"},
	markEpoll:  {"ep_poll_callback"},
	markNotify: {"fsnotify"},
}

// channel names the channel of a wake, by the most telling mark.
func (t trail) channel() waitgraph.Channel {
	has := func(m trail) bool { return t&m != 0 }
	switch {
	case has(markSigio):
		return waitgraph.ChannelSignal
	case has(markTCPReceive | markTCP):
		return waitgraph.ChannelTCP
	case has(markFIFO):
		return waitgraph.ChannelFIFO
	case has(markPipe):
		return waitgraph.ChannelPipe
	case has(markUnix):
		return waitgraph.ChannelUnix
	case has(markPTY):
		return waitgraph.ChannelPTY
	case has(markLock):
		return waitgraph.ChannelLock
	case has(markNotifyParent) && has(markWait|markSignal):
		return waitgraph.ChannelChild
	case has(markNotifyParent | markPidfd):
		return waitgraph.ChannelPidfd
	case has(markFutex): // before vfork: robust futexes are in there, too
		return waitgraph.ChannelFutex
	case has(markVfork):
		return waitgraph.ChannelChild
	case has(markProcessGroup | markPtrace):
		return waitgraph.ChannelSignal
	case has(markSignal) && has(markExit) && !has(markFile):
		// Not from a file's end, and none of the above: forget_original_parent
		// is inlined into do_exit.
		return waitgraph.ChannelParentDeath
	case has(markSignal):
		return waitgraph.ChannelSignal
	case has(markEpoll) && !has(markNotify): // those have no channel of their own
		return waitgraph.ChannelEpoll
	}
	return waitgraph.ChannelOther
}

// tellingMarks are those of which each alone names a channel.
func tellingMarks() (all trail) {
	for m := trail(1); m != 0; m <<= 1 {
		if c := m.channel(); c != waitgraph.ChannelOther && c != waitgraph.ChannelEpoll {
			all |= m
		}
	}
	return all
}

// landmarksMax is LANDMARKS_MAX of record.h.
const landmarksMax = 128

// ReadAhead begins to read what [NewObserver] and [NewWatcher] need of the kernel's
// symbols, beside what the caller does meanwhile: it takes as long as loading an
// object does.
func ReadAhead() { go landmarkTable() }

// landmarkTable reads where the landmarks are in the running kernel, once.
var landmarkTable = sync.OnceValues(readLandmarks)

func readLandmarks() ([]observeLandmark, error) {
	marks := map[string]trail{irqTextEnd: 0, int80: 0}
	for mark, names := range landmarks {
		for _, n := range names {
			marks[n] |= mark
		}
	}
	text, err := functionRanges(func(name []byte) bool { _, ok := marks[string(name)]; return ok }, modulesBuiltIn)
	if err != nil {
		return nil, err
	}
	return layOut(text, marks)
}

// modulesBuiltIn reports whether a kernel's own text has what may be in modules:
// AF_UNIX and IPv6.
func modulesBuiltIn(text []textRange) bool {
	has := func(name string) bool {
		return slices.ContainsFunc(text, func(t textRange) bool { return t.name == name })
	}
	return has("unix_release") && has("tcp_v6_rcv")
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
		if n := len(table); t.name == int80 && n > 0 && t.end < table[n-1].End {
			rest := table[n-1]
			table[n-1].End, rest.Start = t.start, t.end
			table = append(table, rest)
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
