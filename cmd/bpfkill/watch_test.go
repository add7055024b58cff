package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/report"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// chatter makes this process and a decoy wake each other until the test ends.
func chatter(t *testing.T) *nstest.DecoyProcess {
	t.Helper()
	d := decoy(t, "chatterbox")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if err := d.Alive(); err != nil {
					return // the decoy's own cleanup says so
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return d
}

// TestWatch: an object a second says who wakes whom, in both directions: the
// selected wakes another, which wakes it back.
func TestWatch(t *testing.T) {
	nstest.Require(t)
	d := chatter(t)
	cmd := toolCommand(t, "watch", "--pid", strconv.Itoa(os.Getpid()), "--duration", "3s", "--output", "json")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var watches []report.Watch
	for line := range strings.Lines(string(out)) {
		var w report.Watch
		if err := json.Unmarshal([]byte(line), &w); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		watches = append(watches, w)
	}
	// An interval that is over late swallows the next: that can be seen in a machine that
	// is emulated beside others.
	if n := len(watches); n > 3 || n < 3 && (n == 0 || !emulated) {
		t.Fatalf("%d objects in 3 seconds: %s", n, out)
	}
	self := int32(os.Getpid())
	for i, w := range watches {
		there, back := wakes(&w, self, int32(d.PID)), wakes(&w, int32(d.PID), self)
		if there == 0 || back == 0 {
			t.Errorf("interval %d: %d wakes there, %d back: %+v", i, there, back, w)
		}
		if w.Version != 1 || w.Selected != 1 || w.Met == 0 || w.LostEvents != 0 || w.IntervalNS == 0 {
			t.Errorf("interval %d: %+v", i, w)
		}
	}
	if nstest.InVM() {
		requireNothingLoaded(t)
	}
}

func wakes(w *report.Watch, from, to int32) (n uint64) {
	for _, c := range w.Wakes {
		if c.Cause == from && c.PID == to && c.Channel == "pipe" {
			n += c.Count
		}
	}
	return n
}

// TestWatchKillsNobody, and tells people by name, on a terminal and elsewhere.
func TestWatchKillsNobody(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 8)
	chatter(t)
	o := runBpfkill(t, "watch", "--target", storm.Target+"|chatterbox", "--duration", "1s")
	if o.status != exitGone || o.stderr != "" {
		t.Errorf("exit status %d, stderr %q", o.status, o.stderr)
	}
	for _, want := range []string{"/s  chatterbox -> ", "bpfkill watch: 9 processes selected", "PER SECOND"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%q is not in %s", want, o.stdout)
		}
	}
	unharmed(t, s)
}

func TestWatchOnATerminal(t *testing.T) {
	nstest.Require(t)
	chatter(t)
	master, slave := openPTY(t)
	cmd := toolCommand(t, "watch", "--target", "chatterbox")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = slave, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	screen := bufio.NewScanner(master)
	for frame := range 2 { // each begins at the top left
		for screen.Scan() && !strings.Contains(screen.Text(), "\x1b[Hbpfkill watch: 1 process selected") {
		}
		for screen.Scan() && !strings.Contains(screen.Text(), "chatterbox  ") {
		}
		if screen.Err() != nil || !strings.HasSuffix(strings.TrimSpace(screen.Text()), "pipe\x1b[K") {
			t.Errorf("frame %d: %q, %v", frame, screen.Text(), screen.Err())
		}
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || stderr.Len() != 0 {
		t.Errorf("interrupted: %v, stderr %q", err, stderr.String())
	}
}

// TestWatchCannotWrite: it ends at the first interval that it cannot show, with one
// line that says why; in silence where its reader has seen enough.
func TestWatchCannotWrite(t *testing.T) {
	nstest.Require(t)
	chatter(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	r, closed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	r.Close()
	ways := [][]string{nil, {"--output", "json"}, {"--duration", "1s"}}
	if emulated {
		ways = ways[1:2]
	}
	for _, test := range []struct {
		name   string
		stdout *os.File
		status int
		stderr string
	}{
		{"full", full, exitFatal, "bpfkill: write the watch: write /dev/stdout: no space left on device\n"},
		{"closed pipe", closed, exitGone, ""},
	} {
		for _, args := range ways {
			cmd := toolCommand(t, append([]string{"watch", "--target", "chatterbox"}, args...)...)
			var stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = test.stdout, &stderr
			err := cmd.Run()
			if status := cmd.ProcessState.ExitCode(); status != test.status || stderr.String() != test.stderr {
				t.Errorf("%s %q: %v, stderr %q; want exit status %d, stderr %q", test.name, args, err, stderr.String(), test.status, test.stderr)
			}
		}
	}
}

func TestWatchFindsNobody(t *testing.T) {
	nstest.Require(t)
	o := runBpfkill(t, "watch", "--target", "nosuchprocess")
	if o.status != exitNoMatch || o.stderr != "bpfkill: no process matched\n" || o.stdout != "" {
		t.Errorf("%+v", o)
	}
}

func TestWatchWithoutPrivileges(t *testing.T) {
	nstest.Require(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "watch", "--target", "x")
	unprivileged(t, cmd)
	if o := runTool(t, cmd); o.status != exitFatal || !strings.Contains(o.stderr, "CAP_BPF") || o.stdout != "" {
		t.Errorf("%+v", o)
	}
}
