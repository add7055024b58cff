package incident

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heartbeatVariable names the file that a process with this variable in its
// environment writes the times of its beats to.
const heartbeatVariable = "INCIDENT_HEARTBEAT"

const (
	beatEvery  = 10 * time.Millisecond
	beatBytes  = 4 << 20 // that are touched at each
	maximum    = 1 << 16 // beats
	beatsBytes = maximum * 8
)

// beat touches this process's own memory every 10 ms and writes down when. It
// is an ordinary process that runs all the time and may be paged out like any
// other.
func beat(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	shared, err := unix.Mmap(int(f.Fd()), 0, beatsBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	own := make([]byte, beatBytes)
	next := now()
	for i := range maximum {
		for j := 0; j < len(own); j += 4096 {
			own[j]++
		}
		atomic.StoreInt64((*int64)(unsafe.Pointer(&shared[i*8])), now())
		next = max(next+int64(beatEvery), now())
		sleepUntil(next)
	}
	return fmt.Errorf("%d beats are all there is room for", maximum)
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

func (h *heart) at(i int) int64 {
	return atomic.LoadInt64((*int64)(unsafe.Pointer(&h.beats[i*8])))
}

// longestGap is the longest time without a beat that reached into from…to, and
// when it began after from; both in milliseconds.
func (h *heart) longestGap(from, to int64) (gap, at float64) {
	var longest, begin, last int64
	take := func(beat int64) {
		if beat-last > longest {
			longest, begin = beat-last, last
		}
	}
	for i := range maximum {
		beat := h.at(i)
		if beat == 0 || beat > to {
			break
		}
		if last != 0 && beat > from {
			take(beat)
		}
		last = beat
	}
	take(to)
	return ms(longest), ms(begin - from)
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
