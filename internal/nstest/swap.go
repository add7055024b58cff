package nstest

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// SwapSpace gives a virtual machine compressed memory to swap to, until the end
// of the test. Elsewhere it skips the test unless there is swap space already.
func SwapSpace(t testing.TB) {
	t.Helper()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if info.Totalswap > 0 {
		return
	}
	if !InVM() {
		t.Skip("needs swap space, which only a virtual machine is given")
	}
	const device, attributes = "/dev/zram0", "/sys/block/zram0/"
	write := func(attribute, value string) {
		if err := os.WriteFile(attributes+attribute, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	write("disksize", "512M")
	for _, tool := range []string{"mkswap", "swapon"} {
		if out, err := exec.Command(tool, device).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", tool, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("swapoff", device).CombinedOutput(); err != nil {
			t.Errorf("swapoff: %v: %s", err, out)
		}
		write("reset", "1")
	})
}
