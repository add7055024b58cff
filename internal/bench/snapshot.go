package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Who is read.
const (
	snapshotProcesses   = 10_000
	snapshotDescriptors = 10 // of each
	// slowRuns bounds the runs of a reader that takes seconds.
	slowRuns = 3
)

// reader is one way to read all processes with their descriptors. It returns how
// many descriptors it found.
type reader struct {
	name string
	slow bool
	read func(*lab) (int, error)
}

// The reader that the others are compared with.
const ourSnapshot = "bpfkill snapshot"

var readers = []reader{
	{ourSnapshot, false, func(l *lab) (int, error) {
		snap, err := l.snapshotter.Take()
		if err != nil {
			return 0, err
		}
		return len(snap.Descriptors), nil
	}},
	{"/proc/*/fd", false, func(*lab) (int, error) { return readProc() }},
	{"lsfd", true, func(*lab) (int, error) {
		return countLines("lsfd", "--noheadings", "--raw", "--output", "PID,ASSOC,NAME")
	}},
	{"lsof", true, func(*lab) (int, error) { return countLines("lsof", "-n", "-P", "-w") }},
}

func (l *lab) snapshots(add func(Sample) error) error {
	set, err := l.stage(shape{processes: snapshotProcesses, descriptors: snapshotDescriptors})
	if err != nil {
		return err
	}
	for run := range l.Runs {
		l.say("%s: run %d of %d", PartSnapshot, run+1, l.Runs)
		for _, r := range readers {
			if r.slow && run >= slowRuns {
				continue
			}
			began := monotonicNS()
			n, err := r.read(l)
			took := monotonicNS() - began
			if errors.Is(err, exec.ErrNotFound) {
				l.say("%s: left out: not installed", r.name)
				continue
			}
			if err == nil && n < snapshotProcesses*snapshotDescriptors {
				err = fmt.Errorf("%d descriptors found", n)
			}
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", r.name, err), set.end())
			}
			sample := Sample{Part: PartSnapshot, Strategy: r.name, Processes: snapshotProcesses, Run: run, WholeNS: took, Descriptors: n}
			if err := add(sample); err != nil {
				return errors.Join(err, set.end())
			}
		}
	}
	return set.end()
}

// readProc does the least that a program has to that learns from /proc what each
// descriptor is.
func readProc() (n int, err error) {
	entries, err := names("/proc")
	if err != nil {
		return 0, err
	}
	for _, pid := range entries {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		dir := filepath.Join("/proc", pid, "fd")
		fds, err := names(dir)
		if err != nil {
			continue // it is gone
		}
		for _, fd := range fds {
			if _, err := os.Readlink(dir + "/" + fd); err == nil {
				n++
			}
		}
	}
	return n, nil
}

func names(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// countLines runs a program and counts the lines that it prints.
func countLines(name string, args ...string) (int, error) {
	counter := &lineCounter{}
	cmd := exec.Command(name, args...)
	cmd.Stdout = counter
	err := cmd.Run()
	// lsof's status is 1 for a process that has ended meanwhile.
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	return counter.lines, err
}

type lineCounter struct{ lines int }

func (c *lineCounter) Write(b []byte) (int, error) {
	for _, x := range b {
		if x == '\n' {
			c.lines++
		}
	}
	return len(b), nil
}
