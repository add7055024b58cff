package incident

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/bpfkill/bpfkill/internal/storm"
	"golang.org/x/sys/unix"
)

// swapDisk is the guest's only disk.
const swapDisk = "/dev/vda"

// swapOn makes the disk swap space, and turns transparent huge pages off: they
// swap as a whole, and a count of pages would not say what was touched.
func swapOn(t *testing.T) {
	t.Helper()
	_ = os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("never"), 0)
	for _, args := range [][]string{{"mkswap", swapDisk}, {"swapon", swapDisk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
}

// world is the staged incident.
type world struct {
	staging           Staging
	servers, routers  []int // ascending
	parent            int   // of the servers
	cgroup            string
	marks             string
	swapped, resident int64 // bytes of private memory
}

// stage starts servers and routers in a cgroup of their own, and returns when
// all are asleep and swapped out. The guest ends them with everything else.
func stage(t *testing.T, staging Staging) *world {
	t.Helper()
	tool := os.Getenv("WAKESTORM_BIN")
	if tool == "" {
		t.Fatal("WAKESTORM_BIN does not say where wakestorm is")
	}
	w := &world{staging: staging, cgroup: "/sys/fs/cgroup/mail", marks: filepath.Join(t.TempDir(), "marks")}
	if err := os.Mkdir(w.cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, "run", "--topology", "mail", "--processes", strconv.Itoa(staging.Servers),
		"--mem", strconv.Itoa(staging.RouterMiB), "--robust-list", "--swap-out", "--marks", w.marks, "--timeout", "10m")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("wakestorm said nothing: %v", err)
	}
	var ready struct {
		Pids map[string][]int
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		t.Fatal(err)
	}
	w.parent = cmd.Process.Pid
	w.servers, w.routers = ready.Pids[storm.Target], ready.Pids["router"]
	for _, pid := range w.both() {
		if err := os.WriteFile(w.cgroup+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
			t.Fatalf("move %d: %v", pid, err)
		}
	}
	keepResident(t, w.marks)
	return w
}

// checkSwapped fails unless nearly all of the servers' and routers' memory is on swap.
func (w *world) checkSwapped(t *testing.T) {
	t.Helper()
	for _, pid := range w.both() {
		swapped, resident, err := storm.SwappedBytes(pid)
		if err != nil {
			t.Fatal(err)
		}
		w.swapped += swapped
		w.resident += resident
	}
	routers := int64(len(w.routers)) * int64(w.staging.RouterMiB) << 20
	if w.swapped < routers || w.resident > routers/100 {
		t.Fatalf("%d MiB are on swap and %d in memory; the routers have %d, and all should be on swap",
			w.swapped>>20, w.resident>>20, routers>>20)
	}
}

// keepResident locks a file in memory: reading it must not read the swap.
func keepResident(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mlock(mem); err != nil {
		t.Fatal(err)
	}
	return mem
}

// lockMemory keeps the measuring process itself out of the measurement.
func lockMemory(t *testing.T) {
	t.Helper()
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		t.Fatal(err)
	}
}

// woken are the pids that ran user code after they had been asleep, by their
// own word.
func (w *world) woken(t *testing.T) map[int]bool {
	t.Helper()
	marks, err := storm.ReadMarks(w.marks)
	if err != nil {
		t.Fatal(err)
	}
	woken := map[int]bool{}
	for _, m := range marks {
		if m.Woken {
			woken[m.PID] = true
		}
	}
	return woken
}
