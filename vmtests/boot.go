package vmtests

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

// errNoVerdict says that a guest ended, or was ended, without a verdict.
var errNoVerdict = errors.New("no verdict came")

// infrastructureError says that a guest died instead of deciding: nothing is
// known about the tests. An emulated guest does so now and then (in
// text_poke, once in some thirty boots).
type infrastructureError struct {
	why     error
	console string
}

func (e *infrastructureError) Error() string { return "the guest died: " + e.why.Error() }
func (e *infrastructureError) Unwrap() error { return e.why }

// vm is one guest to boot.
type vm struct {
	arch      Arch
	kernel    string // image
	initramfs string
	memoryMiB int
	limit     time.Duration // from power on to the verdict
	silence   time.Duration // the longest time without a heartbeat
	copyTo    io.Writer     // gets the console as it comes; may be nil
	swapDisk  *os.File      // image of the guest's only disk; nil for none
	cpus      int           // 0 for two
	// counting is the emulator of a guest whose clock counts instructions; nil for
	// one whose clock is the emulating machine's.
	counting *Emulator
	// parameters are further ones for the kernel.
	parameters []string
}

// run is what one boot gave.
type run struct {
	verdict protocol.Verdict
	console string
	boot    time.Duration // power on to user space
	total   time.Duration
	boots   int // until there was a verdict
}

// decide boots the guest, a second time if the first died, and says so
// through log. A verdict is final here, whatever it says.
func decide(ctx context.Context, log func(format string, args ...any), boot func(context.Context) (run, error)) (run, error) {
	result, err := boot(ctx)
	result.boots = 1
	var died *infrastructureError
	if err == nil || !errors.As(err, &died) || ctx.Err() != nil {
		return result, err
	}
	log("%v; booting once more. The end of its console:\n%s", err, tail(died.console, 40))
	result, err = boot(ctx)
	result.boots = 2
	if err != nil {
		err = fmt.Errorf("twice in a row: %w", err)
	}
	return result, err
}

// boot boots the guest once and waits for its verdict. QEMU is gone when it
// returns.
func (v *vm) boot(ctx context.Context) (run, error) {
	nonce, err := newNonce()
	if err != nil {
		return run{}, err
	}
	console := newConsole(nonce)
	var stderr bytes.Buffer
	command := v.arch.QEMU
	if v.counting != nil {
		command = v.counting.Command
	}
	cmd := exec.Command(command, arguments(
		machineOf(v.arch), countInstructions(v.counting), cpus(cmp.Or(v.cpus, 2)), memoryMiB(v.memoryMiB), bare(), serial(v.arch),
		endOnPanic(), marked(), emulated(), swapDisk(v.swapDisk != nil), parameters(v.parameters...), extra(), direct(v.kernel, v.initramfs, nonce))...)
	cmd.Stdout, cmd.Stderr = console, &stderr
	if v.swapDisk != nil {
		cmd.ExtraFiles = []*os.File{v.swapDisk}
	}
	if v.copyTo != nil {
		cmd.Stdout = io.MultiWriter(console, v.copyTo)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	begin := time.Now()
	exited, err := startOnItsThread(cmd)
	if err != nil {
		return run{}, fmt.Errorf("start %s: %w; VMTEST_ARCH=%s make setup installs it", command, err, v.arch.Name)
	}
	why := v.watch(ctx, console, exited)
	_ = cmd.Process.Kill()
	<-exited

	result := run{console: console.Text(), total: time.Since(begin)}
	if ready := console.readyAt(); !ready.IsZero() {
		result.boot = ready.Sub(begin)
	}
	verdict, err := console.Verdict()
	if err == nil {
		result.verdict = verdict
		return result, nil
	}
	if ctx.Err() != nil {
		return result, ctx.Err()
	}
	if !errors.Is(err, errNoVerdict) {
		why = err
	}
	text := result.console
	if said := strings.TrimSpace(stderr.String()); said != "" {
		text += "\nQEMU: " + said + "\n"
	}
	return result, &infrastructureError{why: why, console: text}
}

// watch returns when the guest has decided, died or overstayed, and why.
func (v *vm) watch(ctx context.Context, console *console, exited <-chan error) error {
	limit := time.NewTimer(v.limit)
	defer limit.Stop()
	pulse := time.NewTicker(time.Second)
	defer pulse.Stop()
	for {
		select {
		case <-console.decided:
			return nil
		case err := <-exited:
			if err == nil {
				return fmt.Errorf("%w before the machine ended", errNoVerdict)
			}
			return fmt.Errorf("%w before the machine ended (QEMU: %v)", errNoVerdict, err)
		case <-limit.C:
			return fmt.Errorf("%w within %v", errNoVerdict, v.limit)
		case <-ctx.Done():
			return ctx.Err()
		case <-pulse.C:
			if silence := console.silence(); silence > v.silence {
				return fmt.Errorf("%w, and the console has been silent for %v", errNoVerdict, silence.Round(time.Second))
			}
		}
	}
}

// startOnItsThread starts a command whose death signal is tied to the thread
// that started it, and keeps that thread until the command ends. The channel
// gives the command's end once and is then closed.
func startOnItsThread(cmd *exec.Cmd) (<-chan error, error) {
	started, exited := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	return exited, <-started
}

func newNonce() (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make a nonce: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// tail returns the last n lines of text.
func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
