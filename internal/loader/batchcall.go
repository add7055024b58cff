package loader

import (
	"runtime"
	"structs"
	"unsafe"
)

// progTestRunAttr is the part of union bpf_attr that BPF_PROG_TEST_RUN reads
// (include/uapi/linux/bpf.h, since Linux 5.10).
type progTestRunAttr struct {
	_                          structs.HostLayout
	progFD, retval             uint32
	dataSizeIn, dataSizeOut    uint32
	dataIn, dataOut            uint64
	repeat, duration           uint32
	ctxSizeIn, ctxSizeOut      uint32
	ctxIn, ctxOut              uint64
	flags, cpu, batchSize, pad uint32
}

// batchCall is a prepared run of the batch engine. The library's Program.Run
// allocates and marshals; nothing may do so inside the window.
type batchCall struct {
	attr progTestRunAttr
	args executeDeliverArgs
	pin  runtime.Pinner
}

func newBatchCall(progFD, victims int) *batchCall {
	b := &batchCall{args: executeDeliverArgs{Victims: uint32(victims)}}
	b.pin.Pin(&b.args) // attr holds its address as a number
	b.attr = progTestRunAttr{
		progFD:    uint32(progFD),
		ctxSizeIn: uint32(unsafe.Sizeof(b.args)),
		ctxIn:     uint64(uintptr(unsafe.Pointer(&b.args))),
	}
	return b
}
