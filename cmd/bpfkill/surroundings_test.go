package main

import (
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// TestProcOfAnotherNamespace: where /proc shows other processes than this pid
// namespace has, whom a number means is in doubt, and nobody is signalled.
func TestProcOfAnotherNamespace(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 2)
	for _, args := range [][]string{
		{"--target", "smtpserver"},
		{"--target", "smtpserver", "--full"},
		{"--target", "smtpserver", "--dry-run"},
		{"watch", "--target", "smtpserver", "--duration", "1s"},
	} {
		cmd := toolCommand(t, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		o := runTool(t, cmd)
		if o.status != exitFatal || !strings.Contains(o.stderr, "/proc belongs to another pid namespace") {
			t.Errorf("%v: exit status %d, stderr %q", args, o.status, o.stderr)
		}
	}
	unharmed(t, s)
}

// TestInAUserNamespace: root of a user namespace has every capability, and none
// that counts.
func TestInAUserNamespace(t *testing.T) {
	nstest.Require(t)
	for _, args := range [][]string{{"--target", "nobody"}, {"doctor"}} {
		cmd := toolCommand(t, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
		}
		o := runTool(t, cmd)
		if o.status != exitFatal || !strings.Contains(o.stderr+o.stdout, "user namespace") {
			t.Errorf("%v: exit status %d, stderr %q, stdout %q", args, o.status, o.stderr, o.stdout)
		}
	}
}

// TestInATimeNamespace: a process that is seconds old is a day old by the clocks there.
func TestInATimeNamespace(t *testing.T) {
	nstest.Require(t)
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skipf("this kernel has no time namespaces: %v", err)
	}
	s := stage(t, "smtp", 2)
	// Before Linux 6.3 who has asked for it is in it from the next fork on, which the
	// shell makes; later from the next exec on, and then its clocks are set already.
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	const script = `echo "boottime 86400 0" >/proc/self/timens_offsets; "$@"; exit $?`
	cmd := exec.Command("/bin/sh", "-c", script, "sh", bin, "--target", storm.Target, "--older", "3600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWTIME}
	o := runTool(t, cmd)
	if o.status != exitFatal || !strings.Contains(o.stderr, "time namespace") {
		t.Errorf("exit status %d, stderr %q", o.status, o.stderr)
	}
	unharmed(t, s)
}

// TestReaderGoesAway: a report that nobody reads ends no kill half-way.
func TestReaderGoesAway(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 8)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := toolCommand(t, "--target", "smtpserver")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		t.Errorf("%v, want the status of the kill", err)
	}
	allGone(t, s)
}

// TestEndsOnSignals, but by none that it was told to ignore.
func TestEndsOnSignals(t *testing.T) {
	signal.Ignore(unix.SIGHUP)
	defer signal.Reset(unix.SIGHUP)
	ctx, stop := endOnSignals(t.Context())
	defer stop()
	raise(t, unix.SIGHUP)
	raise(t, unix.SIGQUIT) // is behind it in the same queue
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("SIGQUIT did not end it")
	}

	ctx, stop = endOnSignals(t.Context())
	defer stop()
	raise(t, unix.SIGHUP)
	select {
	case <-ctx.Done():
		t.Error("SIGHUP, which is ignored, ended it")
	case <-time.After(100 * time.Millisecond):
	}
}

func raise(t *testing.T, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(os.Getpid(), sig); err != nil {
		t.Fatal(err)
	}
}
