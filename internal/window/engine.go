package window

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// engine delivers the signals. load prepares the shot; settle runs after it and
// records what became of each signal.
type engine interface {
	load(*shot)
	settle() error
	close()
}

func (r *run) newEngine() (engine, error) {
	switch r.Engine {
	case EngineBatch:
		return &batchEngine{r}, nil
	case EngineCgroup:
		f, err := os.OpenFile(r.CgroupKill, os.O_WRONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("open cgroup.kill: %w", err)
		}
		return &cgroupEngine{run: r, file: f}, nil
	default:
		return newLoopEngine(r), nil
	}
}

// batchEngine is one run of a BPF program.
type batchEngine struct{ *run }

func (e *batchEngine) load(s *shot) { s.batch, s.batchSize = e.kernel.Batch() }
func (e *batchEngine) close()       {}

// settle signals again, by pidfd, what the program could not: it refuses a
// process whose leader thread has exited (PF_EXITING) while others live on.
func (e *batchEngine) settle() error {
	errs, err := e.kernel.DeliveryErrors()
	if err != nil {
		return err
	}
	var failed []int
	for i := range e.victims {
		if errs[i] == nil || errors.Is(errs[i], unix.ESRCH) {
			e.record(i, errs[i])
		} else {
			failed = append(failed, i)
		}
	}
	return e.late(failed)
}

// record notes how the signal of one victim ended.
func (r *run) record(i int, err error) {
	p := &r.victims[i]
	switch {
	case err == nil:
		r.out.Signalled++
	case errors.Is(err, unix.ESRCH):
		r.skip(p, ErrGone)
	default:
		r.out.Refused = append(r.out.Refused, Failure{*p, err})
	}
}

// late signals victims after the window, through pidfds that are opened,
// identified and closed a piece at a time: nobody is missed or mistaken, however
// few descriptors there are.
//
// The window is open until then, and whoever runs meanwhile is counted.
func (r *run) late(todo []int) error {
	if len(todo) == 0 {
		return nil
	}
	_, _, released := r.kernel.Clocks()
	atomic.StoreUint64(released, 0)
	defer func() { atomic.StoreUint64(released, clock()) }()
	for len(todo) > 0 {
		piece, err := r.latePiece(todo)
		if err != nil {
			for _, i := range todo {
				r.record(i, err)
			}
			return err
		}
		todo = todo[piece:]
	}
	return nil
}

// latePiece signals as many of todo as there are descriptors for, and returns how many
// those are. With an error it is none.
func (r *run) latePiece(todo []int) (n int, err error) {
	r.pidfds.closeAll()
	for n < len(todo) && r.pidfds.open(&r.victims[todo[n]]) {
		n++
	}
	if n == 0 {
		return 0, fmt.Errorf("no file descriptor for a single pidfd: %w: raise ulimit -n", r.pidfds.err)
	}
	alive, err := r.alive()
	if err != nil {
		return 0, err
	}
	for _, i := range todo[:n] {
		fd, _ := r.pidfds.get(&r.victims[i])
		if _, ok := alive[r.victims[i].KernelIdentity()]; !ok {
			fd = -1
		}
		r.record(i, errnoError(pidfdKill(fd)))
	}
	return n, nil
}

// errnoError keeps 0 from becoming an error that is not nil.
func errnoError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// loopEngine calls pidfd_send_signal for each process, in plan order. Those
// beyond the last descriptor follow after the window.
type loopEngine struct {
	*run
	fds  []int // of the leading victims; -1: gone
	errs []unix.Errno
}

func newLoopEngine(r *run) *loopEngine {
	e := &loopEngine{run: r}
	for i := range r.victims {
		fd, opened := r.pidfds.get(&r.victims[i])
		if !opened {
			break
		}
		e.fds = append(e.fds, fd)
	}
	e.errs = make([]unix.Errno, len(e.fds))
	for i := range e.errs {
		e.errs[i] = unix.EINPROGRESS // a store: the pages are there before the window
	}
	return e
}

func (e *loopEngine) load(s *shot) { s.fds, s.errs = e.fds, e.errs }

func (e *loopEngine) settle() error {
	for i, errno := range e.errs {
		e.record(i, errnoError(errno))
	}
	var rest []int
	for i := len(e.fds); i < len(e.victims); i++ {
		rest = append(rest, i)
	}
	return e.late(rest)
}

func (e *loopEngine) close() {}

// cgroupEngine is one write to cgroup.kill.
type cgroupEngine struct {
	*run
	file *os.File
}

func (e *cgroupEngine) load(s *shot) { s.cgroup = int(e.file.Fd()) }

func (e *cgroupEngine) settle() error {
	for i := range e.victims {
		fd, opened := e.pidfds.get(&e.victims[i])
		if opened && fd < 0 {
			e.record(i, unix.ESRCH)
		} else {
			e.record(i, nil)
		}
	}
	return nil
}

func (e *cgroupEngine) close() { e.file.Close() }
