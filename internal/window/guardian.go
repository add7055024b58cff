package window

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guardianName is what the guardian is called, in its arguments and in ps. It
// does not contain the killer's name: whoever kills that by name must not hit the
// guardian, too.
const guardianName = "corral-guard"

// guardian is a small process that outlives the killer: this program again, which
// waits on a socket until the killer is gone and then gives the processors back to
// whom they were taken from. It holds no BPF program, no terminal and no directory.
//
// It is started after the snapshot: no plan can contain it.
type guardian struct {
	cmd   *exec.Cmd
	conn  *os.File
	memfd *os.File
	table *table // once made

	awaited bool  // awaitReady has been called
	ready   error // what it returned
	ended   bool  // by takeOver
}

// startGuardian does not wait until the guardian is ready.
func startGuardian() (*guardian, error) {
	memfd, err := unix.MemfdCreate(guardianName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	g := &guardian{memfd: os.NewFile(uintptr(memfd), guardianName)}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socketpair: %w", err), g.memfd.Close())
	}
	g.conn = os.NewFile(uintptr(pair[0]), "guardian")
	theirs := os.NewFile(uintptr(pair[1]), "killer")
	defer theirs.Close()
	g.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{guardianName}, Dir: "/",
		// One thread, and a heap that is never collected: it is small.
		Env:         []string{"GOMAXPROCS=1", "GOGC=off"},
		ExtraFiles:  []*os.File{theirs, g.memfd},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := g.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the guardian: %w", err), g.conn.Close(), g.memfd.Close())
	}
	return g, nil
}

// awaitReady waits until the guardian guards. Once is enough: the outcome stays.
func (g *guardian) awaitReady(ctx context.Context, limit time.Duration) error {
	if !g.awaited {
		g.awaited, g.ready = true, g.wait(ctx, limit)
	}
	return g.ready
}

func (g *guardian) wait(ctx context.Context, limit time.Duration) error {
	poll := []unix.PollFd{{Fd: int32(g.conn.Fd()), Events: unix.POLLIN}}
	for deadline := time.Now().Add(limit); ; {
		n, err := unix.Poll(poll, int(min(tick, max(0, time.Until(deadline))).Milliseconds()))
		if err := ctx.Err(); err != nil {
			return err
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the guardian: %w", err)
		}
		if n == 0 {
			if time.Now().Before(deadline) {
				continue
			}
			return fmt.Errorf("the guardian is not ready after %v", limit)
		}
		var b [1]byte
		if n, err := unix.Read(int(g.conn.Fd()), b[:]); err != nil || n != 1 {
			return errors.New("the guardian ended before it was ready")
		}
		return nil
	}
}

// takeOver has the guardian do what it would if the killer died now, and waits for it,
// but not for ever: it may be stopped.
func (g *guardian) takeOver() error {
	g.ended = true
	err := g.conn.Close()
	late := time.AfterFunc(2*guardLimit, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	if werr := g.cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("the guardian: %w", werr))
	}
	return err
}

// dismiss ends the guardian: nothing is left to restore. Without having called
// it the killer may die at any moment.
func (g *guardian) dismiss() error {
	if g.ended {
		return errors.Join(g.table.unmap(), g.memfd.Close())
	}
	var errs []error
	if g.table != nil {
		g.table.finish()
		errs = append(errs, g.table.unmap())
	}
	// It has nothing left to do, and may be stopped, or starved by somebody.
	errs = append(errs, g.conn.Close(), g.memfd.Close())
	if err := g.cmd.Process.Kill(); !errors.Is(err, os.ErrProcessDone) {
		errs = append(errs, err)
	}
	exit := (*exec.ExitError)(nil)
	if err := g.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		errs = append(errs, fmt.Errorf("the guardian: %w", err))
	}
	return errors.Join(errs...)
}
