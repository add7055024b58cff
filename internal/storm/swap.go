package storm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoSwap is returned by HaveSwap and SwapOut on a machine without swap space.
var ErrNoSwap = errors.New("this machine has no swap space: add some with swapon (a swap file, or zram)")

// Swapped says what SwapOut achieved. Figures are bytes, from kernel counters;
// reading them touches no process's memory.
type Swapped struct {
	Processes int   // members that were asked to go
	SwapBytes int64 // on swap now (VmSwap)
	RSSBytes  int64 // still resident, anonymous (RssAnon)
}

// SwapOut pushes the members' private memory out to swap, from outside
// (process_madvise with MADV_PAGEOUT), and returns once no more goes. Call it
// after WaitReady. Pages that members share by copy-on-write stay.
//
// It needs Linux 5.10 and, beyond one's own right to trace the members,
// CAP_SYS_NICE. Without swap space it returns ErrNoSwap.
func (s *Storm) SwapOut(ctx context.Context) (Swapped, error) {
	var pids []int
	for _, p := range s.Processes() {
		pids = append(pids, p.PID)
	}
	return SwapOut(ctx, pids)
}

// SwapOut does the same to any processes. Give it those that sleep.
func SwapOut(ctx context.Context, pids []int) (Swapped, error) {
	if err := HaveSwap(); err != nil {
		return Swapped{}, err
	}
	var before Swapped
	// Pages under writeback are skipped, so one pass may not take them all.
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		var now Swapped
		for _, pid := range pids {
			if err := pageOut(pid); err != nil {
				return now, fmt.Errorf("swap out process %d: %w", pid, err)
			}
			swap, rss, err := SwappedBytes(pid)
			if err != nil {
				return now, fmt.Errorf("swap out process %d: %w", pid, err)
			}
			now.Processes++
			now.SwapBytes += swap
			now.RSSBytes += rss
		}
		if now.SwapBytes <= before.SwapBytes && pause > 10*time.Millisecond {
			if now.SwapBytes == 0 {
				return now, errors.New("nothing was swapped out: swap is full, or these pages may not go (mlock, a cgroup's memory.swap.max)")
			}
			return now, nil
		}
		before = now
		if err := wait(ctx, pause); err != nil {
			return now, fmt.Errorf("swap out: %w", err)
		}
	}
}

// HaveSwap returns ErrNoSwap on a machine without swap space.
func HaveSwap() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("sysinfo: %w", err)
	}
	if info.Totalswap == 0 {
		return ErrNoSwap
	}
	return nil
}

// pageOut asks the kernel to page out a process's private writable mappings.
func pageOut(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open pidfd: %w", err)
	}
	defer unix.Close(fd)
	maps, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return err
	}
	ranges, err := privateRanges(maps)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if err := processMadvise(fd, r); err != nil {
			return err
		}
	}
	return nil
}

// processMadvise pages one range out. An error that belongs to the range and
// not to the call (some of it is not mapped, or locked) is passed over.
func processMadvise(pidfd int, r addressRange) error {
	// An iovec whose base is an address in the other process, so no pointer.
	iov := [2]uintptr{r.start, r.end - r.start}
	_, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, uintptr(pidfd), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0)
	switch errno {
	case 0, unix.EINVAL, unix.ENOMEM, unix.EAGAIN:
		return nil
	case unix.ENOSYS:
		return fmt.Errorf("process_madvise: %w (Linux 5.10 or later)", errno)
	case unix.EPERM:
		return fmt.Errorf("process_madvise: %w (run as root, or with CAP_SYS_NICE and CAP_SYS_PTRACE)", errno)
	}
	return fmt.Errorf("process_madvise: %w", errno)
}

type addressRange struct{ start, end uintptr }

// privateRanges picks the private writable mappings out of /proc/PID/maps.
func privateRanges(text []byte) ([]addressRange, error) {
	maps, err := parseMaps(text)
	if err != nil {
		return nil, err
	}
	var out []addressRange
	for _, m := range maps {
		if m.writable() && m.private() {
			out = append(out, m.addressRange)
		}
	}
	return out, nil
}

// SwappedBytes reads how much of a process's private memory is on swap and how much is
// resident, in bytes (VmSwap and RssAnon), without touching any of it.
func SwappedBytes(pid int) (swap, rss int64, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.ParseInt(string(f[1]), 10, 64) // other lines' values are not numbers
		switch string(f[0]) {
		case "VmSwap:":
			swap = n << 10
		case "RssAnon:":
			rss = n << 10
		}
	}
	return swap, rss, nil
}
