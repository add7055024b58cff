// Package scale kills many processes in machines that have little to spare.
package scale

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

// cannot is bpfkill's exit status where it has signalled nobody because it could not.
const cannot = 3

// room is what a machine must have for these tests.
const room = 2 << 30

// Ten thousand processes, and 256 descriptors to begin with.
func TestTenThousand(t *testing.T) {
	s := stage(t, 5000)
	limited := exec.Command("/bin/sh", "-c", `ulimit -n 256 && exec "$0" "$@"`, tool(t, "BPFKILL_BIN"),
		"--target", "smtpserver", "--exact", "--timeout", "5m", "--output", "json")
	s.kill(t, limited)
}

// A memory cgroup of 64 MiB around bpfkill is enough for 2,000 processes.
func TestMemoryCgroup(t *testing.T) {
	cmd, peak := limited(t, 64<<20)
	s := stage(t, 1000)
	s.kill(t, cmd)
	if peak, err := os.ReadFile(peak); err == nil { // Linux 5.19
		t.Logf("at most %s bytes in the cgroup", strings.TrimSpace(string(peak)))
	}
}

// With half of that bpfkill says that it cannot, or the kernel ends it: nobody is
// signalled.
func TestTooSmallMemoryCgroup(t *testing.T) {
	cmd, _ := limited(t, 32<<20)
	s := stage(t, 1000)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run()
	t.Logf("%v; %s", cmd.ProcessState, stderr.Bytes())
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	ended := ok && status.Signaled() && status.Signal() == unix.SIGKILL
	said := ok && status.ExitStatus() == cannot && strings.Contains(stderr.String(), "memory")
	if !ended && !said {
		t.Errorf("%v, stderr %q; want to be ended by the kernel, or to hear of memory", cmd.ProcessState, stderr.Bytes())
	}
	if end := s.end(t); end.Alive != end.Processes || end.Woken != 0 {
		t.Errorf("of %d processes %d are alive, and %d woke, want all and none", end.Processes, end.Alive, end.Woken)
	}
}

// limited is bpfkill in a memory cgroup, and the file that says what it had at most.
func limited(t *testing.T, bytes int) (cmd *exec.Cmd, peak string) {
	t.Helper()
	if os.Getenv("BPFKILL_VM") == "" {
		t.Skip("changes the machine's cgroups: runs in a virtual machine")
	}
	const group = "/sys/fs/cgroup/killer"
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 50 { // who was in there may not be reaped yet
			if err = os.Remove(group); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error(err)
	})
	if err := os.WriteFile(group+"/memory.max", []byte(strconv.Itoa(bytes)), 0); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cmd = killer(t)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	return cmd, group + "/memory.peak"
}

// A machine with 20 MiB left, which has swap space, still gets its processes killed.
// With none it is short of what bpfkill needs, and the kernel ends whoever has most.
func TestLittleMemory(t *testing.T) {
	nstest.SwapSpace(t)
	s := stage(t, 200)
	takeAllBut(t, 20<<20)
	left, err := available()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB left", left>>20)
	if left > 25<<20 {
		t.Fatalf("%d MiB are left, which is not little", left>>20)
	}
	s.kill(t, killer(t))
}

// storm is the processes of a wakestorm command.
type storm struct {
	in  io.Closer
	out *bufio.Reader
}

func stage(t *testing.T, servers int) *storm {
	t.Helper()
	if os.Getenv("BPFKILL_VM") == "" {
		t.Skip("fills a machine's memory: runs in a virtual machine")
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if total := uint64(info.Totalram) * uint64(info.Unit); total < room*9/10 {
		t.Fatalf("this machine has %d MiB, and the test wants %d (VMTEST_MEMORY_MIB)", total>>20, room>>20)
	}
	in, out := start(t, exec.Command(tool(t, "WAKESTORM_BIN"), "run", "--topology", "mail",
		"--processes", strconv.Itoa(servers), "--mem", "0.0625", "--until-eof", "--timeout", "10m"))
	return &storm{in, out}
}

// start starts what runs until its standard input ends, and waits for its first line.
func start(t *testing.T, cmd *exec.Cmd) (in io.Closer, out *bufio.Reader) {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", cmd.Args, err)
		}
	})
	out = bufio.NewReader(stdout)
	if _, err := out.ReadBytes('\n'); err != nil {
		t.Fatalf("%v said nothing: %v", cmd.Args, err)
	}
	return in, out
}

// kill runs bpfkill and fails unless everybody is gone and nobody had woken.
func (s *storm) kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("bpfkill: %v", err)
	}
	var report struct {
		Result struct {
			Gone        int
			WindowNS    uint64 `json:"window_ns"`
			UserReturns int    `json:"user_returns"`
			Rounds      int
		}
	}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		t.Logf("%d gone, window %d µs; bpfkill had at most %d KiB resident",
			report.Result.Gone, report.Result.WindowNS/1000, usage.Maxrss)
	}
	end := s.end(t)
	if end.Alive != 0 || end.Woken != 0 || report.Result.Gone != end.Processes || report.Result.UserReturns != 0 || report.Result.Rounds != 1 {
		t.Errorf("of %d processes %d are alive and %d woke; bpfkill says that %d are gone in %d rounds, and %d came back to user mode",
			end.Processes, end.Alive, end.Woken, report.Result.Gone, report.Result.Rounds, report.Result.UserReturns)
	}
}

// ending is what the storm says of its processes in the end.
type ending struct{ Processes, Alive, Woken int }

func (s *storm) end(t *testing.T) (end ending) {
	t.Helper()
	_ = s.in.Close()
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &end); err != nil {
		t.Fatal(err)
	}
	return end
}

func killer(t *testing.T) *exec.Cmd {
	t.Helper()
	return exec.Command(tool(t, "BPFKILL_BIN"), "--target", "smtpserver", "--exact", "--timeout", "5m", "--output", "json")
}

func tool(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s does not say where the tool is", variable)
	}
	return path
}

// hogVariable in the environment makes a process one that takes memory until only that
// many bytes are left. What bpfkill had at most would count its parent's, so that is
// somebody else.
const hogVariable = "SCALE_HOG"

func TestMain(m *testing.M) {
	if left, err := strconv.ParseUint(os.Getenv(hogVariable), 10, 64); err == nil {
		if err := hog(left); err != nil {
			fmt.Fprintln(os.Stderr, "hog:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hog takes memory that the kernel can put on swap, and then some that it cannot: else
// swap space would be full before memory is.
func hog(left uint64) error {
	const (
		idle = 256 << 20
		step = 1 << 20
	)
	random := rand.NewChaCha8([32]byte{})
	take := func(size, flags int) error {
		mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|flags)
		for page := 0; err == nil && page < size; page += 4096 {
			// An eighth of each: what is all the same takes no room on a compressed disk.
			_, err = random.Read(mem[page : page+512])
		}
		return err
	}
	if err := take(idle, 0); err != nil {
		return err
	}
	for {
		now, err := available()
		if err != nil {
			return err
		}
		if now <= left {
			break
		}
		if err := take(step, unix.MAP_LOCKED); err != nil {
			return err
		}
	}
	fmt.Println("full")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// takeAllBut takes memory until that much is left, for the time of the test.
func takeAllBut(t *testing.T, left uint64) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", hogVariable, left))
	start(t, cmd)
}

// available is MemAvailable in bytes.
func available() (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(text, []byte("MemAvailable:"))
	word, _, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
	kB, err := strconv.ParseUint(string(word), 10, 64)
	return kB << 10, err
}
