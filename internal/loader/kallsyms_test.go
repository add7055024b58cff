package loader

import (
	"errors"
	"io"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/nstest"
)

var selfPID = os.Getpid()

const symbols = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 T first
ffffffff81000200 t second.isra.0
ffffffff81000200 t alias_of_second
ffffffff81000300 T third
ffffffffc0001000 t in_module	[mod]
ffffffffc0000000 t lower_module	[low]
`

func TestFindSymbols(t *testing.T) {
	for _, test := range []struct {
		name, input string
		names       []string
		want        map[string]symbol
		err         error
	}{
		{"found", symbols, []string{"third", "first"}, map[string]symbol{"first": {0xffffffff81000100, 0xffffffff81000200}, "third": {0xffffffff81000300, 0xffffffffc0001000}}, nil},
		{"a module's", symbols, []string{"in_module"}, map[string]symbol{"in_module": {start: 0xffffffffc0001000}}, nil},
		{"missing", symbols, []string{"first", "fourth"}, map[string]symbol{"first": {0xffffffff81000100, 0xffffffff81000200}}, nil},
		{"no part of a name", symbols, []string{"second", "modul"}, map[string]symbol{}, nil},
		{"the first of several", symbols + "ffffffff81000900 t first\n", []string{"first"}, map[string]symbol{"first": {0xffffffff81000100, 0xffffffff81000200}}, nil},
		{"hidden", "0000000000000000 T first\n", []string{"first"}, nil, errHiddenSymbols},
		{"empty", "", []string{"first"}, map[string]symbol{}, nil},
	} {
		got, err := findSymbols(strings.NewReader(test.input), test.names)
		if !errors.Is(err, test.err) || !maps.Equal(got, test.want) {
			t.Errorf("%s: %x, %v; want %x, %v", test.name, got, err, test.want, test.err)
		}
	}
	if _, err := findSymbols(strings.NewReader("xyz T first\n"), []string{"first"}); err == nil {
		t.Error("no error for an address that is no number")
	}
}

// endless is a stream that must not be read further than needed.
type endless struct{ t *testing.T }

func (e endless) Read([]byte) (int, error) {
	e.t.Error("read on after the last symbol was found")
	return 0, io.EOF
}

func TestFindSymbolsStopsEarly(t *testing.T) {
	r := io.MultiReader(strings.NewReader(symbols), endless{t})
	if got, err := findSymbols(r, []string{"first"}); err != nil || len(got) != 1 {
		t.Error(got, err)
	}
}

func TestNearestSymbols(t *testing.T) {
	got, err := nearestSymbols(strings.NewReader(symbols), []uint64{
		0, 0xfff, 0xffffffff81000100, 0xffffffff810001ff, 0xffffffff810002ff, 0xffffffff81000300,
		0xffffffffc0000fff, 0xffffffffc0001001, 0xffffffff810001ff})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[uint64]string{
		0xffffffff81000100: "first",
		0xffffffff810001ff: "first",
		0xffffffff810002ff: "second.isra.0",
		0xffffffff81000300: "third",
		0xffffffffc0000fff: "lower_module", // listed after the one above it
		0xffffffffc0001001: "in_module",
	} {
		if got[addr] != want {
			t.Errorf("%x is in %q, want %q", addr, got[addr], want)
		}
	}
	if got[0] != "" || got[0xfff] != "" {
		t.Errorf("addresses below the kernel are in %q and %q", got[0], got[0xfff])
	}
	if _, err := nearestSymbols(strings.NewReader("0000000000000000 T a\n"), []uint64{1}); !errors.Is(err, errHiddenSymbols) {
		t.Errorf("%v, want %v", err, errHiddenSymbols)
	}
}

func TestKernelSymbolsOfThisKernel(t *testing.T) {
	nstest.Require(t)
	got, err := kernelSymbols("ep_poll_callback", "pollwake", "no_such_symbol")
	if err != nil || len(got) != 2 || got["pollwake"].end <= got["pollwake"].start {
		t.Errorf("%d symbols, %v", len(got), err)
	}
	names, err := symbolize([]uint64{got["pollwake"].start + 1})
	if err != nil || names[got["pollwake"].start+1] != "pollwake" {
		t.Errorf("%v, %v", names, err)
	}
}

func TestCheckRelease(t *testing.T) {
	for release, ok := range map[string]bool{
		"5.10.0-32-cloud-amd64": true, "6.18.44": true, "7.2.13+deb14": true, "10.0": true,
		"5.9.16": false, "4.19.0": false, "linux": false, "": false,
	} {
		if err := checkRelease(release); (err == nil) != ok {
			t.Errorf("%q: %v", release, err)
		}
	}
}

func TestStateLetter(t *testing.T) {
	for _, test := range []struct {
		state, exit uint32
		want        byte
	}{
		{0, 0, 'R'}, {1, 0, 'S'}, {2, 0, 'D'}, {4, 0, 'T'}, {8, 0, 't'}, {0x402, 0, 'I'},
		{0x80, 0x20, 'Z'}, {0x80, 0x10, 'X'}, {0x102, 0, 'D'}, {0x40, 0, 'P'},
	} {
		if got := stateLetter(test.state, test.exit); got != test.want {
			t.Errorf("%#x, %#x: %c, want %c", test.state, test.exit, got, test.want)
		}
	}
}
