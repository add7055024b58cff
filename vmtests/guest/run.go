package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/bpfkill/bpfkill/vmtests/protocol"
	"golang.org/x/sys/unix"
)

// run runs one program to its end, with its output on the console, and then
// ends whatever it left behind.
func run(console *console, program protocol.Program, env []string) protocol.Outcome {
	outcome := protocol.Outcome{Name: program.Name}
	console.say("=== " + program.Name)
	begin := time.Now()
	defer func() {
		outcome.Seconds = time.Since(begin).Round(time.Millisecond).Seconds()
	}()
	child, stdout, err := start(program, env)
	if err != nil {
		outcome.Status = err.Error()
		return outcome
	}
	var tally tally
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		tally.copy(console, stdout)
	}()
	// The program's own -test.timeout comes first and prints its stacks; this
	// one is for a program that is beyond that.
	limit := time.AfterFunc(program.Timeout+15*time.Second, func() { _ = child.Kill() })
	status := reapUntil(child.Pid)
	overstayed := !limit.Stop()
	if names := running(); len(names) > 0 {
		console.say("guest: " + program.Name + " left behind: " + strings.Join(names, ", "))
	}
	outcome.Strays = endStrays()
	<-drained // nobody is left to hold the pipe
	stdout.Close()

	outcome.Counts, outcome.Failures, outcome.Skips = tally.Counts, tally.failures, tally.skips
	outcome.Status = describe(status, outcome.Counts)
	if status.Signaled() {
		outcome.Status += "; " + whoKilled(overstayed, kernelLog())
		console.say("guest: " + program.Name + ": " + outcome.Status + "; its last test was " + tally.running)
	}
	outcome.Seconds = time.Since(begin).Round(time.Millisecond).Seconds()
	return outcome
}

// start starts the program with its output on a pipe.
func start(program protocol.Program, env []string) (*os.Process, *os.File, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer writer.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		reader.Close()
		return nil, nil, err
	}
	defer null.Close()
	child, err := os.StartProcess(program.Path, append([]string{program.Path}, program.Args...), &os.ProcAttr{
		Dir:   program.Dir,
		Env:   env,
		Files: []*os.File{null, writer, writer},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		reader.Close()
		return nil, nil, err
	}
	return child, reader, nil
}

// reapUntil reaps every child that dies, orphans included, until pid has.
// That is why nothing here calls Process.Wait: it would compete for them.
func reapUntil(pid int) unix.WaitStatus {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return unix.WaitStatus(0xff00) // cannot be: pid was never reaped
		case got == pid:
			return status
		}
	}
}

// running names the processes but this one that have not exited, and are not the
// kernel's, twenty of them at most.
func running() (names []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if dir := filepath.Dir(path); err == nil && len(line) > 0 && dir != "/proc/1" && len(names) < 20 {
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			names = append(names, strings.TrimSpace(string(comm))+" "+filepath.Base(dir))
		}
	}
	return names
}

// endStrays kills what a program left running and says how many there were.
// Process 1 of the VM may signal everybody: there is nobody else.
func endStrays() int {
	strays := 0
	for {
		err := unix.Kill(-1, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return strays
		}
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.ECHILD) {
			return strays
		}
		// A zombie that nobody had reaped is not a stray.
		if got > 0 && status.Signaled() && status.Signal() == unix.SIGKILL {
			strays++
		}
	}
}

// describe returns what went wrong, or the empty string. A binary that ran no
// test at all is not a success.
func describe(status unix.WaitStatus, counts protocol.Counts) string {
	switch {
	case status.Signaled():
		return fmt.Sprintf("signal: %v", status.Signal())
	case status.ExitStatus() != 0:
		return fmt.Sprintf("exit status %d", status.ExitStatus())
	case counts.Failed > 0:
		return "failed tests under exit status 0"
	case counts.Passed+counts.Skipped == 0:
		return "no test ran"
	}
	return ""
}

// whoKilled says who ended a program, as far as that can be told.
func whoKilled(overstayed bool, log string) string {
	if overstayed {
		return "the guest killed it after its time limit"
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "Out of memory: Killed process") {
			return "the machine was out of memory: " + strings.TrimSpace(line)
		}
	}
	return "neither the guest nor the kernel's OOM killer did it"
}

// tally counts the outcomes in the output of a test binary run with -test.v.
type tally struct {
	protocol.Counts
	failures, skips []string
	running         string            // the test that speaks
	said            map[string]string // what each test said last
}

// copy passes the output to the console line by line and counts.
func (t *tally) copy(console *console, output io.Reader) {
	reader := bufio.NewReader(output)
	for {
		line, err := reader.ReadString('\n')
		if line != "" {
			line = strings.TrimRight(line, "\n")
			console.say(line)
			t.count(line)
		}
		if err != nil {
			return
		}
	}
}

func (t *tally) count(line string) {
	trimmed := strings.TrimLeft(line, " ")
	if rest, ok := strings.CutPrefix(trimmed, "--- "); ok {
		result, rest, _ := strings.Cut(rest, ": ")
		name, _, _ := strings.Cut(rest, " ")
		switch result {
		case "PASS":
			t.Passed++
		case "FAIL":
			t.Failed++
			t.failures = append(t.failures, name)
		case "SKIP":
			t.Skipped++
			t.skips = append(t.skips, name+": "+t.said[name])
		}
		return
	}
	if rest, ok := strings.CutPrefix(line, "=== "); ok {
		_, name, _ := strings.Cut(rest, " ")
		t.running = strings.TrimLeft(name, " ")
		return
	}
	if t.said == nil {
		t.said = map[string]string{}
	}
	t.said[t.running] = trimmed
}
