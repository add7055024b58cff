package window

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// spareFDs is how many descriptors the set leaves to the rest of the program,
// beyond those that are open when it is made: iterators, /proc files, epoll.
const spareFDs = 64

// leastFDs is how many pidfds there must be room for.
const leastFDs = 16

// reservedFDs is what the set must not take: what is open, and spareFDs.
func reservedFDs() int {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 2 * spareFDs
	}
	return len(open) + spareFDs
}

// pidfdSet holds pidfds of processes, up to a limit.
type pidfdSet struct {
	fds   map[waitgraph.KernelIdentity]int // -1: the process is gone
	err   error                            // why the last that could not be opened was not
	used  int                              // descriptors in use
	limit int
}

func newPidfdSet(limit int) *pidfdSet {
	return &pidfdSet{fds: make(map[waitgraph.KernelIdentity]int), limit: limit}
}

// growTable makes room for n descriptors at once. Where there are threads, the
// kernel waits some 10 ms, until nobody reads the old table, each time that it
// doubles it. Without room for so many it does nothing.
func growTable(n int) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if last, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, n-1); err == nil {
		unix.Close(last)
	}
}

// open opens a pidfd for p, and reports false when that cannot be, mostly for want of
// a descriptor. A process that is gone takes none.
func (s *pidfdSet) open(p *waitgraph.Process) bool {
	if _, ok := s.fds[p.KernelIdentity()]; ok {
		return true
	}
	if s.used >= s.limit {
		s.err = unix.EMFILE
		return false
	}
	fd, err := unix.PidfdOpen(int(p.PID), 0)
	switch {
	case err == nil:
		s.used++
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		fd = -1 // gone, and the number may be a thread's by now
	default:
		s.err = err
		return false
	}
	s.fds[p.KernelIdentity()] = fd
	return true
}

// refused is why no pidfd can be had whatever is closed: a seccomp filter that does not
// know the call, or a security module. It is nil where descriptors or memory were short.
func (s *pidfdSet) refused() error {
	switch {
	case s.err == nil, errors.Is(s.err, unix.EMFILE), errors.Is(s.err, unix.ENFILE), errors.Is(s.err, unix.ENOMEM):
		return nil
	}
	return fmt.Errorf("pidfd_open: %w: is there a seccomp filter or a security module that forbids it?", s.err)
}

// get returns the pidfd of p, -1 for a process that is gone, and whether p is
// in the set at all.
func (s *pidfdSet) get(p *waitgraph.Process) (fd int, ok bool) {
	fd, ok = s.fds[p.KernelIdentity()]
	return fd, ok
}

// forget closes the pidfd of a process that is not whom it was opened for.
func (s *pidfdSet) forget(k waitgraph.KernelIdentity) {
	if fd, ok := s.fds[k]; ok && fd >= 0 {
		unix.Close(fd)
		s.used--
		s.fds[k] = -1
	}
}

// drop makes room: the process is dead and not waited for any more.
func (s *pidfdSet) drop(k waitgraph.KernelIdentity) {
	s.forget(k)
	delete(s.fds, k)
}

// closeAll empties the set.
func (s *pidfdSet) closeAll() {
	for _, fd := range s.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	clear(s.fds)
	s.used = 0
}

// Close closes every pidfd.
func (s *pidfdSet) Close() error {
	s.closeAll()
	return nil
}

// pidfdKill sends SIGKILL through a pidfd without allocating or giving the Go
// scheduler a chance. A negative fd is a process that is gone.
//
//go:nosplit
func pidfdKill(fd int) unix.Errno {
	if fd < 0 {
		return unix.ESRCH
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(fd), uintptr(unix.SIGKILL), 0, 0, 0, 0)
	return errno
}

// RaiseFileLimit raises the soft limit of open files to the hard one. It fails
// where even that leaves no room for BPF programs, maps and links beside what is
// open already.
func RaiseFileLimit() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	if wanted := uint64(reservedFDs() + leastFDs); lim.Max < wanted {
		raised := unix.Rlimit{Cur: wanted, Max: wanted} // with CAP_SYS_RESOURCE
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
			return fmt.Errorf("%d open files are needed, and the hard limit is %d: raise it with ulimit -Hn", wanted, lim.Max)
		}
		return nil
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("raise RLIMIT_NOFILE: %w", err)
	}
	return nil
}

// raiseFileLimit raises RLIMIT_NOFILE as far as n pidfds want and privileges
// allow, and returns how many pidfds may be open.
func raiseFileLimit(n int) int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0
	}
	reserved := reservedFDs()
	want := uint64(n + reserved)
	if lim.Cur < want {
		raised := lim
		raised.Cur = want
		raised.Max = max(lim.Max, want) // with CAP_SYS_RESOURCE
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
			raised = unix.Rlimit{Cur: min(want, lim.Max), Max: lim.Max}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err != nil {
				raised = lim
			}
		}
		lim = raised
	}
	return max(1, int(min(lim.Cur, 1<<30))-reserved)
}
