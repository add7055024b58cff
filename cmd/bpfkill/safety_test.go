package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
)

// named returns the pids of the living processes of a name, from /proc.
func named(t *testing.T, comm string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue // gone
		}
		text := string(stat)
		open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		if text[open+1:end] == comm && text[end+2] != 'Z' && text[end+2] != 'X' {
			pid, err := strconv.Atoi(filepath.Base(d))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// decoy starts a process of a name that must live; stop checks that it does.
func decoy(t *testing.T, comm string, attr ...func(*exec.Cmd)) *nstest.DecoyProcess {
	t.Helper()
	d, err := nstest.StartDecoy(comm, attr...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestNeverOutsideItsPidNamespace(t *testing.T) {
	nstest.Require(t)
	outside := decoy(t, storm.Target)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--target", storm.Target}, {"--pid", strconv.Itoa(outside.PID)}} {
		cmd, err := nstest.Command(bin, args...)
		if err != nil {
			t.Fatal(err)
		}
		o := runTool(t, cmd)
		if o.status != exitNoMatch {
			t.Errorf("%v: exit status %d, stderr %q: the namespace is empty", args, o.status, o.stderr)
		}
		if err := outside.Alive(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNeverItselfNorItsAncestors(t *testing.T) {
	nstest.Require(t)
	for _, args := range [][]string{
		{"--target", "^bpfkill$"},
		{"--pid", "1"},
		{"--pid", strconv.Itoa(os.Getpid())},
		{"--target", "kthreadd|ksoftirqd"},
	} {
		o := runBpfkill(t, args...)
		if o.status != exitNoMatch {
			t.Errorf("%v: exit status %d, stderr %q, stdout %q", args, o.status, o.stderr, o.stdout)
		}
	}
}

func TestProtectedLive(t *testing.T) {
	nstest.Require(t)
	s := stage(t, "smtp", 8)
	o := runBpfkill(t, "--target", storm.Target, "--protect", "^router$", "--output", "json")
	if o.status != exitGone {
		t.Fatalf("exit status %d, stderr %q", o.status, o.stderr)
	}
	for _, p := range o.report.Plan.Processes {
		if p.Comm == "router" {
			t.Errorf("protected %s[%d] is in the kill set", p.Comm, p.PID)
		}
	}
	if n := len(exceptParent(o.report.Plan.Bystanders)); n != 8 {
		t.Errorf("%d bystanders, want the 8 protected routers", n)
	}
	for _, p := range s.Woken() {
		if p.Comm != "router" {
			t.Errorf("%s[%d] ran", p.Comm, p.PID)
		}
	}
}

// TestForkersLeaveNobody kills processes that fork as fast as they can.
func TestForkersLeaveNobody(t *testing.T) {
	nstest.Require(t)
	rounds, size, engines := 10, 8, engines()
	if emulated { // they take the machine for themselves, before bpfkill has begun
		rounds, size, engines = 1, 3, engines[:1]
	}
	for _, engine := range engines {
		for round := range rounds {
			t.Run(fmt.Sprintf("%s/%d", engine, round), func(t *testing.T) {
				s := stage(t, "forker", size)
				o := runBpfkill(t, "--target", storm.Target, "--engine", engine, "--timeout", "2m", "--output", "json")
				if o.status != exitGone {
					t.Fatalf("exit status %d, stderr %q, report %s", o.status, o.stderr, o.stdout)
				}
				alive, err := s.Alive()
				if err != nil {
					t.Fatal(err)
				}
				if len(alive) > 0 {
					t.Errorf("survivors: %+v", alive)
				}
				if pids := named(t, storm.Target); len(pids) > 0 {
					t.Errorf("%d processes of the tree are left: %v", len(pids), pids)
				}
			})
		}
	}
}

// TestRunnersDoNotEscape kills a process that forks and exits at once, over and
// over: whoever the snapshot shows is dead before the window opens.
func TestRunnersDoNotEscape(t *testing.T) {
	nstest.Require(t)
	script := filepath.Join(t.TempDir(), "runner")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n\"$0\" &\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	rounds, engines := 20, engines()
	if emulated {
		rounds, engines = 2, engines[:1]
	}
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			for range rounds {
				if err := exec.Command(script).Run(); err != nil {
					t.Fatal(err)
				}
				o := runBpfkill(t, "--target", "^runner$", "--engine", engine, "--timeout", "2m", "--output", "json")
				// Nobody bore the name at the moment of the snapshot: try again.
				for o.status == exitNoMatch {
					o = runBpfkill(t, "--target", "^runner$", "--engine", engine, "--timeout", "2m", "--output", "json")
				}
				if o.status != exitGone {
					t.Fatalf("exit status %d, stderr %q, stdout %s", o.status, o.stderr, o.stdout)
				}
				for range 20 {
					if pids := named(t, "runner"); len(pids) > 0 {
						t.Fatalf("runner %v escaped: %s", pids, o.stdout)
					}
				}
			}
		})
	}
}

// unprivileged makes cmd run as an ordinary user with nothing but the
// capabilities given, as far as this machine has them at all.
func unprivileged(t *testing.T, cmd *exec.Cmd, caps ...uintptr) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	caps = slices.DeleteFunc(caps, func(c uintptr) bool { return data[c/32].Permitted&(1<<(c%32)) == 0 })
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 1000, Gid: 1000},
		AmbientCaps: caps,
	}
}

func TestRefusesWhatKillRefuses(t *testing.T) {
	nstest.Require(t)
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, engine := range engines() {
		t.Run(engine, func(t *testing.T) {
			own := decoy(t, storm.Target, func(cmd *exec.Cmd) { unprivileged(t, cmd) })
			others := decoy(t, storm.Target) // root's
			cmd := exec.Command(bin, "--target", storm.Target, "--engine", engine, "--timeout", "2m", "--output", "json")
			unprivileged(t, cmd, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYSLOG, unix.CAP_SYS_RESOURCE)
			o := runTool(t, cmd)
			if o.status != exitPartial {
				t.Fatalf("exit status %d, want %d; stderr %q", o.status, exitPartial, o.stderr)
			}
			if err := others.Alive(); err != nil {
				t.Error(err)
			}
			if o.report.Result.Signalled != 1 || o.report.Result.Gone != 1 {
				t.Errorf("signalled %d, gone %d, want the one that is the caller's own", o.report.Result.Signalled, o.report.Result.Gone)
			}
			if len(o.report.Result.Skipped) != 1 || int(o.report.Result.Skipped[0].PID) != others.PID {
				t.Errorf("skipped %+v, want %d", o.report.Result.Skipped, others.PID)
			}
			if own.Alive() == nil {
				t.Error("the caller's own process lives")
			}
		})
	}
}
