package incident

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
)

// heartbeatVariable names the file that a process with this variable in its
// environment writes the times of its beats to.
const heartbeatVariable = "INCIDENT_HEARTBEAT"

const (
	beatEvery  = 10 * time.Millisecond
	beatBytes  = 4 << 20 // that are touched at each
	maximum    = 1 << 16 // beats
	beatsBytes = maximum * unsafe.Sizeof(beat{})
)

// beat is one of the heartbeat's, which writes at last.
type beat struct {
	ran    int64 // on a processor, since its start, ns
	waited int64 // for one
	faults int32 // major, since its start
	cpu    int32 // that it runs on
	late   int64 // from when it was to begin until it did, ns
	at     int64 // now(), when it had ended
}

// beats touches this process's own memory every 10 ms and writes down when. It
// is an ordinary process that runs all the time and may be paged out like any
// other.
func beats(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	shared, err := unix.Mmap(int(f.Fd()), 0, int(beatsBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	stat, err := os.Open("/proc/thread-self/schedstat")
	if err != nil {
		return err
	}
	own := make([]byte, beatBytes)
	next := now()
	for i := range maximum {
		b := beatAt(shared, i)
		b.late = now() - next
		for j := 0; j < len(own); j += 4096 {
			own[j]++
		}
		if err := b.fill(int(stat.Fd())); err != nil {
			return err
		}
		atomic.StoreInt64(&b.at, now())
		next = max(next+int64(beatEvery), now())
		// Not by sleepUntil: the Go scheduler, asked for a place after it, may take longer
		// than the kernel's. It interrupts this one, which it believes to be running.
		ts := unix.NsecToTimespec(next)
		for rawSleep(&ts) == unix.EINTR {
		}
	}
	return fmt.Errorf("%d beats are all there is room for", maximum)
}

func rawSleep(until *unix.Timespec) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, uintptr(unsafe.Pointer(until)), 0, 0, 0)
	return errno
}

// fill asks the kernel about the calling thread, whose /proc/PID/schedstat is open.
func (b *beat) fill(stat int) error {
	var text [64]byte // ns on a processor, ns of waiting for one, time slices
	if _, err := unix.Pread(stat, text[:], 0); err != nil {
		return fmt.Errorf("schedstat: %w", err)
	}
	ran, waited, _ := bytes.Cut(text[:], []byte{' '})
	b.ran, b.waited = int64(number(ran, "")), int64(number(waited, ""))
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &usage); err != nil {
		return fmt.Errorf("getrusage: %w", err)
	}
	b.faults = int32(usage.Majflt)
	cpu, err := affinity.CPU()
	b.cpu = int32(cpu)
	return err
}

func beatAt(shared []byte, i int) *beat {
	return (*beat)(unsafe.Pointer(&shared[uintptr(i)*unsafe.Sizeof(beat{})]))
}

// heart is the other side: it sees the beats of a process.
type heart struct {
	pid   int
	beats []byte
}

func startHeart(t *testing.T) *heart {
	t.Helper()
	path := filepath.Join(t.TempDir(), "beats")
	if err := os.WriteFile(path, make([]byte, beatsBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &heart{beats: keepResident(t, path)}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), heartbeatVariable+"="+path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for give := now() + int64(time.Minute); h.at(0) == 0; sleepUntil(now() + int64(beatEvery)) {
		if now() > give {
			t.Fatal("the heartbeat does not begin")
		}
	}
	return h
}

func (h *heart) at(i int) int64 { return atomic.LoadInt64(&beatAt(h.beats, i).at) }

// gap is a time without a beat.
type gap struct {
	begin, length int64 // ns
	// Between the two beats: how long the heartbeat ran and waited for a processor, its
	// major faults, and where it ran afterwards; and how late the second began. Of a gap
	// that had not ended nothing is known.
	ran, waited int64
	faults      int32
	cpu         int32
	late        int64
}

// longestGap is the longest time without a beat in from…to. What it had before from does
// not count.
func (h *heart) longestGap(from, to int64) gap {
	var longest gap
	last := -1
	for i := range maximum {
		at := h.at(i)
		if at == 0 || at > to {
			break
		}
		if last >= 0 && at > from {
			before, after := beatAt(h.beats, last), beatAt(h.beats, i)
			if begin := max(before.at, from); at-begin > longest.length {
				longest = gap{
					begin: begin, length: at - begin,
					ran: after.ran - before.ran, waited: after.waited - before.waited,
					faults: after.faults - before.faults, cpu: after.cpu, late: after.late,
				}
			}
		}
		last = i
	}
	if last < 0 {
		return longest
	}
	if begin := max(h.at(last), from); to-begin > longest.length {
		longest = gap{begin: begin, length: to - begin, cpu: -1}
	}
	return longest
}

// now is CLOCK_MONOTONIC in nanoseconds.
func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail
	return ts.Nano()
}

func sleepUntil(when int64) {
	ts := unix.NsecToTimespec(when)
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
	}
}

func TestLongestGap(t *testing.T) {
	h := &heart{beats: make([]byte, beatsBytes)}
	for i, at := range []int64{100, 110, 150, 160, 190} {
		b := beatAt(h.beats, i)
		b.at, b.waited = at, 2*at
	}
	for _, test := range []struct {
		from, to              int64
		begin, length, waited int64
	}{
		{100, 190, 110, 40, 80},
		{105, 165, 110, 40, 80},
		{140, 200, 160, 30, 60}, // ten of the forty are after 140
		{145, 165, 150, 10, 20},
		{155, 250, 190, 60, 0}, // it had not ended
		{195, 200, 195, 5, 0},
	} {
		got := h.longestGap(test.from, test.to)
		if got.begin != test.begin || got.length != test.length || got.waited != test.waited {
			t.Errorf("from %d to %d: %+v, want %d from %d with %d of wait", test.from, test.to, got, test.length, test.begin, test.waited)
		}
	}
}
