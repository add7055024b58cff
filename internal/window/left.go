package window

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
)

const (
	// leftMargin is what the killer leaves of the time for which it may have a CPU.
	leftMargin = 50 * time.Millisecond
	// leftPatience is how long it waits for that time to begin anew: a period, where
	// real-time threads use it up (kernel.sched_rt_period_us), and a twentieth of that from
	// Linux 6.12 on. It has waited for nothing where they go on.
	leftPatience = 1100 * time.Millisecond
	// otherPatience is the same for the CPU that the corral may move to, or may not.
	otherPatience = 200 * time.Millisecond
	// unreapedLimit is what the killer wants where there is nothing to reap.
	unreapedLimit = closeLimit + 100*time.Millisecond
)

// realTimeLimit is how long real-time threads may have a CPU in each period, less a
// margin, and at most as long as is wanted.
func realTimeLimit(want time.Duration) time.Duration {
	text, err := os.ReadFile("/proc/sys/kernel/sched_rt_runtime_us")
	if err != nil {
		return want
	}
	µs, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || µs < 0 {
		return want
	}
	return min(want, time.Duration(µs)*time.Microsecond-2*leftMargin)
}

// lookout is an ordinary thread on the corral's other CPU. It says how long the kernel
// would leave that to a real-time one.
type lookout struct {
	tid         int32 // 0 until it has begun
	stop, ended uint32
	left        int64 // ns; long where it is not known
}

func (c *corral) startLookout() *lookout {
	l := &lookout{}
	go func() {
		runtime.LockOSThread() // its thread ends with this, but for the process's first
		atomic.StoreInt32(&l.tid, int32(unix.Gettid()))
		if atomic.LoadUint32(&l.stop) == 0 {
			affinity.Apply(0, &c.sets[1])
		}
		for atomic.LoadUint32(&l.stop) == 0 {
			atomic.StoreInt64(&l.left, int64(c.left()))
			spin(time.Millisecond)
		}
		affinity.Apply(0, &c.own)
		atomic.StoreUint32(&l.ended, 1)
	}()
	return l
}

// end takes the lookout off its CPU, which another thread may keep from it. One that has
// not begun yet does not. The Go scheduler is not asked to wait: its own threads may have
// to, for that CPU.
func (l *lookout) end(elsewhere *affinity.Set) {
	atomic.StoreUint32(&l.stop, 1)
	tid := atomic.LoadInt32(&l.tid)
	for tid != 0 && atomic.LoadUint32(&l.ended) == 0 {
		affinity.Apply(tid, elsewhere)
		ms := unix.NsecToTimespec(int64(time.Millisecond))
		_ = unix.Nanosleep(&ms, nil)
	}
}

// left is how long the kernel leaves the calling thread's CPU to the killer.
func (c *corral) left() time.Duration {
	left, ok := c.kernel.CPULeft()
	if !ok {
		return time.Hour
	}
	return left
}

func spin(d time.Duration) {
	for until := clock() + uint64(d); clock() < until; {
	}
}

// awaitTime is the last thing before the killer becomes SCHED_FIFO: the kernel takes a CPU
// from real-time threads for ordinary ones, which would be the kill set, and reckons with
// what other real-time threads had of it before. So the killer runs on the corral's CPU
// as an ordinary thread until the kernel would leave it that for as long as it wants it,
// and another one on the CPU that the corral may move to.
//
// It sets the limit that the killer keeps to. Where the other CPU is not to be had for
// that long, the corral does not move.
func (c *corral) awaitTime(ctx context.Context, m *mover, want time.Duration) error {
	want = realTimeLimit(want)
	enough := want + leftMargin
	affinity.Apply(0, &c.sets[0])
	began := clock()
	var other *lookout
	if m != nil {
		other = c.startLookout()
	}
	for ctx.Err() == nil {
		waited := time.Duration(clock() - began)
		own := c.left() >= enough
		elsewhere := other == nil || time.Duration(atomic.LoadInt64(&other.left)) >= enough
		if own && (elsewhere || waited >= otherPatience) || waited >= leftPatience {
			break
		}
		spin(time.Millisecond)
	}
	// Those who were born meanwhile need not be looked for in the window. What fails
	// here fails there, too, and is told then.
	if births := c.kernel.Births(); births != c.births {
		c.births, c.seenNS = births, bootTimeNS()
		_ = c.newcomers()
	}
	if other != nil {
		if time.Duration(atomic.LoadInt64(&other.left)) < enough {
			m.next, c.otherTaken = never, true
		}
		other.end(&c.own)
	}
	c.limit = max(0, min(want, c.left()-leftMargin))
	if c.limit == want {
		return nil
	}
	if m != nil {
		m.next = never
	}
	return fmt.Errorf("real-time threads have had CPU %d, the kernel leaves no more than %v of it", c.cpu, c.limit.Round(time.Millisecond))
}
