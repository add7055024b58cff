package storm

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

func TestSwapOut(t *testing.T) {
	// The kernel's own table is the judge, not HaveSwap.
	table, err := os.ReadFile("/proc/swaps")
	if err != nil {
		t.Fatal(err)
	}
	const each = 1 << 20
	s := start(t, Options{Topology: "herd", Processes: 4, MemBytes: each})
	if strings.Count(string(table), "\n") == 1 { // a heading, and no device
		if _, err := s.SwapOut(t.Context()); !errors.Is(err, ErrNoSwap) {
			t.Errorf("without swap space: error %v, want %v", err, ErrNoSwap)
		}
		nstest.SwapSpace(t)
	}
	got, err := s.SwapOut(t.Context())
	if os.Geteuid() != 0 {
		t.Skip("needs root: process_madvise on others wants CAP_SYS_NICE")
	}
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(5 * each * 9 / 10); got.Processes != 5 || got.SwapBytes < want {
		t.Errorf("%+v, want at least %d bytes of 5 processes", got, want)
	}
	if n := len(s.Woken()); n != 0 {
		t.Errorf("%d processes woke by being swapped out", n)
	}
	kill(t, s, s.Targets())
	eventually(t, "the readers have their memory back", func() bool {
		for i, m := range s.Marks() {
			if m.Comm != Target && m.Sum != expectedSum(each, uint64(i)) {
				return false
			}
		}
		return true
	})
}

func TestPrivateRanges(t *testing.T) {
	maps := "1000-2000 r-xp 0 0:0 0 /bin/x\n3000-5000 rw-p 0 00:00 0\n6000-7000 rw-s 0 0:1 9 /marks\n"
	got, err := privateRanges([]byte(maps))
	if err != nil || len(got) != 1 || got[0] != (addressRange{0x3000, 0x5000}) {
		t.Errorf("%v, %v; want the one private writable range", got, err)
	}
}
