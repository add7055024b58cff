package loader

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// iterate runs a BPF iterator once and calls each for every record that it
// wrote; the pointer is valid during the call only. between runs after each
// read(2), with the iterator at rest.
func iterate[T any](prog *ebpf.Program, each func(*T), between func() error) error {
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return fmt.Errorf("attach iterator: %w", err)
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("open iterator: %w", err)
	}
	defer r.Close()
	// An iterator hands out at most its own buffer of 8 pages a read.
	return readRecords(r, make([]T, 64<<10/unsafe.Sizeof(*new(T))), each, between)
}

// readRecords reads an iterator to its end, by way of buf.
func readRecords[T any](r io.Reader, buf []T, each func(*T), between func() error) error {
	size := int(unsafe.Sizeof(*new(T)))
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), len(buf)*size)
	filled := 0
	for {
		n, err := r.Read(raw[filled:])
		filled += n
		whole := filled / size
		for i := range buf[:whole] {
			each(&buf[i])
		}
		copy(raw, raw[whole*size:filled])
		filled -= whole * size
		if between != nil {
			if err := between(); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) && filled != 0:
			return fmt.Errorf("read iterator: %d bytes of a record missing", size-filled)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read iterator: %w", err)
		}
	}
}
