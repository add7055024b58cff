package loader

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

var selfPID = os.Getpid()

const symbols = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 t first.cold
ffffffff81000180 T between
ffffffff81000200 T first
ffffffff81000200 T alias_of_first
ffffffff81000300 t second.isra.0
ffffffff81000380 t second.part.0.constprop.1
ffffffff81000400 T last
ffffffff81000500 T _etext
ffffffff81000600 D data
ffffffffc0001000 t in_module	[mod]
ffffffffc0000000 t lower_in_module	[mod]
ffffffffc0000100 t second	[mod]
ffffffffc0000080 t other_module	[other]
`

func TestFindRanges(t *testing.T) {
	for _, test := range []struct {
		name, input string
		names       []string
		want        []textRange
		err         error
	}{
		{"one", symbols, []string{"last"}, []textRange{{0xffffffff81000400, 0xffffffff81000500, "last"}}, nil},
		{"with what was split off", symbols, []string{"first"}, []textRange{
			{0xffffffff81000100, 0xffffffff81000180, "first"}, {0xffffffff81000200, 0xffffffff81000300, "first"}}, nil},
		{"two of one name, one of them a module's", symbols, []string{"second"}, []textRange{
			{0xffffffff81000300, 0xffffffff81000380, "second"}, {0xffffffff81000380, 0xffffffff81000400, "second"},
			{0xffffffffc0000100, 0xffffffffc0001000, "second"}}, nil},
		{"a module's symbols in any order", symbols, []string{"in_module", "lower_in_module"}, []textRange{
			{0xffffffffc0000000, 0xffffffffc0000100, "lower_in_module"}, {0xffffffffc0001000, 0, "in_module"}}, nil},
		{"no part of a name", symbols, []string{"irst", "secon", "alias"}, nil, nil},
		{"hidden", "0000000000000000 T first\n", []string{"first"}, nil, errHiddenSymbols},
		{"empty", "", []string{"first"}, nil, nil},
	} {
		got, err := findRanges(strings.NewReader(test.input), func(name []byte) bool {
			return slices.Contains(test.names, string(name))
		}, never)
		if !errors.Is(err, test.err) || !slices.Equal(got, test.want) {
			t.Errorf("%s: %x, %v; want %x, %v", test.name, got, err, test.want, test.err)
		}
	}
	if _, err := findRanges(strings.NewReader("xyz T first\n"), func([]byte) bool { return true }, never); err == nil {
		t.Error("no error for an address that is no number")
	}
}

func never([]textRange) bool { return false }

// endless is a stream that must not be read further than needed.
type endless struct{ t *testing.T }

func (e endless) Read([]byte) (int, error) {
	e.t.Error("read on although all was found that modules might have")
	return 0, io.EOF
}

func TestFindRangesStopsEarly(t *testing.T) {
	text, _, _ := strings.Cut(symbols, "ffffffff81000600")
	second := func(name []byte) bool { return string(name) == "second" }
	got, err := findRanges(io.MultiReader(strings.NewReader(text), endless{t}), second, func(found []textRange) bool {
		return len(found) == 2
	})
	if err != nil || len(got) != 2 || got[1].end != 0xffffffff81000400 {
		t.Errorf("%x, %v", got, err)
	}
}

func TestCheckRelease(t *testing.T) {
	for release, ok := range map[string]bool{
		"5.10.0-32-cloud-amd64": true, "6.18.44": true, "7.2.13+deb14": true, "10.0": true,
		"5.9.16": false, "4.19.0": false, "linux": false, "": false,
	} {
		if err := checkRelease(release, minMajor, minMinor); (err == nil) != ok {
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
