package storm

import (
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	line := "812 (a (b) c) S 7 42 42 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 5139214 1 2 3\n"
	got, err := parseStat([]byte(line))
	if want := (stat{comm: "a (b) c", state: 'S', ppid: 7, pgrp: 42, start: 5139214}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "812 S 7", "812 (a) S 7 42", strings.Replace(line, "5139214", "x", 1)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}
