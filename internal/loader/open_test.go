package loader

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Open opens the window as the engines of user space do.
func (e *Executor) Open() error {
	opened, _, _ := e.Clocks()
	atomic.StoreUint64(opened, monotonicNS())
	return nil
}

// Deliver runs the batch engine.
func (e *Executor) Deliver() error {
	const bpfProgTestRun = 10
	attr, size := e.Batch()
	if _, _, errno := unix.RawSyscall(unix.SYS_BPF, bpfProgTestRun, uintptr(attr), size); errno != 0 {
		return fmt.Errorf("run the batch engine: %w", errno)
	}
	return nil
}
