package incident

import (
	"bytes"
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
	const enough = 2 << 10 // kB of a GiB that may be left over
	var cached uint64
	for range 5 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), squeezeVariable+"=1")
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("squeeze: %v", err)
		}
		var err error
		if _, cached, err = meminfo(); err != nil {
			t.Fatal(err)
		}
		if cached <= enough {
			return
		}
	}
	t.Fatalf("%d kB of what is on swap are in memory, too", cached)
}

// takeMemory takes more memory than there is, and ends. Only then can be told
// whether anything on swap is still in memory, too: this process's own is.
func takeMemory() error {
	const step = 4 << 20
	total, _, err := meminfo()
	if err != nil {
		return err
	}
	for taken := uint64(0); taken < total+total/4; taken += step >> 10 {
		mem, err := unix.Mmap(-1, 0, step, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		for i := 0; i < step; i += 4096 {
			mem[i] = 1
		}
	}
	return nil
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
