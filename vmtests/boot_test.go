package vmtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
)

func TestRetryPolicy(t *testing.T) {
	died := &infrastructureError{why: errNoVerdict, console: "text_poke"}
	red := run{verdict: protocol.Verdict{Outcomes: []protocol.Outcome{{Status: "exit status 1"}}}}
	other := errors.New("no emulator")
	type boot struct {
		run run
		err error
	}
	for _, tc := range []struct {
		name  string
		boots []boot
		calls int
		said  bool
		err   error
	}{
		{"a verdict", []boot{{run: run{}}}, 1, false, nil},
		{"a red verdict is final", []boot{{run: red}}, 1, false, nil},
		{"a death is retried and said", []boot{{err: died}, {run: run{}}}, 2, true, nil},
		{"two deaths are a failure", []boot{{err: died}, {err: died}}, 2, true, died},
		{"red after a death is final", []boot{{err: died}, {run: red}}, 2, true, nil},
		{"no emulator is no death", []boot{{err: other}}, 1, false, other},
	} {
		t.Run(tc.name, func(t *testing.T) {
			calls, said := 0, ""
			log := func(format string, args ...any) { said += fmt.Sprintf(format, args...) }
			got, err := decide(t.Context(), log, func(context.Context) (run, error) {
				b := tc.boots[calls]
				calls++
				return b.run, b.err
			})
			if calls != tc.calls || !errors.Is(err, tc.err) {
				t.Errorf("%d boots, error %v; want %d, %v", calls, err, tc.calls, tc.err)
			}
			if tc.said != strings.Contains(said, "booting once more") || tc.said != strings.Contains(said, "text_poke") {
				t.Errorf("said %q", said)
			}
			if want := tc.boots[calls-1].run; len(got.verdict.Outcomes) != len(want.verdict.Outcomes) {
				t.Errorf("run %+v, want %+v", got, want)
			}
		})
	}
}

// fakeEmulator is a machine that does what a shell script says, with the
// nonce in $nonce.
func fakeEmulator(t *testing.T, script string) *vm {
	t.Helper()
	name := filepath.Join(t.TempDir(), "emulator")
	text := "#!/bin/sh\nnonce=$(echo \"$*\" | sed 's/.*" + protocol.NonceParameter + "=\\([0-9a-f]*\\).*/\\1/')\n" + script
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return &vm{arch: Arch{QEMU: name}, memoryMiB: 256, limit: time.Minute, silence: time.Minute}
}

func TestBootJudgesTheConsole(t *testing.T) {
	const verdict = `echo "VMTEST-$nonce ready 6.1"; echo "VMTEST-$nonce verdict {\"Release\":\"6.1\"}"; `
	for _, tc := range []struct {
		name, script string
		limit        time.Duration
		silence      time.Duration
		err          string // of an infrastructure error; empty for a verdict
	}{
		{"verdict, then the machine ends", verdict, 0, 0, ""},
		{"exit status does not count", verdict + "exit 3", 0, 0, ""},
		{"verdict, and the machine hangs", verdict + "exec sleep 1000", 0, 0, ""},
		{"the machine ends early", "echo Kernel panic", 0, 0, "before the machine ended"},
		{"the emulator fails", "echo no such machine >&2; exit 1", 0, 0, "exit status 1"},
		{"silence", "exec sleep 1000", 0, time.Second, "silent"},
		{"too long", "exec sleep 1000", time.Second, 0, "within 1s"},
		{"two verdicts in one write", `v="VMTEST-$nonce verdict {}"; printf '%s\n%s\n' "$v" "$v"`, 0, 0, "2 verdicts"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := fakeEmulator(t, tc.script)
			if tc.limit > 0 {
				v.limit = tc.limit
			}
			if tc.silence > 0 {
				v.silence = tc.silence
			}
			begin := time.Now()
			result, err := v.boot(t.Context())
			if took := time.Since(begin); took > 45*time.Second {
				t.Errorf("took %v", took)
			}
			var died *infrastructureError
			switch {
			case tc.err == "" && (err != nil || result.verdict.Release != "6.1" || result.boot == 0):
				t.Errorf("run %+v, error %v", result, err)
			case tc.err != "" && (!errors.As(err, &died) || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want a dead guest with %q", err, tc.err)
			}
		})
	}
}

func TestNoEmulatorIsNotRetried(t *testing.T) {
	v := &vm{arch: Arch{QEMU: "qemu-system-none"}}
	_, err := v.boot(t.Context())
	var died *infrastructureError
	if err == nil || errors.As(err, &died) || !strings.Contains(err.Error(), "install") {
		t.Errorf("error %v, want one with the remedy", err)
	}
}
