package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
	"github.com/bpfkill/bpfkill/internal/storm"
)

const (
	watchedProcesses = 1000
	turns            = 200_000 // some seconds
)

// The rows.
const (
	unwatchedPipe = "alone"
	watchedPipe   = "beside bpfkill watch"
)

// watches measures what a watch of idle processes costs others: what perf bench sched
// pipe does, by two processes on one processor, with and without it in turns.
func (l *lab) watches(add func(Sample) error) error {
	set, err := l.stage(shape{processes: watchedProcesses})
	if err != nil {
		return err
	}
	for run := range l.Runs {
		l.say("%s: run %d of %d", PartWatch, run+1, l.Runs)
		rows := []struct {
			name  string
			round func() (uint64, error)
		}{{unwatchedPipe, passBytes}, {watchedPipe, l.passBytesWatched}}
		for i := range rows {
			row := &rows[(i+run)%len(rows)]
			ns, err := row.round()
			if err == nil {
				err = add(Sample{Part: PartWatch, Strategy: row.name, Processes: watchedProcesses, Run: run, WholeNS: ns})
			}
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", row.name, err), set.end())
			}
		}
	}
	return set.end()
}

// passBytesWatched is passBytes while bpfkill watches the set.
func (l *lab) passBytesWatched() (ns uint64, err error) {
	cmd := exec.Command(l.Bpfkill, "watch", "--target", storm.Target, "--output", "json")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// Once it has told of its first second it watches for sure.
	if _, err = out.Read(make([]byte, 1)); err == nil {
		ns, err = passBytes()
	}
	return ns, errors.Join(err, cmd.Process.Signal(unix.SIGINT), cmd.Wait())
}

// passBytes has two processes pass a byte back and forth, and returns how long that took.
func passBytes() (uint64, error) {
	out, err := helping(rolePing).Output()
	if err != nil {
		return 0, fmt.Errorf("pass bytes: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(out)), 10, 64)
}

// ping begins, and prints the nanoseconds.
func ping([]string) error {
	if err := onFirstCPU(); err != nil {
		return err
	}
	there, toThem, err := os.Pipe()
	if err != nil {
		return err
	}
	toUs, back, err := os.Pipe()
	if err != nil {
		return err
	}
	// It inherits the processor, too.
	cmd := helping(rolePong)
	cmd.ExtraFiles = []*os.File{there, back}
	if err := cmd.Start(); err != nil {
		return err
	}
	there.Close()
	back.Close()
	out, in := toThem.Fd(), toUs.Fd()
	turn(unix.SYS_WRITE, out) // it may not have begun yet
	turn(unix.SYS_READ, in)
	began := monotonicNS()
	for range turns {
		if turn(unix.SYS_WRITE, out) != 1 || turn(unix.SYS_READ, in) != 1 {
			return errors.New("the other process does not send the byte back")
		}
	}
	fmt.Println(monotonicNS() - began)
	toThem.Close()
	return cmd.Wait()
}

// pong sends every byte back.
func pong([]string) error {
	runtime.LockOSThread()
	for turn(unix.SYS_READ, 3) == 1 && turn(unix.SYS_WRITE, 4) == 1 {
	}
	return nil
}

// onFirstCPU puts the calling thread on one processor for good.
func onFirstCPU() error {
	runtime.LockOSThread()
	allowed, err := affinity.Get(0)
	if err != nil {
		return err
	}
	first := -1
	allowed.Each(func(cpu int) {
		if first < 0 {
			first = cpu
		}
	})
	one := affinity.Only(first)
	if errno := affinity.Apply(0, &one); errno != 0 {
		return fmt.Errorf("stay on CPU %d: %w", first, errno)
	}
	return nil
}

// passed is the byte.
var passed [1]byte

// turn reads or writes the byte. The runtime is not told: it would look for other work.
func turn(number, fd uintptr) uintptr {
	n, _, _ := unix.RawSyscall(number, fd, uintptr(unsafe.Pointer(&passed[0])), 1)
	return n
}
