package affinity

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]Set{
		"\n": {}, "2\n": {1 << 2}, "0-1,3": {0b1011}, "62-65": {3 << 62, 3}, "1023": func() (s Set) { s[15] = 1 << 63; return }(),
	} {
		if got, err := parse(text); err != nil || got != want {
			t.Errorf("parse(%q) = %x, %v; want %x", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "3-1", "1-", "-1", "1024", "1,,2"} {
		if got, err := parse(text); err == nil {
			t.Errorf("parse(%q) = %x, want an error", text, got)
		}
	}
}

func TestUndo(t *testing.T) {
	everywhere := Undo(Set{0xff}, Set{}, Set{})
	for _, tc := range []struct {
		name                             string
		allowed, asked, isolated, wanted Set
	}{
		{"nothing asked", Set{0xff}, Set{}, Set{}, everywhere},
		{"nothing asked, some isolated", Set{0x03}, Set{}, Set{0xfc}, func() Set { s := everywhere; s[0] &^= 0xfc; return s }()},
		{"put on an isolated one by somebody else", Set{0x0c}, Set{}, Set{0xfc}, func() Set { s := everywhere; s[0] &^= 0xf0; return s }()},
		{"asked", Set{0x01}, Set{0x21}, Set{}, Set{0x21}},
		{"asked for what a cpuset took", Set{0x0f}, Set{0x20}, Set{}, Set{0x0f}},
		{"asked for an isolated one", Set{0x20}, Set{0x20}, Set{0xfc}, Set{0x20}},
	} {
		if got := Undo(tc.allowed, tc.asked, tc.isolated); got != tc.wanted {
			t.Errorf("%s: %x, want %x", tc.name, got, tc.wanted)
		}
	}
	if everywhere[0] != ^uint64(0) || everywhere[15] != ^uint64(0) {
		t.Errorf("everywhere is %x", everywhere)
	}
}
