package storm

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
)

// A process has what it needs of its parent's memory, and no more.
func TestProcessesShedTheirParentsMemory(t *testing.T) {
	var b birth
	if _, err := b.keepOnly(); err != nil {
		t.Fatal(err)
	}
	if b.top == 0 {
		t.Skip("this binary is linked with libc, and its processes keep all")
	}
	s := start(t, Options{Topology: "mail", Processes: 2})
	for _, p := range s.Processes() {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/maps")
		if err != nil {
			t.Fatal(err)
		}
		ranges, err := privateRanges(text)
		if err != nil {
			t.Fatal(err)
		}
		private := uintptr(0)
		for _, r := range ranges {
			private += r.end - r.start
		}
		if page := uintptr(os.Getpagesize()); private != scratchSize+page {
			t.Errorf("%s %d has %d bytes of private memory, want those of scratch memory and the page of handlerSlot:\n%s",
				p.Comm, p.PID, private, text)
		}
	}
}

func TestKeepOnly(t *testing.T) {
	var b birth
	onHeap := new([1 << 20]byte)
	defer runtime.KeepAlive(onHeap)
	unwanted, err := b.keepOnly(addressRange{0x2000, 0x2001}, addressRange{0x3000, 0x4000})
	if err != nil {
		t.Fatal(err)
	}
	if b.top == 0 {
		t.Skip("this binary is linked with libc, and its processes keep all")
	}
	if want := (addressRange{0x2000, 0x4000}); b.memory[0] != want {
		t.Errorf("the first range is %#x, want %#x: whole pages, and neighbours together", b.memory[0], want)
	}
	for i := 1; i < keptRanges && b.memory[i].end != 0; i++ {
		if b.memory[i].start <= b.memory[i-1].end {
			t.Errorf("ranges are not in order, or overlap: %#x", b.memory)
		}
	}
	if heap := rangeOf(onHeap[:]); !slices.ContainsFunc(unwanted, func(r addressRange) bool {
		return r.start <= heap.start && heap.end <= r.end
	}) {
		t.Errorf("the heap at %#x is in none of %#x", heap, unwanted)
	}
	text := false
	for _, r := range b.memory {
		text = text || r.start <= handlerAddress && handlerAddress < r.end
	}
	if !text {
		t.Errorf("the program's text at %#x is in none of %#x", handlerAddress, b.memory)
	}
}
