package window

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/cgroup2"
	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// testCgroup makes a cgroup v2 directory below parent, or below the mount, and
// removes it at the end of the test.
func testCgroup(t *testing.T, parent string) string {
	t.Helper()
	nstest.Require(t)
	if parent == "" {
		mount, err := cgroup2.Mount()
		if err != nil {
			t.Skip(err)
		}
		parent = mount
	}
	dir, err := os.MkdirTemp(parent, "bpfkill-test-")
	must(t, err)
	t.Cleanup(func() {
		// The dead leave a cgroup only when they are reaped.
		eventually(t, "the test's cgroup is removed", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, os.ErrNotExist)
		})
	})
	return dir
}

func moveInto(t *testing.T, dir string, pid int) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
}

// startShell starts a shell that does what it is told to, and returns its standard input.
func startShell(t *testing.T, script string) (pid int, in io.Writer) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	pipe, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill() // it may be dead
		cmd.Wait()         // before the end of its input: that would have it go on
		pipe.Close()
	})
	return cmd.Process.Pid, pipe
}

// TestCgroupEngine kills the population of a subtree, its children included, or
// nobody: where somebody else is there, from the start or at the last moment.
func TestCgroupEngine(t *testing.T) {
	const none, early, late, child, init = "nobody else", "a stranger", "a latecomer", "a child", "a child that is an init"
	for _, other := range []string{none, early, late, child, init} {
		t.Run(other, func(t *testing.T) {
			top := testCgroup(t, "")
			below := testCgroup(t, top)
			k := newKernel(t)
			s := stage(t, "sleepers", 6)
			for i, p := range s.Processes() {
				moveInto(t, []string{top, below}[i%2], p.PID)
			}
			stranger := startIdle(t)
			if other == early {
				moveInto(t, below, stranger.Process.Pid)
			}
			fork := "sleep 1000"
			if other == init {
				fork = "unshare -fp sleep 1000"
			}
			forker, order := startShell(t, "read line; "+fork+" & read line")
			moveInto(t, below, forker)
			all := processes(t, k)
			victims := append(membersOf(t, s, all), byPID(all, forker)...)
			o := options(EngineCgroup, all)
			var err error
			o.CgroupKill, err = CgroupOf(victims)
			if !nstest.KernelAtLeast(t, 5, 14) {
				if err == nil || !strings.Contains(err.Error(), loader.CgroupKillSince) {
					t.Errorf("%v, want an error that names Linux %s", err, loader.CgroupKillSince)
				}
				return
			}
			must(t, err)
			if want := filepath.Join(top, "cgroup.kill"); o.CgroupKill != want {
				t.Errorf("%s, want %s", o.CgroupKill, want)
			}
			out, err := Run(t.Context(), disturbed{k, func() {
				switch other {
				case late:
					moveInto(t, below, stranger.Process.Pid)
				case child:
					fmt.Fprintln(order)
					eventually(t, "it has a child", func() bool {
						pids, err := cgroupProcs(below)
						must(t, err)
						return len(pids) == len(victims)/2+2
					})
				case init: // and the unshare that waits for it
					fmt.Fprintln(order)
					eventually(t, "it has a child that is an init", func() bool {
						pids, err := cgroupProcs(below)
						must(t, err)
						return len(pids) == len(victims)/2+3
					})
				}
			}}, victims, o)
			alive, aliveErr := s.Alive()
			must(t, aliveErr)
			if dead(stranger.Process.Pid) {
				t.Error("the stranger is dead")
			}
			if other == early || other == late || other == init {
				defer func() { // those whom the shell has started
					pids, err := cgroupProcs(below)
					must(t, err)
					for _, pid := range pids {
						unix.Kill(int(pid), unix.SIGKILL)
					}
				}()
				if out != nil || err == nil || !strings.Contains(err.Error(), "not in the kill set") || len(alive) != len(s.Processes()) {
					t.Errorf("%+v, %v, %d alive; want an error and nobody killed", out, err, len(alive))
				}
				return
			}
			must(t, err)
			checkAllGone(t, out, len(victims))
			if len(alive) != 0 || len(s.Woken()) != 0 {
				t.Errorf("%d alive, %d ran user code", len(alive), len(s.Woken()))
			}
			if pids, err := cgroupProcs(below); err != nil || len(pids) != 0 {
				t.Errorf("%v are left, %v", pids, err)
			}
		})
	}
}

func TestCgroupOfTheRootIsRefused(t *testing.T) {
	a := testCgroup(t, "")
	b := testCgroup(t, "")
	k := newKernel(t)
	s := stage(t, "sleepers", 2)
	moveInto(t, a, s.Processes()[0].PID)
	moveInto(t, b, s.Processes()[1].PID)
	if kill, err := CgroupOf(membersOf(t, s, processes(t, k))); err == nil || !strings.Contains(err.Error(), "root cgroup") {
		t.Errorf("%q, %v", kill, err)
	}
}

func TestCgroupOfUnknownCgroup(t *testing.T) {
	testCgroup(t, "")
	if kill, err := CgroupOf([]waitgraph.Process{{CgroupID: 1<<63 + 5}}); err == nil {
		t.Errorf("%q, want an error", kill)
	}
}

// TestFailedEngine: an engine that fails as a whole has signalled nobody. That is said
// of each, and each has the CPUs that it had.
func TestFailedEngine(t *testing.T) {
	mine := allCPUs(t)
	top := testCgroup(t, "")
	k := newKernel(t)
	s := stage(t, "sleepers", 4)
	for _, p := range s.Processes() {
		moveInto(t, top, p.PID)
	}
	all := processes(t, k)
	victims := membersOf(t, s, all)
	o := options(EngineCgroup, all)
	o.CgroupKill = filepath.Join(top, "cgroup.type") // takes another word
	out, err := Run(t.Context(), k, victims, o)
	if out == nil || !errors.Is(err, unix.EINVAL) {
		t.Fatalf("%+v, %v; want an outcome and %v", out, err, unix.EINVAL)
	}
	if len(out.Refused) != len(victims) || out.Signalled != 0 || len(out.Survivors) != 0 || out.Window.Corral == nil {
		t.Errorf("%+v, want %d refused, and that there was a corral", out, len(victims))
	}
	for i := range victims {
		cpus, err := affinity.Get(int(victims[i].PID))
		if err != nil || cpus != mine {
			t.Errorf("%v is left on %v, %v", &victims[i], cpus, err)
		}
	}
}
