package nstest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/procfs"
)

// Require skips a privileged test where there is no privilege, and fails it
// where there is but something is missing that this kernel should have.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run the tests with sudo")
	}
	if !inside && !InVM() {
		t.Fatal("a privileged test outside a namespace of its own: TestMain must call nstest.Main")
	}
	for _, check := range []func() error{checkKernel, procfs.CheckOwn, checkPidfd, checkBTF} {
		if err := check(); err != nil {
			t.Fatal(err)
		}
	}
}

func checkKernel() error {
	if recent, release, err := atLeast(5, 10); err != nil {
		return err
	} else if !recent {
		return fmt.Errorf("kernel %s: Linux 5.10 or later is needed", release)
	}
	return nil
}

// KernelAtLeast reports whether the running kernel is of that version or later.
func KernelAtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	recent, _, err := atLeast(major, minor)
	if err != nil {
		t.Fatal(err)
	}
	return recent
}

func atLeast(major, minor int) (recent bool, release string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, "", fmt.Errorf("uname: %w", err)
	}
	release = unix.ByteSliceToString(u.Release[:])
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false, release, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return a > major || a == major && b >= minor, release, nil
}

func checkPidfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open (Linux 5.3 or later): %w", err)
	}
	return unix.Close(fd)
}

func checkBTF() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("BTF of the running kernel (CONFIG_DEBUG_INFO_BTF, and sysfs on /sys): %w", err)
	}
	return nil
}
