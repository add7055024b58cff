package storm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// stopTimeout bounds Stop. SIGKILL is not refused, but a machine that swaps
// may take its time.
const stopTimeout = time.Minute

// mine reports whether a process is the storm's: the number may have been
// handed out again. Until a member's start time is known, its process group and
// its name have to do.
func (s *Storm) mine(i int) func(stat) bool {
	return func(st stat) bool {
		if st.dead() || st.start < s.since {
			return false
		}
		if s.starts[i] != 0 {
			return s.starts[i] == st.start
		}
		return st.pgrp == s.pgid || s.direct[i] || (s.topology.regroups && s.names()[st.comm])
	}
}

// Alive lists the members that have not died, and reaps direct children that
// have.
func (s *Storm) Alive() ([]Proc, error) {
	var alive []Proc
	for i := range s.members {
		ok, err := s.alive(i)
		if err != nil {
			return nil, err
		}
		if ok {
			alive = append(alive, s.proc(i))
		}
	}
	return alive, nil
}

func (s *Storm) alive(i int) (bool, error) {
	pid := s.pid(i)
	if pid == 0 || s.stopped {
		return false, nil
	}
	st, err := readStat(pid)
	if errors.Is(err, os.ErrNotExist) {
		delete(s.direct, i)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	if st.dead() && s.direct[i] {
		return false, s.reap(i)
	}
	return s.mine(i)(st), nil
}

// reap collects a direct child that has died. Until then its pid is not handed
// out again. One whose tracer has not looked at it yet stays until that has
// gone.
func (s *Storm) reap(i int) error {
	for {
		pid, err := unix.Wait4(s.pid(i), nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && pid == 0 {
			return nil
		}
		delete(s.direct, i)
		if err != nil && !errors.Is(err, unix.ECHILD) { // ECHILD: ignored, so reaped by the kernel
			return fmt.Errorf("reap process %d: %w", s.pid(i), err)
		}
		return nil
	}
}

// Stop kills what the storm started and is still alive, waits for the ends, and
// reaps its own children. It may be called again. Processes, Marks and Woken
// keep answering afterwards.
func (s *Storm) Stop() error {
	if s.stopped || s.marks == nil {
		s.release()
		return nil
	}
	s.woken = make([]bool, len(s.members))
	for i := range s.woken {
		s.woken[i] = s.marks.load(i, slotWoken) != 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.killAll(ctx); err != nil {
		return fmt.Errorf("stop the storm: %w", err)
	}
	err := s.marks.freeze()
	s.stopped = true
	s.release()
	return err
}

func (s *Storm) release() {
	if s.arenas != nil {
		s.arenas.close()
		s.arenas = nil
		if s.opts.IgnoreChildren && s.marks != nil {
			ignoreChildren(-1)
		}
	}
}

// killAll kills in rounds: a member may be forking, and a child may not have
// been recorded yet.
func (s *Storm) killAll(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		left := 0
		// From the end: waiters come after the processes that they wait on.
		for i := len(s.members) - 1; i >= 0; i-- {
			ok, err := s.alive(i)
			if err == nil && ok {
				left++
				err = signal(s.pid(i), unix.SIGKILL, s.mine(i))
			}
			if err != nil {
				return err
			}
		}
		if left == 0 {
			strays, err := s.killStrays()
			if err != nil {
				return err
			}
			if strays == 0 && len(s.direct) == 0 {
				return nil
			}
			left = strays
		}
		if err := wait(ctx, pause); err != nil {
			return fmt.Errorf("%d processes do not die: %w", left, err)
		}
	}
}

// killStrays kills what is in the storm's process group and in no slot: the
// short-lived children of forkers. It returns how many it found.
func (s *Storm) killStrays() (int, error) {
	if s.pgid == 0 {
		return 0, nil
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return 0, fmt.Errorf("look for strays: %w", err)
	}
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, fmt.Errorf("look for strays: %w", err)
	}
	// The name as well: where the kernel reaps the members, the group's number
	// is free once the last of them is gone.
	names := s.names()
	stray := func(st stat) bool {
		return st.pgrp == s.pgid && !st.dead() && st.start >= s.since && names[st.comm]
	}
	found := 0
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry)
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err != nil || !stray(st) {
			continue
		}
		found++
		if err := signal(pid, unix.SIGKILL, stray); err != nil {
			return found, err
		}
	}
	return found, nil
}

// names are the names that a process of the storm can have: its own, or for a
// moment after its birth the owner's.
func (s *Storm) names() map[string]bool {
	names := map[string]bool{s.ownerComm: true}
	for _, m := range s.members {
		names[m.comm] = true
	}
	return names
}
