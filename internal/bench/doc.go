// Package bench measures ways to kill a set of processes beside each other: by
// one instrument, in turns, on the same kind of set, in a pid namespace of its own.
package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/bpfkill/bpfkill/internal/procfs"
)

// Options say what to measure.
type Options struct {
	Bpfkill    string // the program
	Processes  []int  // sizes of the set that every strategy kills
	Runs       int    // of each strategy and size
	Strategies []string
	Parts      []string
	Output     string // table, go or json
	Progress   io.Writer
}

// The parts of the benchmark.
const (
	PartKill     = "kill"     // the window, by strategy
	PartBusy     = "busy"     // the same on a machine that has too much to do
	PartSizes    = "sizes"    // how bpfkill's window grows with the set
	PartMemory   = "memory"   // until the memory of the killed is free
	PartSnapshot = "snapshot" // reading processes and their descriptors
	PartStart    = "start"    // bpfkill --dry-run as a whole
	PartWatch    = "watch"    // what bpfkill watch costs others
)

// Parts are all there are, in their order.
var Parts = []string{PartKill, PartBusy, PartSizes, PartMemory, PartSnapshot, PartStart, PartWatch}

// Check returns what is wrong with the options.
func (o *Options) Check() error {
	if o.Runs < 1 {
		return fmt.Errorf("%d runs: at least one is needed", o.Runs)
	}
	for _, n := range o.Processes {
		if n < 1 {
			return fmt.Errorf("%d processes: at least one is needed", n)
		}
	}
	for _, s := range o.Strategies {
		if find(s) == nil {
			return fmt.Errorf("unknown strategy %q: one of %s", s, strings.Join(Names(), ", "))
		}
	}
	for _, p := range o.Parts {
		if !slices.Contains(Parts, p) {
			return fmt.Errorf("unknown part %q: one of %s", p, strings.Join(Parts, ", "))
		}
	}
	if !slices.Contains([]string{"table", "go", "json"}, o.Output) {
		return fmt.Errorf("unknown output %q: one of table, go, json", o.Output)
	}
	return nil
}

// Run measures everything and writes the results to w. It must be called inside
// the namespace; see [Outside].
func Run(o Options, w io.Writer) error {
	if err := checkInside(); err != nil {
		return err
	}
	l, err := newLab(&o)
	if err != nil {
		return err
	}
	defer l.close()
	results := writer(&o, w)
	parts := map[string]func(add func(Sample) error) error{
		PartKill: l.kills, PartBusy: l.busy, PartSizes: l.growth, PartMemory: l.memory, PartSnapshot: l.snapshots, PartStart: l.starts,
		PartWatch: l.watches,
	}
	for _, part := range Parts {
		if !slices.Contains(o.Parts, part) {
			continue
		}
		if err := parts[part](results.add); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return results.end()
}

// checkInside makes sure that nothing here can reach the machine's other
// processes: this is pid 1, and /proc shows this namespace.
func checkInside() error {
	if os.Getpid() != 1 {
		return errors.New("not in a pid namespace of its own, where killing by name is safe")
	}
	return procfs.CheckOwn()
}
