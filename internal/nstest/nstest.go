// Package nstest runs privileged tests where they can hurt nobody: in a pid and
// mount namespace of their own, below an init that reaps orphans.
//
// A test binary opts in with
//
//	func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }
//
// As root, Main runs the binary again inside the namespace. Otherwise, and in a
// virtual machine (BPFKILL_VM=1), which is private already, it runs the tests
// where it is.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// VMVariable is set to 1 in the environment of a virtual machine guest.
	VMVariable = "BPFKILL_VM"
	// GuestParameter is on the kernel command line of such a guest. The variable
	// alone would let tests kill by name on a machine that others use.
	GuestParameter = "bpfkill.guest"

	roleVariable   = "BPFKILL_NSTEST"
	decoysVariable = "BPFKILL_NSTEST_DECOYS"

	roleInit   = "init"   // pid 1 of the namespace
	roleInside = "inside" // the tests
	roleDecoy  = "decoy"
)

// Option changes what Main sets up.
type Option func(*options)

type options struct{ decoys []string }

// InVM reports whether this is a virtual machine guest, where everything takes long.
func InVM() bool { return os.Getenv(VMVariable) == "1" }

// Decoy keeps a process of this name alive outside the namespace while the
// tests run inside. The run fails if it does not outlive them. In a virtual
// machine there is no outside; see StartDecoy and Command for a namespace within.
func Decoy(comm string) Option {
	return func(o *options) { o.decoys = append(o.decoys, comm) }
}

// Main runs the tests, in a namespace where possible, and returns the exit
// status for os.Exit.
func Main(m *testing.M, opts ...Option) int {
	// The children that this package starts are this same binary, told by the
	// environment to be somebody else.
	role := os.Getenv(roleVariable)
	os.Unsetenv(roleVariable)
	switch role {
	case roleInit:
		return report(runInit(os.Args[1:]))
	case roleDecoy:
		return report(0, runDecoy(os.Args[1]))
	case roleInside:
		inside = true
		return m.Run()
	}
	if InVM() {
		if err := checkGuest(); err != nil {
			return report(1, err)
		}
		return m.Run()
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	return report(runOutside(&o))
}

// checkGuest makes sure that the machine is one that the VM tests booted.
func checkGuest() error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("%s is set: %w", VMVariable, err)
	}
	if !slices.Contains(strings.Fields(string(line)), GuestParameter) {
		return fmt.Errorf("%s is set, but this machine was not booted by the VM tests: unset it", VMVariable)
	}
	return nil
}

// inside is set in the process that runs the tests in a namespace.
var inside bool

// Decoys lists the names of the processes that Main keeps alive outside the
// namespace that the caller runs in.
func Decoys() []string {
	if !inside {
		return nil
	}
	return strings.Fields(os.Getenv(decoysVariable))
}

func report(status int, err error) int {
	if err != nil {
		fmt.Fprintf(os.Stderr, "nstest: %v\n", err)
		return max(status, 1)
	}
	return status
}

// runOutside runs the tests inside and looks after the decoys.
func runOutside(o *options) (status int, err error) {
	// The namespace dies with the thread that made it (see Command).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	for _, comm := range o.decoys {
		d, startErr := StartDecoy(comm)
		if startErr != nil {
			return 1, startErr
		}
		defer func() {
			err = errors.Join(err, d.Alive(), d.Stop())
		}()
	}
	self, err := os.Executable()
	if err != nil {
		return 1, fmt.Errorf("find this test binary: %w", err)
	}
	cmd, err := Command(self, os.Args[1:]...)
	if err != nil {
		return 1, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(cmd.Env, decoysVariable+"="+strings.Join(o.decoys, " "))
	return runForwarding(cmd)
}

// runForwarding runs a command, passes on the signals that mean it too, and
// returns its exit status.
func runForwarding(cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("create a pid namespace: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				cmd.Process.Signal(s) // an error means that it is over
			case <-done:
				return
			}
		}
	}()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if exit.ExitCode() < 0 {
			return 1, fmt.Errorf("the namespace's init: %w", err)
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

var forwarded = []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP}

// Command is like exec.Command, but the program runs in a new pid and mount
// namespace, with its own /proc and below an init that reaps orphans; when the
// program ends, everything in the namespace does. The program's exit status is the
// command's, 128 plus the signal's number if one ended it.
//
// It needs root, and a test binary whose TestMain calls Main. The namespace is
// killed when the calling thread ends: lock the goroutine to it where that matters.
func Command(name string, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", append([]string{path}, args...)...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleInit)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	return cmd, nil
}

// InNamespace makes a command that has not been started run as Command's does.
// It replaces Path, Args, Env and SysProcAttr.
func InNamespace(cmd *exec.Cmd) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	env := cmd.Environ()
	wrapped, err := Command(cmd.Path, cmd.Args[1:]...)
	if err != nil {
		return err
	}
	cmd.Path, cmd.Args, cmd.SysProcAttr = wrapped.Path, wrapped.Args, wrapped.SysProcAttr
	cmd.Env = append(env, roleVariable+"="+roleInit)
	return nil
}
