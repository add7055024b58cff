package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
	"golang.org/x/sys/unix"
)

// mounts are what a test may expect of a running system.
var mounts = []struct {
	source, target, kind, data string
	optional                   bool
}{
	{"proc", "/proc", "proc", "", false},
	{"sysfs", "/sys", "sysfs", "", false},
	{"devtmpfs", "/dev", "devtmpfs", "", false},
	{"devpts", "/dev/pts", "devpts", "ptmxmode=0666", false},
	{"tmpfs", "/dev/shm", "tmpfs", "mode=1777", false},
	{"tmpfs", "/tmp", "tmpfs", "mode=1777", false},
	{"tmpfs", "/run", "tmpfs", "mode=0755", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", false},
	{"tracefs", "/sys/kernel/tracing", "tracefs", "", false},
	{"bpf", "/sys/fs/bpf", "bpf", "", true},
}

// setUp makes a running system of a fresh kernel. The console is never nil:
// without one of its own it is what the kernel gave to init.
func setUp() (*console, string, error) {
	c := &console{file: os.Stdout}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !m.optional {
			return c, "", fmt.Errorf("mount %s: %w", m.target, err)
		}
		flags := uintptr(unix.MS_NOSUID)
		if err := unix.Mount(m.source, m.target, m.kind, flags, m.data); err != nil && !m.optional {
			return c, "", fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return c, "", err
		}
	}
	// Init has to reap, and to pass on what is said, also where everything else
	// is on swap; and what a test measures there must not be init's own memory.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return c, "", fmt.Errorf("lock init's memory: %w", err)
	}
	nonce, err := nonceOf("/proc/cmdline")
	if err != nil {
		return c, "", err
	}
	if file, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		c.file = file
	}
	if err := unix.Sethostname([]byte("vmtest")); err != nil {
		return c, nonce, fmt.Errorf("set the host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return c, nonce, err
	}
	return c, nonce, nil
}

// nonceOf finds this boot's nonce on the kernel's command line.
func nonceOf(path string) (string, error) {
	line, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the command line: %w", err)
	}
	for _, word := range strings.Fields(string(line)) {
		if nonce, ok := strings.CutPrefix(word, protocol.NonceParameter+"="); ok {
			return nonce, nil
		}
	}
	return "", fmt.Errorf("no %s on the kernel's command line", protocol.NonceParameter)
}

// loopbackUp brings lo up: a fresh kernel has it down.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// loadModules loads what the host put into the initramfs, in its order.
func loadModules() error {
	list, err := os.ReadFile(protocol.ModulesPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	for _, path := range strings.Fields(string(list)) {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("load modules: %w", err)
		}
		err = unix.FinitModule(int(file.Fd()), "", 0)
		file.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", path, err)
		}
	}
	return nil
}

// console writes whole lines: the heartbeat and a test's output must not mix.
type console struct {
	mu   sync.Mutex
	file *os.File
}

func (c *console) say(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintln(c.file, line)
}

func (c *console) fd() int { return int(c.file.Fd()) }
