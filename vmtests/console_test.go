package vmtests

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

const testNonce = "0123456789abcdef"

func sentinel(t *testing.T, v protocol.Verdict) string {
	t.Helper()
	line, err := v.Sentinel(testNonce)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func TestConsoleVerdict(t *testing.T) {
	good := protocol.Verdict{Release: "6.1", Outcomes: []protocol.Outcome{{Name: "./a", Counts: protocol.Counts{Passed: 3}}}}
	bad := protocol.Verdict{Release: "6.1", Outcomes: []protocol.Outcome{{Name: "./a", Status: "exit status 1"}}}
	line := sentinel(t, good)
	for _, tc := range []struct {
		name, text string
		decided    bool
		err        string // part of it; empty where the verdict is good
	}{
		{"plain", "booting\r\n" + line + "\r\n", true, ""},
		{"after half a line of the kernel's", "[ 1.5] random: crng" + line + "\r\n", true, ""},
		{"nothing", "booting\r\n", false, errNoVerdict.Error()},
		{"line without an end", line, false, errNoVerdict.Error()},
		{"another boot's nonce", strings.ReplaceAll(line, testNonce, "fedcba9876543210") + "\n", false, errNoVerdict.Error()},
		{"no nonce", strings.ReplaceAll(line, testNonce, "") + "\n", false, errNoVerdict.Error()},
		{"the nonce on the command line", "Command line: vmtest.nonce=" + testNonce + " verdict {}\n", false, errNoVerdict.Error()},
		{"unknown word", protocol.Sentinel(testNonce, "verdicts", "{}") + "\n", false, errNoVerdict.Error()},
		{"garbled", line[:len(line)-5] + "[ 9.1] oops\n", false, "garbled"},
		{"twice", line + "\n" + line + "\n", true, "2 verdicts"},
		{"good, then bad", line + "\n" + sentinel(t, bad) + "\n", true, "2 verdicts"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newConsole(testNonce)
			// One byte a read: a sentinel may be cut anywhere.
			if _, err := io.Copy(c, iotest.OneByteReader(strings.NewReader(tc.text))); err != nil {
				t.Fatal(err)
			}
			decided := false
			select {
			case <-c.decided:
				decided = true
			default:
			}
			if decided != tc.decided {
				t.Errorf("decided is %v, want %v", decided, tc.decided)
			}
			got, err := c.Verdict()
			switch {
			case tc.err == "" && err != nil:
				t.Errorf("error %v", err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want one with %q", err, tc.err)
			case tc.err == "" && (got.Release != "6.1" || got.Outcomes[0].Passed != 3):
				t.Errorf("verdict %+v", got)
			}
		})
	}
}

func TestConsoleText(t *testing.T) {
	c := newConsole(testNonce)
	io.WriteString(c, "[ 0.1] hello\r\n"+protocol.Sentinel(testNonce, protocol.Ready, "6.1")+"\r\n")
	io.WriteString(c, "--- PASS: TestA\r\n"+protocol.Sentinel(testNonce, protocol.Alive, "")+"\r\nhalf")
	if got, want := c.Text(), "[ 0.1] hello\n--- PASS: TestA\nhalf"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if c.readyAt().IsZero() {
		t.Error("the guest said that it was ready")
	}
	if _, err := c.Verdict(); !errors.Is(err, errNoVerdict) {
		t.Errorf("error %v", err)
	}
}
