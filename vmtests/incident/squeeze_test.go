package incident

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// squeezeVariable in the environment makes a process one that needs memory.
const squeezeVariable = "INCIDENT_SQUEEZE"

// squeeze is somebody else who needs the memory. What was written to the disk
// stays in memory until then, and would be found there: no incident.
func squeeze(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), squeezeVariable+"=1")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("squeeze: %v", err)
	}
}

// takeMemory takes memory until nothing on swap is in memory, too.
func takeMemory() error {
	const (
		step   = 4 << 20
		enough = 256 // kB left over: what this process and the like have just read
	)
	total, _, err := meminfo()
	if err != nil {
		return err
	}
	for taken := uint64(0); taken < 3*total; taken += step >> 10 {
		_, cached, err := meminfo()
		if err != nil {
			return err
		}
		if cached <= enough {
			return nil
		}
		mem, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for i := 0; i < step; i += 4096 {
			mem[i] = 1
		}
	}
	return errors.New("three times the memory was taken, and still what is on swap is in memory, too")
}

// meminfo returns MemTotal and SwapCached, in kB.
func meminfo() (total, cached uint64, err error) {
	text, err := os.ReadFile("/proc/meminfo")
	word := func(name string) uint64 {
		_, rest, _ := bytes.Cut(text, []byte(name))
		return number(bytes.TrimLeft(rest, " "), "")
	}
	return word("MemTotal:"), word("SwapCached:"), err
}
