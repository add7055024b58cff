package incident

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counters are the whole machine's.
type counters struct {
	swapIns, swapOuts, majorFaults uint64
	psiFull                        uint64 // microseconds
}

func readCounters(t *testing.T) counters {
	t.Helper()
	vmstat, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		t.Fatal(err)
	}
	c := counters{
		swapIns: number(vmstat, "\npswpin "), swapOuts: number(vmstat, "\npswpout "),
		majorFaults: number(vmstat, "\npgmajfault "),
	}
	if psi, err := os.ReadFile("/proc/pressure/memory"); err == nil {
		_, full, _ := bytes.Cut(psi, []byte("full "))
		c.psiFull = number(full, "total=")
	}
	return c
}

// number is the number after a word; 0 without it.
func number(text []byte, word string) uint64 {
	_, rest, _ := bytes.Cut(text, []byte(word))
	n := uint64(0)
	for _, c := range rest {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// faultCounters count major faults, of each process with a counter of its own that
// outlives it.
type faultCounters map[int]int // pid -> descriptor

func countFaults(t *testing.T, pids []int) faultCounters {
	t.Helper()
	limit := unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_PAGE_FAULTS_MAJ}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fds := faultCounters{}
	for _, pid := range pids {
		fd, err := unix.PerfEventOpen(&attr, pid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			t.Fatalf("count the faults of %d: %v", pid, err)
		}
		fds[pid] = fd
	}
	return fds
}

func (c faultCounters) read(t *testing.T) map[int]uint64 {
	t.Helper()
	counts := map[int]uint64{}
	for pid, fd := range c {
		var b [8]byte
		if _, err := unix.Read(fd, b[:]); err != nil {
			t.Fatalf("read the faults of %d: %v", pid, err)
		}
		counts[pid] = binary.NativeEndian.Uint64(b[:])
		unix.Close(fd)
	}
	return counts
}

const (
	tracing = "/sys/kernel/tracing"
	reading = tracing + "/events/block/block_bio_queue/"
)

// countReads has the kernel count, by thread, the pages that are read from the disk: from
// swap space, which is all that is there, and a request (a bio) for each page, read ahead
// or not. It counts what a thread reads while it dies, which a perf counter does not.
func countReads(t *testing.T) {
	t.Helper()
	if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil && err != unix.EBUSY {
		t.Fatalf("mount %s: %v", tracing, err)
	}
	if err := os.WriteFile(reading+"trigger", []byte(`hist:keys=common_pid:size=4096 if rwbs ~ "R*"`), 0); err != nil {
		t.Fatalf("count what is read from the disk: %v", err)
	}
}

// pagesRead returns what was counted since, by thread id.
func pagesRead(t *testing.T) map[int]uint64 {
	t.Helper()
	text, err := os.ReadFile(reading + "hist")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[int]uint64{}
	for line := range bytes.Lines(text) {
		var tid int
		var n uint64
		if _, err := fmt.Sscanf(string(line), "{ common_pid: %d } hitcount: %d", &tid, &n); err == nil {
			pages[tid] += n
		}
	}
	if _, dropped, _ := bytes.Cut(text, []byte("Dropped:")); len(dropped) == 0 || number(bytes.TrimLeft(dropped, " "), "") != 0 {
		t.Errorf("not all that was read was counted:\n%s", text)
	}
	return pages
}

// majorFaults is how many a living process has had.
func majorFaults(t *testing.T, pid int) uint64 {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	// majflt is the tenth after the name, which may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	return number(fields[9], "")
}

const (
	sampleEvery = 20 * time.Millisecond
	calmFor     = 3 * time.Second // without a swap-in
	atMost      = 4 * time.Minute
)

// recorder watches the machine from the kill on.
type recorder struct {
	begin   int64 // now() when the killer was started
	before  counters
	victims []int // that are not gone yet
	samples []Sample
	gone    float64 // when the last victim was, in ms after begin
	calm    float64 // when the last swap-in was seen
	killed  killed
}

// untilCalm records until the killer has ended and nothing has been swapped in for a
// while, and returns when that was. What survives is in victims.
func (r *recorder) untilCalm(t *testing.T, done <-chan killed) int64 {
	t.Helper()
	// Allocated before, so that recording needs no memory.
	r.samples = make([]Sample, 0, int(atMost/sampleEvery)+1)
	ended, pages, last := false, uint64(0), r.begin
	for at := r.begin; at < r.begin+int64(atMost); sleepUntil(now() + int64(sampleEvery)) {
		c := readCounters(t)
		at = now()
		r.look(at)
		if got := c.swapIns - r.before.swapIns; got != pages {
			pages, last, r.calm = got, at, ms(at-r.begin)
		}
		r.samples = append(r.samples, Sample{MS: ms(at - r.begin), Pages: pages})
		if !ended {
			select {
			case r.killed = <-done:
				ended, last = true, at
			default:
			}
		}
		if ended && at-last > int64(calmFor) && (len(r.victims) == 0 || at-last > int64(10*calmFor)) {
			return at
		}
	}
	t.Errorf("the machine was not calm after %v", atMost)
	return now()
}

// look takes out of victims who is gone. Nobody else starts processes, so a
// number is not handed out again.
func (r *recorder) look(at int64) {
	for n := len(r.victims); n > 0 && unix.Kill(r.victims[n-1], 0) == unix.ESRCH; n = len(r.victims) {
		if r.victims = r.victims[:n-1]; len(r.victims) == 0 {
			r.gone = ms(at - r.begin)
		}
	}
}

func ms(ns int64) float64 { return float64(ns/1000) / 1000 }
