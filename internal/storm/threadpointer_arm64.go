package storm

// setThreadPointer has nothing to do: g stays in a register on this architecture.
//
//go:nosplit
//go:norace
//go:nocheckptr
func setThreadPointer(uintptr) {}
