package storm

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// setThreadPointer says where thread-local memory ends: Go code that has called
// assembly loads its g from there, used or not.
//
//go:nosplit
//go:norace
//go:nocheckptr
func setThreadPointer(address uintptr) {
	const archSetFS = 0x1002
	syscall.RawSyscall6(unix.SYS_ARCH_PRCTL, archSetFS, address, 0, 0, 0, 0)
}
