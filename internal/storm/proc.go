package storm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// stat is what /proc/PID/stat says; reading it touches none of the process's
// own pages.
type stat struct {
	comm  string
	state byte
	ppid  int
	pgrp  int
	start uint64 // clock ticks since boot
}

func (s *stat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

// readStat returns an error that satisfies errors.Is(err, os.ErrNotExist) when
// there is no such process.
func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		if errors.Is(err, unix.ESRCH) { // it went between open and read
			err = os.ErrNotExist
		}
		return stat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (stat, error) {
	// The name may hold blanks and parentheses; the last one ends it.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return stat{}, fmt.Errorf("parse stat: no name in %q", b)
	}
	f := bytes.Fields(b[end+1:])
	if len(f) < 20 {
		return stat{}, fmt.Errorf("parse stat: %d fields after the name, want 20 or more", len(f))
	}
	s := stat{comm: string(b[open+1 : end]), state: f[0][0]}
	var errs [3]error
	s.ppid, errs[0] = strconv.Atoi(string(f[1]))
	s.pgrp, errs[1] = strconv.Atoi(string(f[2]))
	s.start, errs[2] = strconv.ParseUint(string(f[19]), 10, 64)
	return s, errors.Join(errs[:]...)
}

// threads lists the threads of a process.
func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return nil, fmt.Errorf("list threads of %d: %w", pid, err)
	}
	var tids []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// threadSleepsIn reports whether a thread of a process, not the leader, sleeps in
// a system call, as far as that is to be seen.
func threadSleepsIn(pid, call int) (bool, error) {
	tids, err := threads(pid)
	if err != nil {
		return false, err
	}
	for _, tid := range tids {
		st, err := readStat(tid)
		if tid == pid || err != nil || st.state != 'S' {
			continue
		}
		if now, err := blockedIn(tid); err != nil || now == call {
			return true, nil
		}
	}
	return false, nil
}

// blockedIn returns the system call that a process sleeps in, or -1 when it
// runs, or is not to be seen. Linux shows it to whoever may trace the process.
func blockedIn(pid int) (int, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/syscall")
	if err != nil {
		return -1, err
	}
	first, _, _ := bytes.Cut(b, []byte{' '})
	n, err := strconv.Atoi(string(first))
	if err != nil { // "running"
		return -1, nil
	}
	return n, nil
}

// signal sends sig to the process that is known to be pid through a pidfd, if
// accept still says so once the pidfd pins it.
func signal(pid int, sig unix.Signal, accept func(stat) bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		// EINVAL: the number is still there, but no process of that number: it is
		// being reaped, or a thread of somebody else's.
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		return fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	st, err := readStat(pid)
	if errors.Is(err, os.ErrNotExist) || (err == nil && !accept(st)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("identify process %d: %w", pid, err)
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	return nil
}
