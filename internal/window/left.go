package window

import (
	"fmt"
	"runtime"
	"time"

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
)

// awaitLeft runs on a CPU, as an ordinary thread, until the kernel would leave that to a
// real-time one for as long as the killer may want it. It returns for how long that is.
// Where it cannot be known it is taken to be long enough.
func awaitLeft(k Kernel, cpu *affinity.Set, patience time.Duration) time.Duration {
	affinity.Apply(0, cpu)
	for give := clock() + uint64(patience); ; {
		left, ok := k.CPULeft()
		if !ok || left >= fifoLimit+leftMargin {
			return fifoLimit
		}
		if clock() > give {
			return left - leftMargin
		}
		for ask := clock() + uint64(time.Millisecond); clock() < ask; {
		}
	}
}

// awaitTime is the last thing before the killer becomes SCHED_FIFO: the kernel takes a CPU
// from real-time threads for ordinary ones, which would be the kill set, and reckons with
// what other real-time threads had of it before. The killer is on the corral's CPU then,
// and keeps it until the limit that this sets; where the other CPU is not to be had, the
// corral does not move.
func (c *corral) awaitTime(m *mover) error {
	other := make(chan time.Duration, 1)
	if m != nil {
		go func() {
			runtime.LockOSThread() // the thread ends with this, but for the process's first
			left := awaitLeft(c.kernel, &c.sets[1], otherPatience)
			affinity.Apply(0, &c.own)
			other <- left
		}()
	}
	c.limit = awaitLeft(c.kernel, &c.sets[0], leftPatience)
	if m != nil && <-other < fifoLimit {
		m.next = never
	}
	if c.limit < fifoLimit {
		return fmt.Errorf("real-time threads have had CPU %d, the kernel leaves no more than %v of it", c.cpu, c.limit.Round(time.Millisecond))
	}
	return nil
}
