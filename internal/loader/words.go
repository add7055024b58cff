package loader

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// words are an object's global variables of 64 bits, mapped: one store or load
// each, where the library's accessors marshal and may allocate.
type words struct {
	memory []byte
	offset map[string]uint32
}

// mapWords maps the zero-initialised variables of a loaded object.
func mapWords(coll *ebpf.Collection, spec *ebpf.CollectionSpec) (*words, error) {
	const section = ".bss"
	w := &words{offset: make(map[string]uint32)}
	for name, v := range spec.Variables {
		if v.SectionName == section && v.Size() == 8 {
			w.offset[name] = v.Offset
		}
	}
	m := coll.Maps[section]
	page := os.Getpagesize()
	size := (int(m.ValueSize()) + page - 1) / page * page
	var err error
	if w.memory, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map global variables: %w", err)
	}
	return w, nil
}

func (w *words) close() error { return unix.Munmap(w.memory) }

// at panics for a name that is not there: the names are generated.
func (w *words) at(name string) *uint64 {
	offset, ok := w.offset[name]
	if !ok {
		panic("loader: no 64-bit variable " + name)
	}
	return (*uint64)(unsafe.Pointer(&w.memory[offset]))
}

func (w *words) load(name string) uint64     { return atomic.LoadUint64(w.at(name)) }
func (w *words) store(name string, v uint64) { atomic.StoreUint64(w.at(name), v) }
