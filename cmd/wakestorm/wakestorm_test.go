package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bpfkill/bpfkill/internal/nstest"
	"github.com/bpfkill/bpfkill/internal/storm"
	"golang.org/x/sys/unix"
)

// commandVariable makes this test binary the command itself.
const commandVariable = "WAKESTORM_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandVariable) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(nstest.Main(m))
}

// command is the command as a shell would start it.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), commandVariable+"=1")
	return cmd
}

// storming is a wakestorm that has printed its ready line.
type storming struct {
	*exec.Cmd
	ready  ready
	stdin  io.Closer
	out    *bufio.Reader
	stderr bytes.Buffer
}

func startStorm(t *testing.T, args ...string) *storming {
	t.Helper()
	s := &storming{Cmd: command(append([]string{"run"}, args...)...)}
	s.Cmd.Stderr = &s.stderr
	stdin, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdin, s.out = stdin, bufio.NewReader(stdout)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // where the test did not get as far as finish
		if s.ProcessState == nil {
			s.Process.Signal(unix.SIGTERM)
			s.Wait()
		}
	})
	s.line(t, &s.ready)
	return s
}

// line reads one line of output into v.
func (s *storming) line(t *testing.T, v any) {
	t.Helper()
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("%v\n%s", err, &s.stderr)
	}
	if err := json.Unmarshal(line, v); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
}

// finish reads the summary, expects nothing after it, and exit status 0.
func (s *storming) finish(t *testing.T) summary {
	t.Helper()
	var last summary
	s.line(t, &last)
	if rest, err := io.ReadAll(s.out); err != nil || len(rest) > 0 {
		t.Errorf("after the summary: %q, %v", rest, err)
	}
	if err := s.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &s.stderr)
	}
	for comm, pids := range s.ready.Pids {
		for _, pid := range pids {
			// A zombie that waits for init to reap it is dead enough.
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !bytes.Contains(stat, []byte(") Z ")) && !bytes.Contains(stat, []byte(") X ")) {
				t.Errorf("%s %d outlived its storm: %s", comm, pid, stat)
			}
		}
	}
	return last
}

func TestReadyLineAndSummary(t *testing.T) {
	nstest.Require(t) // a namespace reaps what would linger, and pids are its own
	for _, topology := range storm.Topologies {
		t.Run(topology.Name, func(t *testing.T) {
			if err := topology.Supported(); err != nil {
				t.Skip(err)
			}
			s := startStorm(t, "--topology", topology.Name, "--processes", "4", "--mem", "0.25")
			r, n := s.ready, 0
			for comm, pids := range r.Pids {
				n += len(pids)
				if r.Counts[comm] != len(pids) {
					t.Errorf("count of %s is %d of %d pids", comm, r.Counts[comm], len(pids))
				}
			}
			if r.Topology != topology.Name || r.Channel != topology.Channel || n != r.Processes || r.Counts[storm.Target]+len(r.Dependents) > n {
				t.Errorf("inconsistent: %+v", r)
			}
			if err := s.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if last := s.finish(t); last.Alive != n || last.Woken != 0 || last.Processes != n {
				t.Errorf("nobody was killed, and the summary is %+v", last)
			}
		})
	}
}

func TestSummaryCountsTheWoken(t *testing.T) {
	nstest.Require(t)
	for _, extra := range [][]string{nil, {"--sigchld"}} {
		t.Run(strings.Join(extra, " "), func(t *testing.T) {
			marks := filepath.Join(t.TempDir(), "marks")
			s := startStorm(t, append([]string{"--topology", "smtp", "--processes", "8", "--until-eof", "--marks", marks}, extra...)...)
			if len(s.ready.Bystanders) != 8 || len(s.ready.Dependents) != 9 {
				t.Errorf("%d bystanders and %d dependents, want 8 and 9", len(s.ready.Bystanders), len(s.ready.Dependents))
			}
			for _, pid := range s.ready.Pids[storm.Target] {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			for woken := -1; woken != 8; time.Sleep(time.Millisecond) { // the test's own timeout bounds it
				woken = 0
				all, err := storm.ReadMarks(marks)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range all {
					if m.Woken {
						woken++
					}
				}
			}
			s.stdin.Close()
			last := s.finish(t)
			if last.Alive != 9 || last.Woken != 8 || last.WokenBy["router"] != 8 {
				t.Errorf("8 servers were killed, and the summary is %+v", last)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args   string
		status int
		stdout string
		stderr string
	}{
		{"", 2, "", "what to do? run, list, bench or plot"},
		{"start", 2, "", `unknown command "start": run, list, bench or plot`},
		{"list", 0, "smtp", ""},
		{"list all", 2, "", `list takes no arguments, not "all"`},
		{"--help", 0, "--swap-out", ""},
		{"run --help", 0, "--until-eof", ""},
		{"bench --help", 0, "--strategies", ""},
		{"plot --help", 0, "--results FILE", ""},
		{"plot", 2, "", "--results FILE"},
		{"bench now", 2, "", "bench takes flags only"},
		{"bench --runs 0", 2, "", "0 runs: at least one"},
		{"bench --processes 10,0", 2, "", "0 processes: at least one"},
		{"bench --strategies pkill,prayer", 2, "", `unknown strategy "prayer": one of pkill,`},
		{"bench --parts all", 2, "", `unknown part "all": one of kill,`},
		{"bench --output csv", 2, "", `unknown output "csv": one of table,`},
		{"run --topology smtp --processes 3 --descriptors 1001", 2, "", "--descriptors 1001: from 0 to 1000"},
		{"run --processes 3", 2, "", "which topology?"},
		{"run --topology smtp", 2, "", "--processes 0: from 1 to"},
		{"run --topology smtp --processes 2000000000", 2, "", "--processes 2000000000: from 1 to"},
		{"run --topology ring --processes 3", 2, "", `unknown topology "ring": one of smtp,`},
		{"run --topology smtp --processes many", 2, "", `"many"`},
		{"run --topology smtp --processes 3 --mem -1", 2, "", "--mem -1: not a sensible number"},
		{"run --topology smtp --processes 3 --mem NaN", 2, "", "--mem NaN"},
		{"run --topology smtp --processes 3 --timeout 0s", 2, "", "--timeout 0s: must be positive"},
		{"run --topology smtp --processes 3 --fork-limit -1", 2, "", "--fork-limit -1"},
		{"run --topology smtp --processes 3 --frobnicate", 2, "", "--frobnicate"},
		{"run --topology smtp --processes 3 now", 2, "", `unexpected argument "now"`},
		{"run --topology smtp --processes 3 --marks /nonexistent/marks", 1, "", "create the marks"},
		{"run --topology sleepers --processes 3 --mem 256 --timeout 1ns", 1, "", "are not asleep"},
	} {
		t.Run(test.args, func(t *testing.T) {
			cmd := command(strings.Fields(test.args)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != test.status {
				t.Errorf("exit status %d, want %d", got, test.status)
			}
			if !strings.Contains(stdout.String(), test.stdout) || (test.stdout == "") != (stdout.Len() == 0) {
				t.Errorf("standard output %q, want %q in it", &stdout, test.stdout)
			}
			line := stderr.String()
			if test.stderr == "" {
				if line != "" {
					t.Errorf("standard error %q", line)
				}
				return
			}
			if !strings.HasPrefix(line, "wakestorm: ") || !strings.Contains(line, test.stderr) || strings.Count(line, "\n") != 1 {
				t.Errorf("standard error %q, want one line with %q", line, test.stderr)
			}
		})
	}
}
