package storm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The marks are memory shared by every process of a storm and its owner: a
// header and one 96-byte slot a process, in the machine's byte order. Each
// process writes only its own slot, so nothing needs a lock; the owner writes a
// slot's turn.
const (
	slotPID   = 0  // uint32
	slotReady = 4  // uint32, 1 just before the blocking call
	slotWoken = 8  // uint32, 1 as soon as the blocking call has returned
	slotCall  = 12 // uint32, the system call that failed
	slotErrno = 16 // uint32, why it failed, 0 for no failure
	slotIndex = 20 // uint32
	slotValue = 24 // int64, what the blocking call returned
	slotMem   = 32 // uint64, address of the filled memory
	slotSum   = 40 // uint64, sum of the memory after the wake
	slotComm  = 48 // 16 bytes, NUL-terminated
	slotCatch = 64 // uint32, the last signal that the process's handler got
	slotTurn  = 68 // uint32, 1 once the process may go on to its blocking call
	slotSize  = 96

	headerSize = 64
)

var marksMagic = [8]byte{'W', 'A', 'K', 'E', 'M', 'R', 'K', '2'}

// Mark is what one process said about itself in shared memory. It is the
// storm's ground truth: nobody but the process wrote it.
type Mark struct {
	PID   int
	Comm  string
	Ready bool // it was about to block
	Woken bool // it ran user code: its blocking call returned, or a handler was called
	// Signal is the last signal that a handler of its own got, 0 for none.
	Signal int
	// Value is what the blocking call returned, a negative errno on failure.
	Value int64
	// Sum is the sum of the process's memory, read back after the wake; 0 where
	// it was given none or has not finished reading.
	Sum uint64
}

type marks struct {
	file *os.File
	mem  []byte
}

// newMarks creates the shared memory for n processes in the file at path, or
// in anonymous memory when path is empty.
func newMarks(path string, n int) (*marks, error) {
	var f *os.File
	if path == "" {
		fd, err := unix.MemfdCreate("wakestorm-marks", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("create memory for the marks: %w", err)
		}
		f = os.NewFile(uintptr(fd), "memfd:wakestorm-marks")
	} else {
		var err error
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return nil, fmt.Errorf("create the marks: %w", err)
		}
	}
	size := headerSize + n*slotSize
	if err := f.Truncate(int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("size the marks: %w", err), f.Close())
	}
	mem, err := mapNear(marksPlace, int(f.Fd()), size, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map the marks: %w", err), f.Close())
	}
	copy(mem, marksMagic[:])
	binary.NativeEndian.PutUint32(mem[8:], uint32(n))
	binary.NativeEndian.PutUint32(mem[12:], slotSize)
	return &marks{file: f, mem: mem}, nil
}

func (m *marks) slot(i int) []byte { return m.mem[headerSize+i*slotSize:][:slotSize] }

// address is where slot i lies in every process of the storm.
func (m *marks) address(i int) uintptr { return uintptr(unsafe.Pointer(&m.slot(i)[0])) }

func (m *marks) load(i, field int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&m.slot(i)[field])))
}

func (m *marks) setPID(i, pid int) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&m.slot(i)[slotPID])), uint32(pid))
}

// giveTurn lets process i go on to its blocking call; see builder.turn.
func (m *marks) giveTurn(i int) {
	word := (*uint32)(unsafe.Pointer(&m.slot(i)[slotTurn]))
	atomic.StoreUint32(word, 1)
	// Shared, not FUTEX_PRIVATE: the sleeper is another process.
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWake, 1, 0, 0, 0)
}

func (m *marks) describe(i int, comm string) {
	s := m.slot(i)
	binary.NativeEndian.PutUint32(s[slotIndex:], uint32(i))
	copy(s[slotComm:slotComm+15], comm)
}

// seal ends the owner's own writing: it maps the marks anew, where they were, from
// a descriptor that cannot write. From then on the members share memory that can be
// written with nobody but each other. It may be called again.
func (m *marks) seal() error { return mapForReading(m.file, m.mem) }

// freeze copies the marks into memory of the owner's own and lets go of the
// shared memory.
func (m *marks) freeze() error {
	shared := m.mem
	m.mem = bytes.Clone(shared)
	return errors.Join(unmapNear(shared), m.file.Close())
}

func decodeMark(slot []byte) Mark {
	comm, _, _ := bytes.Cut(slot[slotComm:slotCatch], []byte{0})
	word := func(field int) uint32 { return binary.NativeEndian.Uint32(slot[field:]) }
	return Mark{
		PID:    int(int32(word(slotPID))),
		Comm:   string(comm),
		Ready:  word(slotReady) != 0,
		Woken:  word(slotWoken) != 0,
		Signal: int(word(slotCatch)),
		Value:  int64(binary.NativeEndian.Uint64(slot[slotValue:])),
		Sum:    binary.NativeEndian.Uint64(slot[slotSum:]),
	}
}

// ReadMarks reads the marks that a storm with [Options.Marks] set keeps in a
// file, while the storm runs or after it. It touches no process's memory.
func ReadMarks(path string) ([]Mark, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the marks: %w", err)
	}
	if len(b) < headerSize || !bytes.Equal(b[:8], marksMagic[:]) {
		return nil, fmt.Errorf("read the marks: %s was not written by wakestorm", path)
	}
	n := int(binary.NativeEndian.Uint32(b[8:]))
	if binary.NativeEndian.Uint32(b[12:]) != slotSize || len(b) != headerSize+n*slotSize {
		return nil, fmt.Errorf("read the marks: %s is cut short or of another version", path)
	}
	out := make([]Mark, n)
	for i := range out {
		out[i] = decodeMark(b[headerSize+i*slotSize:][:slotSize])
	}
	return out, nil
}
