package target

import (
	"os"
	"testing"
)

func TestCmdline(t *testing.T) {
	if got := Cmdline(int32(os.Getpid())); got == "" || got[0] == 0 || got[len(got)-1] == 0 {
		t.Errorf("own command line %q", got)
	}
	if got := Cmdline(-1); got != "" {
		t.Errorf("command line %q of nobody", got)
	}
}
