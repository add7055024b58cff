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
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("kernel release %q: %w", release, err)
	}
	if major < 5 || (major == 5 && minor < 10) {
		return fmt.Errorf("kernel %s: Linux 5.10 or later is needed", release)
	}
	return nil
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
