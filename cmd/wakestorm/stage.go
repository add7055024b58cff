package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/spf13/pflag"
)

// ready is the first line on standard output.
type ready struct {
	Topology string `json:"topology"`
	Channel  string `json:"channel"` // what the wakes come through
	// Processes counts all that are listed in Pids, by name.
	Processes  int              `json:"processes"`
	Counts     map[string]int   `json:"counts"`
	Pids       map[string][]int `json:"pids"`
	Dependents []int            `json:"dependents"` // must die with every smtpserver if nobody is to wake
	// What the deaths of every smtpserver, and nobody else, do to others.
	Bystanders []int    `json:"bystanders"`        // run user code
	OneOf      [][]int  `json:"one_of,omitempty"`  // of each, exactly one runs user code
	SomeOf     []share  `json:"some_of,omitempty"` // of each, so many run user code
	Stirred    []int    `json:"stirred,omitempty"` // are woken by the kernel, and run no user code
	Killed     []int    `json:"killed,omitempty"`  // are ended by a signal
	Marks      string   `json:"marks,omitempty"`
	Swap       *swapped `json:"swap,omitempty"`
}

// share is a group of whom more than one wakes, and not all.
type share struct {
	Pids  []int `json:"pids"`
	Wakes int   `json:"wakes"`
}

type swapped struct {
	SwapBytes int64 `json:"swap_bytes"`
	RSSBytes  int64 `json:"rss_bytes"`
}

// summary is the last line on standard output.
type summary struct {
	Topology  string         `json:"topology"`
	Processes int            `json:"processes"`
	Alive     int            `json:"alive"`
	Woken     int            `json:"woken"` // ran user code after their blocking call returned
	WokenBy   map[string]int `json:"woken_by_name"`
}

func runStorm(args []string, stdin io.Reader, stdout io.Writer) (err error) {
	set, err := parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return run([]string{"help"}, stdin, stdout)
	}
	if err != nil {
		return err
	}
	if set.swapOut {
		if err := storm.HaveSwap(); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	// A reader that went away must not end this process before its children.
	signal.Ignore(syscall.SIGPIPE)

	s, err := storm.Start(ctx, set.options())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	line, err := settle(ctx, s, set)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(stdout).Encode(line); err != nil {
		return fmt.Errorf("write the ready line: %w", err)
	}
	if err := waitForEnd(ctx, s, set, stdin); err != nil {
		return err
	}
	last, err := summarise(s)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(stdout).Encode(last); err != nil {
		return fmt.Errorf("write the summary: %w", err)
	}
	return nil
}

func (set *settings) options() storm.Options {
	o := storm.Options{
		Topology:       set.topology,
		Processes:      set.processes,
		MemBytes:       int64(set.mem * (1 << 20)),
		Descriptors:    set.descriptors,
		Marks:          set.marks,
		IgnoreChildren: !set.sigchld,
		RobustList:     set.robustList,
		ForkLimit:      set.forkLimit,
	}
	if set.dieWithParent {
		o.ParentDeathSignal = syscall.SIGKILL
	}
	return o
}

// settle waits until the storm is asleep, and swapped out where asked for.
func settle(ctx context.Context, s *storm.Storm, set *settings) (*ready, error) {
	limited, cancel := context.WithTimeout(ctx, set.timeout)
	defer cancel()
	if err := s.WaitReady(limited); err != nil {
		return nil, err
	}
	r := &ready{Topology: set.topology, Channel: s.Topology().Channel, Marks: set.marks, Counts: map[string]int{}, Pids: map[string][]int{}}
	targets := map[int]bool{}
	for _, p := range s.Processes() {
		r.Processes++
		r.Counts[p.Comm]++
		r.Pids[p.Comm] = append(r.Pids[p.Comm], p.PID)
		if p.Comm == storm.Target {
			targets[p.PID] = true
		}
	}
	outcome := s.After(targets)
	r.Dependents, r.Bystanders = pids(s.Dependents()), pids(outcome.Woken)
	r.Stirred, r.Killed = pids(outcome.Stirred), pids(outcome.Killed)
	for _, group := range outcome.SomeOf {
		if group.Wakes == 1 {
			r.OneOf = append(r.OneOf, pids(group.Members))
		} else {
			r.SomeOf = append(r.SomeOf, share{pids(group.Members), group.Wakes})
		}
	}
	if set.swapOut {
		got, err := s.SwapOut(limited)
		if err != nil {
			return nil, err
		}
		r.Swap = &swapped{got.SwapBytes, got.RSSBytes}
	}
	return r, nil
}

func pids(procs []storm.Proc) []int {
	out := make([]int, len(procs))
	for i, p := range procs {
		out[i] = p.PID
	}
	return out
}

// waitForEnd returns when the storm is to end: by a signal, or by the end of
// standard input. Meanwhile it reaps, if this process is to hear of deaths.
func waitForEnd(ctx context.Context, s *storm.Storm, set *settings, stdin io.Reader) error {
	eof := make(chan error, 1)
	if set.untilEOF {
		go func() {
			_, err := io.Copy(io.Discard, stdin)
			eof <- err
		}()
	}
	deaths := make(chan os.Signal, 1)
	if set.sigchld {
		signal.Notify(deaths, syscall.SIGCHLD)
		defer signal.Stop(deaths)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-eof:
			if err != nil {
				return fmt.Errorf("read standard input: %w", err)
			}
			return nil
		case <-deaths:
			if _, err := s.Alive(); err != nil {
				return err
			}
		}
	}
}

func summarise(s *storm.Storm) (*summary, error) {
	// The marks first: looking who lives takes longer, and wakes may go on.
	woken := s.Woken()
	alive, err := s.Alive()
	if err != nil {
		return nil, err
	}
	out := &summary{
		Topology:  s.Topology().Name,
		Processes: len(s.Processes()),
		Alive:     len(alive),
		Woken:     len(woken),
		WokenBy:   map[string]int{},
	}
	for _, p := range woken {
		out.WokenBy[p.Comm]++
	}
	return out, nil
}
