package loader

import (
	"math"
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// marksOf is the trail of a stack.
func marksOf(frames ...string) (out trail) {
	for mark, names := range landmarks {
		for _, f := range frames {
			if slices.Contains(names, f) {
				out |= mark
			}
		}
	}
	return out
}

func TestChannelOfATrail(t *testing.T) {
	for _, test := range []struct {
		frames []string
		want   waitgraph.Channel
	}{
		{nil, waitgraph.ChannelOther},
		{[]string{"try_to_wake_up", "do_exit"}, waitgraph.ChannelOther},
		{[]string{"__wake_up", "anon_pipe_write", "fifo_pipe_write", "vfs_write"}, waitgraph.ChannelFIFO},
		{[]string{"try_to_wake_up", "pipe_release", "__fput", "do_exit"}, waitgraph.ChannelPipe},
		{[]string{"try_to_wake_up", "ep_poll_callback", "ep_poll_callback", "pipe_release", "__fput", "do_exit"}, waitgraph.ChannelPipe},
		{[]string{"sock_def_wakeup", "unix_release_sock", "unix_release", "do_exit"}, waitgraph.ChannelUnix},
		{[]string{"sock_def_wakeup", "tcp_fin", "tcp_v4_rcv", "__napi_poll", "handle_softirqs"}, waitgraph.ChannelTCP},
		{[]string{"tty_wakeup", "pty_close", "tty_release", "do_exit"}, waitgraph.ChannelPTY},
		{[]string{"complete_signal", "__send_signal_locked", "tty_signal_session_leader", "__tty_hangup", "tty_release", "do_exit"}, waitgraph.ChannelPTY},
		{[]string{"complete_signal", "group_send_sig_info", "__kill_pgrp_info", "disassociate_ctty", "do_exit"}, waitgraph.ChannelPTY},
		{[]string{"complete_signal", "__send_signal", "do_notify_parent", "do_exit"}, waitgraph.ChannelChild},
		{[]string{"__wake_up", "__send_signal_locked", "do_notify_parent", "do_exit"}, waitgraph.ChannelChild}, // signalfd
		{[]string{"__wake_up", "do_notify_parent", "do_exit"}, waitgraph.ChannelPidfd},                         // until v6.8
		{[]string{"__wake_up", "do_notify_pidfd", "do_notify_parent", "do_exit"}, waitgraph.ChannelPidfd},
		{[]string{"__wake_up", "do_notify_pidfd", "do_exit"}, waitgraph.ChannelPidfd},
		{[]string{"complete_signal", "__send_signal_locked", "do_send_sig_info", "do_exit"}, waitgraph.ChannelParentDeath},
		{[]string{"complete_signal", "__send_signal_locked", "do_send_sig_info", "kill_fasync", "pipe_release", "__fput", "do_exit"}, waitgraph.ChannelSignal},
		{[]string{"complete_signal", "__send_signal_locked", "group_send_sig_info", "__kill_pgrp_info", "kill_orphaned_pgrp", "do_exit"}, waitgraph.ChannelSignal},
		{[]string{"signal_wake_up_state", "exit_ptrace", "do_exit"}, waitgraph.ChannelSignal},
		{[]string{"try_to_wake_up", "complete", "mm_release", "exit_mm_release", "do_exit"}, waitgraph.ChannelChild},
		{[]string{"wake_up_q", "futex_wake", "mm_release", "exit_mm_release", "do_exit"}, waitgraph.ChannelFutex},
		{[]string{"wake_up_q", "futex_wake", "handle_futex_death", "futex_exit_release", "exit_mm_release", "do_exit"}, waitgraph.ChannelFutex},
		{[]string{"__wake_up", "__locks_wake_up_blocks", "locks_remove_posix", "filp_close", "do_exit"}, waitgraph.ChannelLock},
		{[]string{"ep_poll_callback", "something_new", "do_exit"}, waitgraph.ChannelEpoll},
		{[]string{"ep_poll_callback", "fsnotify_insert_event", "fsnotify", "__fput", "do_exit"}, waitgraph.ChannelOther},
	} {
		if got := marksOf(test.frames...).channel(); got != test.want {
			t.Errorf("%v: %v, want %v", test.frames, got, test.want)
		}
	}
	if got := (marksOf("do_notify_parent", "do_exit") | markWait).channel(); got != waitgraph.ChannelChild {
		t.Errorf("a parent that waits is woken through %v", got)
	}
}

func TestLayOut(t *testing.T) {
	marks := map[string]trail{"do_exit": markExit, irqTextStart: markInterrupt, irqTextEnd: 0, int80: 0, "pipe_release": markPipe}
	text := []textRange{
		{100, 110, irqTextStart}, {150, 160, int80}, {200, 210, irqTextEnd}, {300, 310, "pipe_release"}, {400, 410, "do_exit"},
	}
	got, err := layOut(text, marks)
	want := []observeLandmark{
		{Start: 100, End: 150, Marks: uint64(markInterrupt)}, {Start: 160, End: 200, Marks: uint64(markInterrupt)}, {Start: 300, End: 310, Marks: uint64(markPipe)},
		{Start: 400, End: 410, Marks: uint64(markExit)}, {Start: math.MaxUint64},
	}
	if err != nil || len(got) != landmarksMax || !slices.Equal(got[:5], want) || got[landmarksMax-1] != want[4] {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := layOut(text[:4], marks); err == nil {
		t.Error("no error although do_exit is not there")
	}
	if _, err := layOut(append(slices.Repeat(text[3:4], landmarksMax), text[4]), marks); err == nil {
		t.Error("no error although they do not fit")
	}
}

// TestLandmarksOfThisKernel: what no compiler may inline is there, and no range
// swallows the next.
func TestLandmarksOfThisKernel(t *testing.T) {
	nstest.Require(t)
	table, err := landmarkTable()
	must(t, err)
	var all uint64
	for i, l := range table {
		all |= l.Marks
		if l.Marks != 0 && (l.Start >= l.End || l.End > table[i+1].Start || l.End-l.Start > 1<<16) {
			t.Errorf("landmark %d has marks %#x, %d bytes and overlaps the next by %d", i, l.Marks, l.End-l.Start, int64(l.End-table[i+1].Start))
		}
	}
	for m := markExit; m <= markNotify; m <<= 1 {
		if m == markPidfd || m == markWait {
			continue // inlined until v6.8; of no function
		}
		if all&uint64(m) == 0 {
			t.Errorf("no function has mark %#x", m)
		}
	}
}
