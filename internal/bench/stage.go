package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/bpfkill/bpfkill/internal/waitgraph"
)

// staged is a set of sleeping processes, the children of a wakestorm that has
// them reaped by the kernel.
type staged struct {
	bpfkill string // the program to kill them with
	cgroup  string // that they alone are in, "" for none
	marks   string
	pids    []int
	pgid    int
	procs   []waitgraph.KernelIdentity

	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// shape is what each of the processes has.
type shape struct {
	processes   int
	memMiB      int
	descriptors int
}

// stage starts the processes and returns when all are asleep. The caller ends them.
func (l *lab) stage(sh shape) (s *staged, err error) {
	s = &staged{bpfkill: l.Bpfkill, cgroup: l.cgroup, marks: filepath.Join(l.dir, "marks")}
	s.cmd = exec.Command("/proc/self/exe", "run", "--topology", "sleepers", "--processes", strconv.Itoa(sh.processes),
		"--mem", strconv.Itoa(sh.memMiB), "--descriptors", strconv.Itoa(sh.descriptors), "--marks", s.marks,
		"--until-eof", "--timeout", "3m")
	s.cmd.Stderr = os.Stderr
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(stdout)
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("stage %d processes: %w", sh.processes, err)
	}
	if err := s.settle(l); err != nil {
		return nil, errors.Join(fmt.Errorf("stage %d processes: %w", sh.processes, err), s.end())
	}
	return s, nil
}

func (s *staged) settle(l *lab) error {
	var ready struct {
		Pids map[string][]int `json:"pids"`
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, &ready); err != nil {
		return err
	}
	s.pids = ready.Pids[storm.Target]
	if len(s.pids) == 0 {
		return errors.New("nobody was staged")
	}
	if s.pgid, err = unix.Getpgid(s.pids[0]); err != nil {
		return err
	}
	if err := s.join(); err != nil {
		return err
	}
	return s.identify(l)
}

// join puts all into the cgroup.
func (s *staged) join() error {
	if s.cgroup == "" {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(s.cgroup, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, pid := range s.pids {
		if _, err := f.WriteString(strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// identify finds out who they are to the kernel.
func (s *staged) identify(l *lab) error {
	procs, err := l.snapshotter.Processes()
	if err != nil {
		return err
	}
	staged := make(map[int32]bool, len(s.pids))
	for _, pid := range s.pids {
		staged[int32(pid)] = true
	}
	for i := range procs {
		if staged[procs[i].PID] {
			s.procs = append(s.procs, procs[i].KernelIdentity())
		}
	}
	if len(s.procs) != len(s.pids) {
		return fmt.Errorf("%d of %d processes found", len(s.procs), len(s.pids))
	}
	return nil
}

// woken counts those that ran user code after they had fallen asleep, by their
// own account.
func (s *staged) woken() (n int, err error) {
	marks, err := storm.ReadMarks(s.marks)
	for _, m := range marks {
		if m.Woken {
			n++
		}
	}
	return n, err
}

// end ends whoever is left, and waits until they are gone.
func (s *staged) end() error {
	s.stdin.Close()
	_, err := io.Copy(io.Discard, s.out)
	return errors.Join(err, s.cmd.Wait())
}
