package main

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
	"golang.org/x/sys/unix"
)

// inGuest skips a test that looks at the machine that this command sets up.
func inGuest(t *testing.T) {
	t.Helper()
	if os.Getenv("BPFKILL_VM") == "" {
		t.Skip("looks at a test VM from inside; make vmtest runs it")
	}
}

// What the other tests take for granted in a guest.
func TestGuestIsASystem(t *testing.T) {
	inGuest(t)
	for path, magic := range map[string]int64{
		"/proc": unix.PROC_SUPER_MAGIC, "/sys": unix.SYSFS_MAGIC, "/tmp": unix.TMPFS_MAGIC,
		"/dev/shm": unix.TMPFS_MAGIC, "/sys/fs/cgroup": unix.CGROUP2_SUPER_MAGIC,
		"/sys/kernel/tracing": unix.TRACEFS_MAGIC,
	} {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil || int64(st.Type) != magic {
			t.Errorf("%s: file system %#x, %v; want %#x", path, st.Type, err, magic)
		}
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Errorf("no BTF: %v", err)
	}
	if name, err := os.Hostname(); name != "vmtest" {
		t.Errorf("host name %q, %v", name, err)
	}
	out, err := exec.Command("sh", "-c", "echo $((6*7)) | cat").CombinedOutput()
	if strings.TrimSpace(string(out)) != "42" {
		t.Errorf("sh: %q, %v", out, err)
	}
}

func TestLoopbackIsUp(t *testing.T) {
	inGuest(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestModulesAreLoaded(t *testing.T) {
	inGuest(t)
	list, err := os.ReadFile(protocol.ModulesPath)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("this guest was given no module")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(list)) {
		name := strings.TrimSuffix(filepath.Base(path), ".ko")
		if _, err := os.Stat(filepath.Join("/sys/module", name)); err != nil {
			t.Errorf("module %s: %v", name, err)
		}
	}
}

// An orphan must not stay a zombie: tests wait for processes to be gone.
func TestOrphansAreReaped(t *testing.T) {
	inGuest(t)
	out, err := exec.Command("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-tick.C {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return
		}
	}
	t.Errorf("process %d is still there", pid)
}

func TestToolsAreThere(t *testing.T) {
	inGuest(t)
	for _, variable := range []string{"BPFKILL_BIN", "WAKESTORM_BIN"} {
		if err := unix.Access(os.Getenv(variable), unix.X_OK); err != nil {
			t.Errorf("%s=%q: %v", variable, os.Getenv(variable), err)
		}
	}
}
