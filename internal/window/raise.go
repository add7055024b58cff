package window

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fifoPriority is low among the real-time ones: above every ordinary task,
// below whatever the administrator runs as real-time.
const fifoPriority = 1

// maxPriority is the highest real-time priority.
const maxPriority = 99

// stance is what the killer has changed about itself, to be undone.
type stance struct {
	undo   []func()
	policy *unix.SchedAttr // before promote; nil if it is as before
	warn   func(string)
}

func (s *stance) note(what string, err error) {
	if err != nil {
		s.warn(fmt.Sprintf("%s: %v", what, err))
	}
}

// lower undoes everything in reverse order. If the process dies instead,
// everything dies with it.
func (s *stance) lower() {
	s.demote()
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	s.undo = nil
}

// raise prepares the calling goroutine's thread for the window: memory locked and not
// moved, garbage collection off, last in line for the OOM killer. What privileges do not
// allow is left out and told to warn: the kill is less tight then, not less correct.
// What has no part in that is told to detail.
func raise(warn, detail func(string)) *stance {
	s := &stance{warn: warn}
	runtime.LockOSThread()
	s.undo = append(s.undo, runtime.UnlockOSThread)

	percent := debug.SetGCPercent(-1)
	s.undo = append(s.undo, func() { debug.SetGCPercent(percent) })
	limit := debug.SetMemoryLimit(math.MaxInt64) // GOMEMLIMIT collects all the same
	s.undo = append(s.undo, func() { debug.SetMemoryLimit(limit) })

	if old, err := setOOMScore("-1000"); err != nil {
		detail(fmt.Sprintf("the OOM killer may pick bpfkill: lower oom_score_adj (needs CAP_SYS_RESOURCE): %v", err))
	} else {
		s.undo = append(s.undo, func() {
			_, err := setOOMScore(old)
			s.note("restore oom_score_adj", err)
		})
	}
	s.ignoreStops()
	s.keepPages()
	if err := lockMemory(); err != nil {
		s.note("the window may be longer: mlockall (needs CAP_IPC_LOCK)", err)
	} else {
		s.undo = append(s.undo, func() { s.note("munlockall", unix.Munlockall()) })
	}
	if err := touchProgram(); err != nil {
		s.note("the window may be longer: touch the program's pages", err)
	}
	touchStack()
	return s
}

// lockMemory locks what is mapped now. MCL_ONFAULT (Linux 4.4) locks what is there and
// what is touched from now on. Without it the kernel fills in all that the Go runtime
// has set aside, 44 MiB, which is too much to ask of a machine that is out of memory.
func lockMemory() error { return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_ONFAULT) }

// ignoreStops keeps the terminal from stopping the process, whose targets would wait on
// one CPU until it goes on. That its thread blocks these signals is not enough: any other
// takes them, and all stop.
func (s *stance) ignoreStops() {
	for _, stop := range []unix.Signal{unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU} {
		old, err := setAction(stop, sigaction{handler: sigIgn})
		s.note("ignore the terminal's stop signals", err)
		if err == nil {
			s.undo = append(s.undo, func() { _, _ = setAction(stop, old) })
		}
	}
}

// sigaction is the kernel's struct of that name.
type sigaction struct{ handler, flags, restorer, mask uint64 }

const sigIgn = 1

// setAction sets what a signal does, and returns what it did. Of signals that are left
// to their default action os/signal would not know how to go back to that.
func setAction(sig unix.Signal, action sigaction) (old sigaction, err error) {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig),
		uintptr(unsafe.Pointer(&action)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	return old, errnoError(errno)
}

// keepPages has khugepaged leave the process's pages where they are: it takes them away
// while it copies them into a huge one, locked or not, and who touches one meanwhile
// sleeps until that is done (collapse_huge_page). PR_SET_THP_DISABLE is of Linux 3.15, its
// flags, of which one may be set before, of 6.18.
func (s *stance) keepPages() {
	old, err := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
	if err == nil {
		err = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	}
	if err != nil {
		s.note("the killer may sleep in the window: PR_SET_THP_DISABLE", err)
		return
	}
	s.undo = append(s.undo, func() {
		s.note("restore PR_SET_THP_DISABLE", unix.Prctl(unix.PR_SET_THP_DISABLE, uintptr(old&1), uintptr(old&^1), 0, 0))
	})
}

// promote makes the thread SCHED_FIFO, and says whether it may.
func (s *stance) promote(priority uint32) bool {
	old, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		s.note("the window may be longer: read scheduling policy", err)
		return false
	}
	// Whoever is SCHED_FIFO already stays above its own other threads.
	if old.Policy == unix.SCHED_FIFO || old.Policy == unix.SCHED_RR {
		priority = min(max(priority, old.Priority+1), maxPriority)
	}
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: priority}
	if err := unix.SchedSetAttr(0, &fifo, 0); err != nil {
		s.note("the window may be longer: SCHED_FIFO (needs CAP_SYS_NICE)", err)
		return false
	}
	old.Flags = 0
	s.policy = old
	return true
}

// demote undoes promote, if it is not undone yet.
func (s *stance) demote() {
	if s.policy != nil {
		s.note("restore scheduling policy", unix.SchedSetAttr(0, s.policy, 0))
		s.policy = nil
	}
}

// touchProgram brings in every page of the program file that is mapped, so that
// no instruction inside the window waits for the disk.
func touchProgram() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	var sum byte
	for line := range strings.Lines(string(maps)) {
		var start, end uintptr
		line = strings.TrimSuffix(line, "\n")
		if !strings.HasSuffix(line, " "+exe) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x r", &start, &end); err != nil {
			continue // not readable
		}
		for page := start; page < end; page += 4096 {
			sum += **(**byte)(unsafe.Pointer(&page))
		}
	}
	runtime.KeepAlive(sum) // the reads must not be dropped
	return nil
}

// touchStack grows and faults in the goroutine's stack, so that no call inside
// the window has to.
//
//go:noinline
func touchStack() byte {
	var page [64 << 10]byte
	for i := 0; i < len(page); i += 4096 {
		page[i] = 1
	}
	return page[len(page)-1]
}

// setOOMScore writes oom_score_adj and returns what it was before.
func setOOMScore(value string) (old string, err error) {
	const path = "/proc/self/oom_score_adj"
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}
