package loader

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// TestNoticesOfTheDragged: a death that stops a process, or has it go on, also
// wakes whom the kernel tells of that, through the child channel.
func TestNoticesOfTheDragged(t *testing.T) {
	for _, test := range []struct {
		name   string
		signal unix.Signal // at the parent's death
	}{
		{"stops", unix.SIGSTOP},
		{"goes on", unix.SIGCONT},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newExecutor(t)
			o := observe(t, e)
			reaper := start(t, "reaper", func(c *exec.Cmd) {
				c.Env = append(c.Env, fmt.Sprintf("%s=%d", deathSignalVariable, test.signal))
			})
			parent := childOf(t, childOf(t, reaper.PID))
			pid := childOf(t, parent)
			t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) })
			reaper.asleep(t, unix.SYS_WAITID)
			eventually(t, "the child sleeps", func() bool { return asleepIn(pid, pid, unix.SYS_PPOLL) })
			if test.signal == unix.SIGCONT {
				must(t, unix.Kill(pid, unix.SIGSTOP))
				eventually(t, "the child has stopped", func() bool { return status(t, pid)["State"] == "T (stopped)" })
			}
			v := take(t)
			cause := v.process(t, parent)
			must(t, e.Doom([]waitgraph.Process{cause}))
			kill(t, parent)
			var told []Wake
			eventually(t, "the reaper's wake is counted", func() bool {
				told = wakesOf(t, o, v.process(t, reaper.PID))
				return len(told) > 0
			})
			if len(told) != 1 || told[0].Channel != waitgraph.ChannelChild ||
				told[0].Cause != cause.KernelIdentity() {
				t.Errorf("%+v, want one through %v", told, waitgraph.ChannelChild)
			}
			eventually(t, "the child's wake is over", func() bool {
				w := wakesOf(t, o, v.process(t, pid))
				return len(w) == 1 && w[0].Ended == w[0].Count
			})
			w := wakesOf(t, o, v.process(t, pid))[0]
			if w.Channel != waitgraph.ChannelParentDeath || (w.Returned > 0) != (test.signal == unix.SIGCONT) {
				t.Errorf("%+v, want it through %v, and in user mode only if it was stopped", w, waitgraph.ChannelParentDeath)
			}
		})
	}
}

// TestReturnToAHandler: a thread that a caught signal wakes is back in user mode when
// the handler runs.
func TestReturnToAHandler(t *testing.T) {
	e := newExecutor(t)
	o := observe(t, e)
	s := stage(t, storm.Options{Topology: "parent-death", Processes: 1})
	m := members(t, s)
	must(t, e.Doom(m["server"]))
	kill(t, int(m["server"][0].PID))
	var got []Wake
	eventually(t, "the child sleeps again", func() bool {
		got = wakesOf(t, o, m["caught"][0])
		return len(got) == 1 && got[0].Ended == got[0].Count
	})
	if got[0].Returned != 1 || got[0].Channel != waitgraph.ChannelParentDeath {
		t.Errorf("%+v, want it in user mode once", got[0])
	}
}

// childOf waits until a process has a child. Each thread has its own, and any may
// have forked it.
func childOf(t *testing.T, parent int) (child int) {
	t.Helper()
	eventually(t, "a process has a child", func() bool {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
		must(t, err)
		for _, list := range lists {
			line, _ := os.ReadFile(list) // the thread may have ended
			if n, _ := fmt.Sscan(string(line), &child); n == 1 {
				return true
			}
		}
		return false
	})
	return child
}

// deathSignalVariable is the number of the signal that the youngest gets at its
// parent's death.
const deathSignalVariable = "DEATH_SIGNAL"

// reap is a role: it has a child, that has one, and so has that. It waits for what
// becomes of the youngest once this one's parent is dead. The others are of one
// thread each: a parent with several hands its children from one to the next.
func reap() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	sig, err := strconv.Atoi(os.Getenv(deathSignalVariable))
	if err != nil {
		return err
	}
	for generation := range 3 {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if pid != 0 && generation == 0 {
			if errno != 0 {
				return errno
			}
			return blockIn(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&scratchInfo)), unix.WSTOPPED|unix.WCONTINUED)
		}
		if pid == 0 {
			last := uintptr(unix.SIGKILL)
			if generation == 2 {
				last = uintptr(sig)
			}
			unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, last, 0, 0, 0, 0)
		}
		for pid != 0 || generation == 2 {
			unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	return nil
}

var scratchInfo [128]byte // siginfo_t
