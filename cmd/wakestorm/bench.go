package main

import (
	"errors"
	"io"
	"os"

	"github.com/spf13/pflag"

	"github.com/bpfkill/bpfkill/internal/bench"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	bench.Options
	show []string // files with earlier results
}

func newBenchFlags() (*pflag.FlagSet, *benchOptions) {
	o := &benchOptions{}
	f := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	f.IntSliceVar(&o.Processes, "processes", []int{1000}, "how many processes to kill; several sizes are measured one after the other")
	f.IntVar(&o.Runs, "runs", 10, "how often each strategy kills each size")
	f.StringSliceVar(&o.Strategies, "strategies", bench.Names(), "which")
	f.StringSliceVar(&o.Parts, "parts", bench.Parts, "what to measure")
	f.StringVar(&o.Output, "output", "table", "table, go (for benchstat) or json (a line for each run)")
	f.StringVar(&o.Bpfkill, "bpfkill", bench.DefaultBpfkill(), "the `program` to measure")
	f.StringSliceVar(&o.show, "show", nil, "measure nothing: print the table of these `files`, which --output json wrote")
	return f, o
}

func parseBench(args []string) (*benchOptions, error) {
	f, o := newBenchFlags()
	if err := f.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil, err
		}
		return nil, usageError{err}
	}
	if f.NArg() > 0 {
		return nil, usageError{errors.New("bench takes flags only")}
	}
	if err := o.Check(); err != nil {
		return nil, usageError{err}
	}
	o.Progress = os.Stderr
	return o, nil
}

// runBench measures in a namespace of its own: this program runs itself again.
func runBench(args []string, stdin io.Reader, stdout io.Writer) error {
	if help := bench.Helper(); help != nil {
		return help(args)
	}
	o, err := parseBench(args)
	if errors.Is(err, pflag.ErrHelp) {
		return run([]string{"help"}, stdin, stdout)
	}
	if err != nil {
		return err
	}
	if len(o.show) > 0 {
		return bench.Show(o.show, stdout)
	}
	if ran, err := bench.Outside(); ran || err != nil {
		return err
	}
	return bench.Run(o.Options, stdout)
}
