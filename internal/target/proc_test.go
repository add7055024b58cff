package target

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

func secondsOf(n int) time.Duration { return time.Duration(n) * time.Second }

func bootTime(t *testing.T) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// readProcesses takes a snapshot from /proc, which says less than the kernel
// does but enough for a selection.
func readProcesses(t *testing.T) []waitgraph.Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var procs []waitgraph.Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // gone meanwhile
		}
		// The name stands in brackets and may hold any byte.
		head, tail, _ := strings.Cut(string(raw), " (")
		end := strings.LastIndex(tail, ")")
		fields := strings.Fields(tail[end+1:])
		number := func(i int) int64 {
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				t.Fatalf("stat of %s: %v", head, err)
			}
			return n
		}
		p := waitgraph.Process{
			Identity: waitgraph.Identity{PID: int32(pid), StartNS: uint64(number(19)) * uint64(time.Second) / 100},
			Comm:     tail[:end], State: fields[0][0], PPID: int32(number(1)), PGID: int32(number(2)), SID: int32(number(3)),
			Threads: int32(number(17)), NamespaceInit: pid == 1,
		}
		var st syscall.Stat_t
		if err := syscall.Stat(fmt.Sprintf("/proc/%d", pid), &st); err != nil {
			continue
		}
		p.UID, p.EUID = st.Uid, st.Uid
		procs = append(procs, p)
	}
	return procs
}
