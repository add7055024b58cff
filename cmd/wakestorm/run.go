package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/bpfkill/bpfkill/internal/storm"
	"github.com/spf13/pflag"
)

// usageError is a command line that makes no sense: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

const usage = `Usage:
  wakestorm run --topology NAME --processes N [flags]   stage processes that wait on each other
  wakestorm list                                        the topologies there are
  wakestorm bench [flags]                               kills, by bpfkill and by others, beside each other (root)
  wakestorm plot --results FILE [--document FILE.md] [--picture NAME [--kernel RELEASE]]
                                                        tables and picture of staged incidents

run prints one line of JSON on standard output when every process is asleep, and
another when it ends: how many were alive then, and how many had run user code
after being woken. It ends on SIGTERM, SIGINT, SIGQUIT or SIGHUP and takes its processes with it;
after a SIGKILL they stay, unless --die-with-parent is given.

bench stages sleeping processes in a pid namespace of its own and kills them: each strategy in
turns, all timed by the kernel's clock. It prints a table of medians, and which bars they reach.

`

// run is the whole command; main turns its error into an exit status.
func run(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("what to do? run, list, bench or plot; see wakestorm --help")}
	}
	switch args[0] {
	case "run":
		return runStorm(args[1:], stdin, stdout)
	case "list":
		if len(args) > 1 {
			return usageError{fmt.Errorf("list takes no arguments, not %q", args[1])}
		}
		return list(stdout)
	case "bench":
		return runBench(args[1:], stdin, stdout)
	case "plot":
		return plotIncident(args[1:])
	case "help", "-h", "--help":
		flags, _ := newFlags()
		benchFlags, _ := newBenchFlags()
		_, err := fmt.Fprint(stdout, usage, "Flags of run:\n", flags.FlagUsages(), "\nFlags of bench:\n", benchFlags.FlagUsages())
		return err
	}
	return usageError{fmt.Errorf("unknown command %q: run, list, bench or plot", args[0])}
}

func list(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TOPOLOGY\tCOUNTS\tCHANNEL\tWHAT WAITS ON WHAT\tWHEN EVERY SMTPSERVER IS KILLED")
	for _, t := range storm.Topologies {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", t.Name, t.Unit, t.Channel, t.Summary, t.Outcome)
	}
	return tw.Flush()
}

// settings are the parsed flags of run.
type settings struct {
	topology      string
	processes     int
	mem           float64 // MiB
	descriptors   int
	swapOut       bool
	marks         string
	untilEOF      bool
	sigchld       bool
	robustList    bool
	dieWithParent bool
	forkLimit     int
	timeout       time.Duration
}

func newFlags() (*pflag.FlagSet, *settings) {
	var s settings
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	f.StringVar(&s.topology, "topology", "", "who waits on whom; see wakestorm list")
	f.IntVar(&s.processes, "processes", 0, "how many, in the topology's own unit")
	f.Float64Var(&s.mem, "mem", 0, "incompressible memory that each process fills, and reads back once woken, in `MiB`")
	f.IntVar(&s.descriptors, "descriptors", 0, "how many more descriptors each process opens: ends of pipes of its own")
	f.BoolVar(&s.swapOut, "swap-out", false, "push the sleeping processes' memory out to swap")
	f.StringVar(&s.marks, "marks", "", "keep the processes' marks in this `file`")
	f.BoolVar(&s.untilEOF, "until-eof", false, "end at the end of standard input, too")
	f.BoolVar(&s.sigchld, "sigchld", false, "be woken by each child's death, as an ordinary parent is; by default the kernel reaps them")
	f.BoolVar(&s.robustList, "robust-list", false, "register a robust futex list in each process, as glibc does")
	f.BoolVar(&s.dieWithParent, "die-with-parent", false, "have each process killed when its parent dies: a wake channel of its own")
	f.IntVar(&s.forkLimit, "fork-limit", 0, "how often each forker forks before it rests (default 1000000)")
	f.DurationVar(&s.timeout, "timeout", time.Minute, "how long to wait until all are asleep")
	return f, &s
}

// maxProcesses is the kernel's PID_MAX_LIMIT on 64-bit machines.
const maxProcesses = 4 << 20

// parse reads run's flags. It returns pflag.ErrHelp when help was asked for.
func parse(args []string) (*settings, error) {
	flags, s := newFlags()
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil, err
		}
		return nil, usageError{err}
	}
	switch {
	case flags.NArg() > 0:
		return nil, usageError{fmt.Errorf("unexpected argument %q", flags.Arg(0))}
	case s.topology == "":
		return nil, usageError{errors.New("which topology? --topology NAME; see wakestorm list")}
	case s.processes < 1 || s.processes > maxProcesses:
		return nil, usageError{fmt.Errorf("--processes %d: from 1 to %d", s.processes, maxProcesses)}
	case !(s.mem >= 0 && s.mem <= 1<<20): // NaN is neither
		return nil, usageError{fmt.Errorf("--mem %v: not a sensible number of MiB for each process", s.mem)}
	case s.descriptors < 0 || s.descriptors > 1000:
		return nil, usageError{fmt.Errorf("--descriptors %d: from 0 to 1000", s.descriptors)}
	case s.forkLimit < 0:
		return nil, usageError{fmt.Errorf("--fork-limit %d: must not be negative", s.forkLimit)}
	case s.timeout <= 0:
		return nil, usageError{fmt.Errorf("--timeout %v: must be positive", s.timeout)}
	}
	if _, err := storm.Lookup(s.topology); err != nil {
		return nil, usageError{err}
	}
	return s, nil
}
