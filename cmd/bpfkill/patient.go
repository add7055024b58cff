package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patientName is what a patient is called, in its arguments and in ps. It does not
// contain the tool's name: whoever kills that by name must not hit a patient.
const patientName = "doctor-patient"

// patient is a process on which the doctor tries things: this program again, which
// sleeps until its bed is pulled away, at the latest by the doctor's death, and
// says so if it runs after that.
type patient struct {
	cmd  *exec.Cmd
	bed  *os.File // write end of the pipe on which it sleeps
	says *os.File
}

// isPatient reports whether this process was started as one.
func isPatient() bool { return len(os.Args) == 1 && os.Args[0] == patientName }

// lieDown is a patient's whole life.
func lieDown() int {
	const bed, says = 3, 4
	var b [1]byte
	if err := unix.SetNonblock(bed, false); err != nil {
		return 1
	}
	if _, err := unix.Write(says, []byte("z")); err != nil {
		return 1
	}
	for {
		if _, err := unix.Read(bed, b[:]); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	unix.Write(says, []byte("!"))
	return 0
}

// startPatient starts a patient, which holds files besides, and waits until it is
// about to sleep. The caller ends it.
func startPatient(holds ...*os.File) (p *patient, err error) {
	sleepsOn, bed, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start a patient: %w", err)
	}
	defer sleepsOn.Close()
	says, theirs, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a patient: %w", err), bed.Close())
	}
	defer theirs.Close()
	p = &patient{bed: bed, says: says, cmd: &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{patientName}, Dir: "/", Env: []string{"GOMAXPROCS=1"},
		ExtraFiles: append([]*os.File{sleepsOn, theirs}, holds...),
	}}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start a patient: %w", err), bed.Close(), says.Close())
	}
	if err := p.hears('z'); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

func (p *patient) pid() int32 { return int32(p.cmd.Process.Pid) }

// hears waits for a patient's word.
func (p *patient) hears(word byte) error {
	var b [1]byte
	if err := p.says.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := p.says.Read(b[:]); err != nil || b[0] != word {
		return fmt.Errorf("process %d, started for a trial, said %q: %w", p.pid(), b[0], err)
	}
	return nil
}

// patience is how long a trial may take: an emulated machine is slow.
const patience = 20 * time.Second

// diesAsleep waits for the patient's death, and returns nil if SIGKILL ended it
// before it ran again.
func (p *patient) diesAsleep() error {
	if err := p.says.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var b [1]byte
	n, err := p.says.Read(b[:])
	switch {
	case n > 0:
		return errors.New("it ran in user mode")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it lives on after %v", patience)
	}
	p.cmd.Wait() // that it was killed is what is expected
	if st, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !st.Signaled() || st.Signal() != unix.SIGKILL {
		return fmt.Errorf("it ended with %v", p.cmd.ProcessState)
	}
	return nil
}

// end kills and buries the patient, however it is.
func (p *patient) end() {
	p.bed.Close()
	p.says.Close()
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Kill() // it may be dead
		p.cmd.Wait()
	}
}
