package loader

import (
	"math"
	"slices"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// marksOf is the trail of a stack.
func marksOf(t *testing.T, frames ...string) (out trail) {
	t.Helper()
	for _, f := range frames {
		i := slices.IndexFunc(landmarks, func(l landmark) bool { return l.name == f })
		if i >= 0 {
			out |= landmarks[i].marks
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
		{[]string{"try_to_wake_up", "autoremove_wake_function", "__wake_up_common", "__wake_up_sync_key", "pipe_release", "__fput", "do_exit"}, waitgraph.ChannelPipe},
		{[]string{"try_to_wake_up", "__wake_up_parent", "do_notify_parent", "exit_notify", "do_exit"}, waitgraph.ChannelChild},
		{[]string{"signal_wake_up_state", "complete_signal", "forget_original_parent", "exit_notify", "do_exit"}, waitgraph.ChannelParentDeath},
		{[]string{"try_to_wake_up", "complete", "mm_release", "exit_mm_release", "do_exit"}, waitgraph.ChannelChild},
		{[]string{"try_to_wake_up", "wake_up_q", "futex_wake", "exit_mm_release", "do_exit"}, waitgraph.ChannelFutex},
		{[]string{"try_to_wake_up", "fifo_open"}, waitgraph.ChannelOther},
	} {
		if got := marksOf(t, test.frames...).channel(); got != test.want {
			t.Errorf("%v: %v, want %v", test.frames, got, test.want)
		}
	}
}

func TestLayOut(t *testing.T) {
	marks := map[string]trail{"do_exit": markExit, irqTextStart: markInterrupt, irqTextEnd: 0, "pipe_release": markPipe}
	text := []textRange{
		{100, 110, irqTextStart}, {200, 210, irqTextEnd}, {300, 310, "pipe_release"}, {400, 410, "do_exit"},
	}
	got, err := layOut(text, marks)
	want := []observeLandmark{
		{Start: 100, End: 200, Marks: uint64(markInterrupt)}, {Start: 300, End: 310, Marks: uint64(markPipe)},
		{Start: 400, End: 410, Marks: uint64(markExit)}, {Start: math.MaxUint64},
	}
	if err != nil || len(got) != landmarksMax || !slices.Equal(got[:4], want) || got[landmarksMax-1] != want[3] {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := layOut(text[:3], marks); err == nil {
		t.Error("no error although do_exit is not there")
	}
	if _, err := layOut(append(slices.Repeat(text[2:3], landmarksMax), text[3]), marks); err == nil {
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
	for _, m := range []trail{markExit, markInterrupt, markKernel, markPipe, markChild, markFutex} {
		if all&uint64(m) == 0 {
			t.Errorf("no function has mark %#x", m)
		}
	}
}
