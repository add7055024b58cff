// Package affinity says and sets on which CPUs threads may run.
package affinity

import (
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// MaxCPUs is how many CPUs a [Set] has room for. Nothing here works on a machine
// with more.
const MaxCPUs = 1024

// Set is a set of CPUs, a bit for each, as the kernel lays it out.
type Set [MaxCPUs / 64]uint64

// Thread is one thread, and where it may run.
type Thread struct {
	Process waitgraph.KernelIdentity

	// TID, PID, PGID and SID are numbered by the caller's pid namespace, 0 where
	// they are not visible there.
	TID, PID, PGID, SID int32

	Policy     uint32 // SCHED_OTHER, SCHED_FIFO, …
	RTPriority uint32 // 1 to 99 for SCHED_FIFO and SCHED_RR, else 0

	// Asleep is set for one that waits interruptibly, or is stopped: it holds none
	// of the kernel's locks.
	Asleep bool

	Allowed Set // where it may run now
	Wanted  Set // what Set takes to undo a change: cpusets narrow it to Allowed
}

// Only returns the set of one CPU.
func Only(cpu int) (s Set) {
	s[cpu/64] = 1 << (cpu % 64)
	return s
}

// Has reports whether cpu is in the set.
func (s *Set) Has(cpu int) bool { return s[cpu/64]>>(cpu%64)&1 != 0 }

// Count returns how many CPUs are in the set.
func (s *Set) Count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// Each calls f for every CPU in the set, ascending.
func (s *Set) Each(f func(cpu int)) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			f(i*64 + bits.TrailingZeros64(w))
		}
	}
}

// Without returns the set less one CPU.
func (s Set) Without(cpu int) Set {
	s[cpu/64] &^= 1 << (cpu % 64)
	return s
}

// And returns the CPUs that are in both.
func (s Set) And(o Set) Set {
	for i := range s {
		s[i] &= o[i]
	}
	return s
}

// Undo returns what [Apply] takes to put a thread back to where it may run now, and
// where cpusets will let it: asked is what it was told by sched_setaffinity(2), the
// empty set for nothing. Whoever was told nothing may run everywhere but on the isolated
// CPUs (isolcpus=), which are given only to those who ask for one. What cpusets have left
// nothing of is of no effect, and the kernel would refuse it.
func Undo(allowed, asked, isolated Set) Set {
	switch none := (Set{}); {
	case asked == none:
		for i := range allowed {
			allowed[i] |= ^isolated[i]
		}
		return allowed
	case asked.And(allowed) == none:
		return allowed
	}
	return asked
}

// Isolated reads which CPUs the kernel leaves to those who ask for them. Where that is
// not to be read there are none.
func Isolated() Set {
	text, err := os.ReadFile("/sys/devices/system/cpu/isolated")
	if err != nil {
		return Set{}
	}
	s, err := parse(string(text))
	if err != nil {
		return Set{}
	}
	return s
}

// PreemptRT reports whether the kernel has PREEMPT_RT, which preempts whoever holds one
// of its locks as well.
func PreemptRT() bool {
	text, err := os.ReadFile("/sys/kernel/realtime")
	return err == nil && strings.HasPrefix(string(text), "1")
}

// parse reads a list as the kernel writes it (bitmap_print_to_pagebuf): "0-3,8", or an
// empty line.
func parse(text string) (s Set, err error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return s, nil
	}
	for _, part := range strings.Split(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.Atoi(first)
		if err != nil {
			return Set{}, fmt.Errorf("a list of CPUs: %q", text)
		}
		to, err := strconv.Atoi(last)
		if err != nil || from > to || to >= MaxCPUs {
			return Set{}, fmt.Errorf("a list of CPUs: %q", text)
		}
		for cpu := from; cpu <= to; cpu++ {
			s[cpu/64] |= 1 << (cpu % 64)
		}
	}
	return s, nil
}

// Get reads where a thread may run; tid 0 is the calling one.
func Get(tid int) (Set, error) {
	var s Set
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid), unsafe.Sizeof(s), uintptr(unsafe.Pointer(&s)))
	if errno != 0 {
		return Set{}, fmt.Errorf("read affinity: %w", errno)
	}
	return s, nil
}

// Apply lets a thread run on the CPUs of s that its cpusets allow; tid 0 is the
// calling one. It returns 0 or the errno: EINVAL where they allow none of them,
// ESRCH for a thread that is gone. It neither allocates nor gives the Go scheduler
// a chance.
//
//go:nosplit
func Apply(tid int32, s *Set) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, uintptr(tid), unsafe.Sizeof(*s), uintptr(unsafe.Pointer(s)))
	return errno
}

// CPU returns the number of the CPU that the caller runs on.
func CPU() (int, error) {
	var cpu uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("getcpu: %w", errno)
	}
	return int(cpu), nil
}
