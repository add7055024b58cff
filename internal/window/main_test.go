package window

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/loader"
	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// idleVariable makes this binary a process that lives as long as its standard
// input is open.
const idleVariable = "BPFKILL_WINDOW_IDLE"

func TestMain(m *testing.M) {
	if IsGuardian() {
		os.Exit(Guard())
	}
	if os.Getenv(idleVariable) != "" {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if args := os.Getenv(pulseVariable); args != "" {
		fmt.Fprintln(os.Stderr, pulse(args))
		os.Exit(1)
	}
	if args := os.Getenv(dieVariable); args != "" {
		if err := dyingKiller(args); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(nstest.Main(m))
}

// patience bounds every wait for a state: an emulated machine is slow.
const patience = time.Minute

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// bpf is the real Kernel.
type bpf struct {
	*loader.Executor
	snapshotter *loader.Snapshotter
}

func (k bpf) Processes() ([]waitgraph.Process, error) { return k.snapshotter.Processes() }

var shared struct {
	sync.Once
	*loader.Snapshotter
	err error
}

// newKernel loads what a kill needs; the test closes it.
func newKernel(t *testing.T) bpf {
	t.Helper()
	nstest.Require(t)
	shared.Do(func() {
		if shared.err = loader.Prepare(); shared.err == nil {
			shared.Snapshotter, shared.err = loader.NewSnapshotter(loader.SnapshotOptions{})
		}
	})
	must(t, shared.err)
	e, err := loader.NewExecutor(loader.ExecutorOptions{Batch: loader.HaveBatch() == nil})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return bpf{e, shared.Snapshotter}
}

// engines are those that this kernel has for any kill set.
func engines() []Engine {
	if loader.HaveBatch() == nil {
		return []Engine{EngineLoop, EngineBatch}
	}
	return []Engine{EngineLoop}
}

func options(e Engine, known []waitgraph.Process) Options {
	in := make(map[waitgraph.KernelIdentity]bool)
	for i := range known {
		in[known[i].KernelIdentity()] = true
	}
	return Options{Engine: e, Corral: true, Timeout: patience, Known: func(k waitgraph.KernelIdentity) bool { return in[k] },
		Warn: func(string) {}, Detail: func(string) {}}
}

// stage starts a storm that is asleep when it returns and stopped at the end.
func stage(t *testing.T, topology string, n int) *storm.Storm {
	t.Helper()
	s, err := storm.Start(t.Context(), storm.Options{Topology: topology, Processes: n})
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, s.WaitReady(ctx))
	return s
}

// disturbed is a kernel on which something happens late: when the tripwire is armed.
type disturbed struct {
	bpf
	happens func()
}

func (k disturbed) Arm(d time.Duration) error {
	k.happens()
	return k.bpf.Arm(d)
}

// membersOf picks a storm's processes out of all, in the storm's order.
func membersOf(t *testing.T, s *storm.Storm, all []waitgraph.Process) []waitgraph.Process {
	t.Helper()
	byPID := map[int]waitgraph.Process{}
	for _, p := range all {
		byPID[int(p.PID)] = p
	}
	var out []waitgraph.Process
	for _, m := range s.Processes() {
		p, ok := byPID[m.PID]
		if !ok {
			t.Fatalf("process %d is not there", m.PID)
		}
		out = append(out, p)
	}
	return out
}

func processes(t *testing.T, k Kernel) []waitgraph.Process {
	t.Helper()
	all, err := k.Processes()
	must(t, err)
	return all
}

// idle is a process that lives until the test ends.
type idle struct{ *exec.Cmd }

func startIdle(t *testing.T) *idle {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), idleVariable+"=1")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill() // it may be dead, and reaped
		cmd.Wait()
	})
	return &idle{cmd}
}

// end ends it before the test does.
func (p *idle) end() {
	if p != nil {
		p.Process.Kill()
		p.Wait()
	}
}

func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH)
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}
