package storm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// WaitReady returns when every member has marked itself ready and, except for
// forkers, really sleeps in its blocking call: it is in the state that goes with
// it (S, for most), and in the right system call where the kernel lets us see
// that. It fails when a member
// could not play its part or died, or ctx ends.
func (s *Storm) WaitReady(ctx context.Context) error {
	pending := make([]int, len(s.members))
	for i := range pending {
		pending[i] = i
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		rest := pending[:0]
		for _, i := range pending {
			s.admit(i)
			ok, err := s.settled(i)
			if err != nil {
				return err
			}
			if ok {
				s.asleep[i] = true
			} else {
				rest = append(rest, i)
			}
		}
		if len(rest) < len(pending) {
			pause = time.Millisecond
		}
		if pending = rest; len(pending) == 0 {
			return s.marks.seal()
		}
		if err := wait(ctx, pause); err != nil {
			return fmt.Errorf("%d of %d processes are not asleep (first: %s): %w", len(pending), len(s.members), s.describe(pending[0]), err)
		}
	}
}

// admit gives member i its turn once those that it comes after are asleep.
func (s *Storm) admit(i int) {
	after := s.members[i].after
	if len(after) > 0 && s.marks.load(i, slotTurn) == 0 &&
		!slices.ContainsFunc(after, func(a int) bool { return !s.asleep[a] }) {
		s.marks.giveTurn(i)
	}
}

// wait pauses between two looks at a state that the kernel does not announce.
func wait(ctx context.Context, pause time.Duration) error {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// settled reports whether member i is ready, and records its start time.
func (s *Storm) settled(i int) (bool, error) {
	if errno := s.marks.load(i, slotErrno); errno != 0 {
		call := s.marks.load(i, slotCall)
		err := fmt.Errorf("%s %d: %s: %w", s.members[i].comm, s.pid(i), callName(call), unix.Errno(errno))
		if call == unix.SYS_CLONE {
			err = fmt.Errorf("%w (%s)", err, forkRemedy)
		}
		return false, err
	}
	pid := s.pid(i)
	if pid == 0 {
		// Its parent may have died before it could fork.
		if p := s.members[i].parent; p != owner {
			return false, s.died(p)
		}
		return false, nil
	}
	st, err := readStat(pid)
	if errors.Is(err, os.ErrNotExist) || (err == nil && st.dead()) {
		if s.marks.load(i, slotErrno) != 0 {
			return s.settled(i)
		}
		return false, fmt.Errorf("%s %d died before it was ready", s.members[i].comm, pid)
	}
	if err != nil {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	if s.marks.load(i, slotReady) == 0 {
		return false, nil
	}
	if s.marks.load(i, slotWoken) != 0 {
		return false, fmt.Errorf("%s %d (%s) woke before anybody died", s.members[i].comm, pid, s.members[i].role)
	}
	if call := s.members[i].aside; call != 0 {
		if ok, err := threadSleepsIn(pid, call); err != nil || !ok {
			return false, err
		}
	}
	if call := s.members[i].call; call != restless {
		if st.state != s.members[i].stateThere() {
			return false, nil
		}
		// Not to be seen by a caller that may not trace, or of one who was
		// stopped on the way out: the state must do.
		if st.state == 'T' || st.state == 't' {
			s.starts[i] = st.start
			return true, nil
		}
		if now, err := blockedIn(pid); err == nil && now != call {
			return false, nil
		}
	}
	s.starts[i] = st.start
	return true, nil
}

// died returns an error when a member that should fork others is gone.
func (s *Storm) died(i int) error {
	pid := s.pid(i)
	if pid == 0 {
		return nil
	}
	if st, err := readStat(pid); errors.Is(err, os.ErrNotExist) || (err == nil && st.dead()) {
		if s.marks.load(i, slotErrno) != 0 {
			return nil // its own look will say why
		}
		return fmt.Errorf("%s %d died before it had forked its children", s.members[i].comm, pid)
	}
	return nil
}

func (s *Storm) describe(i int) string {
	text := fmt.Sprintf("%s %d", s.members[i].comm, s.pid(i))
	if st, err := readStat(s.pid(i)); err == nil {
		text += fmt.Sprintf(" in state %c", st.state)
	}
	if s.marks.load(i, slotReady) == 0 {
		text += ", not at its blocking call yet"
	}
	return text
}

// callName names the system calls that a script cannot do without.
func callName(n uint32) string {
	switch n {
	case unix.SYS_CLONE:
		return "fork"
	case unix.SYS_MMAP:
		return "mmap"
	case unix.SYS_PIPE2:
		return "pipe2"
	case unix.SYS_SOCKET:
		return "socket"
	case unix.SYS_BIND:
		return "bind"
	case unix.SYS_CLOSE_RANGE:
		return "close_range (Linux 5.9 or later)"
	case unix.SYS_INOTIFY_INIT1:
		return "inotify_init1 (fs.inotify.max_user_instances)"
	case unix.SYS_CONNECT:
		return "connect"
	case unix.SYS_SETSOCKOPT:
		return "setsockopt"
	case unix.SYS_IOCTL:
		return "ioctl"
	case unix.SYS_EPOLL_CREATE1:
		return "epoll_create1"
	}
	return fmt.Sprintf("system call %d", n)
}
