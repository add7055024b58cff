package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// runInit is pid 1 of the namespace: it mounts, starts the program, forwards
// signals to it, reaps whoever is orphaned, and ends with the program. The kernel
// then kills what is left.
func runInit(argv []string) (int, error) {
	if os.Getpid() != 1 {
		return 1, fmt.Errorf("pid %d, not 1: not in a pid namespace of its own", os.Getpid())
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	// Nothing mounted here may reach the machine's own mounts.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 1, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 1, fmt.Errorf("mount /proc: %w", err)
	}
	// Not os/exec: it would wait for the child itself, beside wait4(-1).
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env:   append(os.Environ(), roleVariable+"="+roleInside),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 1, fmt.Errorf("run %s: %w", argv[0], err)
	}
	go func() {
		for s := range signals {
			// Until it is reaped below, and this process ends with it, the pid
			// is the program's.
			unix.Kill(pid, s.(syscall.Signal))
		}
	}()
	return reapUntil(pid)
}

// reapUntil reaps every child until pid is among them.
func reapUntil(pid int) (int, error) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for children: %w", err)
		case got != pid:
		case status.Signaled():
			return 128 + int(status.Signal()), fmt.Errorf("%s ended the tests", status.Signal())
		default:
			return status.ExitStatus(), nil
		}
	}
}
