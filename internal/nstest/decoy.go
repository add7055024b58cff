package nstest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// DecoyProcess is a process with a name that somebody might kill it for. It
// dies with the process that started it, and when stopped.
type DecoyProcess struct {
	PID  int
	Comm string

	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *os.File
}

// StartDecoy starts a process of this name, 15 bytes at most, in the caller's
// namespaces, and waits until it bears the name. The test binary's TestMain must
// call Main. The caller must Stop it. Attr changes what kind of process it is:
// whose, for example.
func StartDecoy(comm string, attr ...func(*exec.Cmd)) (*DecoyProcess, error) {
	cmd := exec.Command("/proc/self/exe", comm)
	for _, f := range attr {
		f(cmd)
	}
	cmd.Env = append(os.Environ(), roleVariable+"="+roleDecoy)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start decoy: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start decoy: %w", err), stdin.Close())
	}
	cmd.Stdout = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start decoy: %w", err), stdin.Close(), r.Close())
	}
	d := &DecoyProcess{PID: cmd.Process.Pid, Comm: comm, cmd: cmd, stdin: stdin, stdout: r}
	// It answers only once it has its name.
	if err := d.Alive(); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// Alive asks the decoy for an answer and returns an error when none comes.
func (d *DecoyProcess) Alive() error {
	dead := func(err error) error {
		return fmt.Errorf("decoy %s (pid %d) does not answer, somebody killed it: %w", d.Comm, d.PID, err)
	}
	if _, err := d.stdin.Write([]byte{'?'}); err != nil {
		return dead(err)
	}
	// A stopped decoy is not dead; but it does not live either.
	if err := d.stdout.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return dead(err)
	}
	if _, err := io.ReadFull(d.stdout, make([]byte, 1)); err != nil {
		return dead(err)
	}
	return nil
}

// Stop ends the decoy and releases it. That it had been killed before is
// Alive's to say, not an error here.
func (d *DecoyProcess) Stop() error {
	err := errors.Join(d.stdin.Close(), d.stdout.Close())
	exit := (*exec.ExitError)(nil)
	if werr := d.cmd.Wait(); werr != nil && !errors.As(werr, &exit) {
		err = errors.Join(err, fmt.Errorf("stop decoy: %w", werr))
	}
	return err
}

// runDecoy takes a name and echoes bytes until end-of-file.
func runDecoy(comm string) error {
	// Through /proc, because prctl would name a thread, and the process bears
	// the name of its first.
	if err := os.WriteFile("/proc/self/comm", []byte(comm), 0); err != nil {
		return fmt.Errorf("name the decoy: %w", err)
	}
	_, err := io.Copy(os.Stdout, os.Stdin)
	return err
}
