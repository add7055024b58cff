package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/cgroup2"
)

// The program runs itself again in other parts, told by the environment.
const (
	roleVariable   = "WAKESTORM_BENCH_ROLE"
	cgroupVariable = "WAKESTORM_BENCH_CGROUP"
	dirVariable    = "WAKESTORM_BENCH_DIR" // for temporary files

	roleInside = "inside" // pid 1 of the namespace
	roleTimer  = "timer"  // runs a program and says what it took
	rolePing   = "ping"   // passes a byte back and forth, and says how long that took
	rolePong   = "pong"   // is the other that does
)

// Helper returns what this process is there for, if the benchmark started it to help with
// a measurement: its whole life, given its arguments. It is nil for any other process.
func Helper() func(argv []string) error {
	return map[string]func([]string) error{roleTimer: timer, rolePing: ping, rolePong: pong}[os.Getenv(roleVariable)]
}

// helping runs this program in a part, with arguments.
func helping(role string, argv ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"bench"}, argv...)...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// Outside runs this program again with the same arguments as pid 1 of a pid and
// mount namespace of its own, with an empty cgroup for the processes to be
// killed. ran is false where this is that program already, or one that it started:
// then the caller goes on, with a /proc of its own. Everything inside ends with
// it.
//
// It needs root.
func Outside() (ran bool, err error) {
	if os.Getenv(roleVariable) == roleInside {
		return false, enter()
	}
	if os.Geteuid() != 0 {
		return true, errors.New("the benchmark creates namespaces and loads BPF programs: run it as root")
	}
	// The namespace dies with the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cgroup, err := makeCgroup()
	if err != nil {
		return true, err
	}
	defer func() {
		if rerr := removeCgroup(cgroup); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}()
	dir, err := os.MkdirTemp("", "wakestorm-bench-")
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), roleVariable+"="+roleInside, cgroupVariable+"="+cgroup, dirVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	return true, runKilling(cmd)
}

// runKilling runs a command, and kills it where this process is told to end: there
// is something to tidy up.
func runKilling(cmd *exec.Cmd) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("create a pid namespace: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case s := <-signals:
		return errors.Join(fmt.Errorf("ended by signal: %v", s), cmd.Process.Kill(), <-done)
	case err := <-done:
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return errors.New("the benchmark failed, as it says itself")
		}
		return err
	}
}

func enter() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("pid %d, not 1: not in a pid namespace of its own", os.Getpid())
	}
	// Nothing mounted here may reach the machine's own mounts.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return os.Unsetenv(roleVariable)
}

// makeCgroup returns an empty cgroup v2 directory, "" where there is no such
// hierarchy.
func makeCgroup() (string, error) {
	mount, err := cgroup2.Mount()
	if err != nil {
		return "", nil
	}
	dir, err := os.MkdirTemp(mount, "wakestorm-bench-")
	if err != nil {
		return "", fmt.Errorf("create a cgroup: %w", err)
	}
	return dir, nil
}

func removeCgroup(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove the cgroup: %w", err)
	}
	return nil
}
