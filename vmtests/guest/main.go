// Command guest is process 1 of a test VM: it sets the machine up, runs the
// test binaries of the manifest one after the other, and says the verdict on
// the console.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
	"golang.org/x/sys/unix"
)

// heartbeat is how often the guest shows that it is alive. The host takes a
// guest that is silent for much longer for dead.
const heartbeat = 5 * time.Second

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init process of a test VM")
		os.Exit(2)
	}
	verdict := protocol.Verdict{}
	console, nonce, err := setUp()
	if err == nil {
		verdict.Release = release()
		console.say(protocol.Sentinel(nonce, protocol.Ready, verdict.Release))
		go func() {
			for range time.Tick(heartbeat) {
				console.say(protocol.Sentinel(nonce, protocol.Alive, ""))
			}
		}()
		verdict.Outcomes, err = runAll(console)
	}
	if err != nil {
		verdict.Trouble = err.Error()
	}
	if verdict.Taint = taint(); verdict.Taint != 0 {
		for _, line := range warnings(kernelLog()) {
			console.say(line)
		}
	}
	conclude(console, nonce, verdict)
}

// runAll loads the modules and runs the programs of the manifest.
func runAll(console *console) ([]protocol.Outcome, error) {
	if err := loadModules(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(protocol.ManifestPath)
	if err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	var manifest protocol.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	var outcomes []protocol.Outcome
	for _, program := range manifest.Programs {
		outcomes = append(outcomes, run(console, program, manifest.Env))
	}
	return outcomes, nil
}

// conclude says the verdict and ends the machine. The kernel is kept from
// printing into the verdict's line.
func conclude(console *console, nonce string, verdict protocol.Verdict) {
	line, err := verdict.Sentinel(nonce)
	if err != nil {
		line = fmt.Sprintf("guest: %v", err)
	}
	_ = os.WriteFile("/proc/sys/kernel/printk", []byte("1\n"), 0)
	console.say(line)
	_ = unix.IoctlSetInt(console.fd(), unix.TCSBRK, 1) // tcdrain
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // -no-reboot: QEMU exits
	select {}
}

func release() string {
	b, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return string(bytes.TrimSpace(b))
}

// taintAux is what Debian's kernels set once anybody asks fanotify to permit: no
// warning.
const taintAux = 1 << 16

func taint() uint64 {
	b, _ := os.ReadFile("/proc/sys/kernel/tainted")
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n &^ taintAux
}

// kernelLog returns the kernel's log buffer: warnings are below the level
// that reaches the console.
func kernelLog() string {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return ""
	}
	buffer := make([]byte, size)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buffer)
	if err != nil {
		return ""
	}
	return string(buffer[:n])
}

// warnings returns the parts of a kernel log that the kernel framed as such.
func warnings(log string) []string {
	var found []string
	inside := false
	for line := range strings.Lines(log) {
		if strings.Contains(line, "[ cut here ]") {
			inside = true
		}
		if inside {
			found = append(found, strings.TrimRight(line, "\n"))
		}
		if strings.Contains(line, "[ end trace") {
			inside = false
		}
	}
	return found
}
