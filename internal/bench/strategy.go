package bench

import (
	"os"
	"path/filepath"
	"strconv"

	"github.com/bpfkill/bpfkill/internal/storm"
)

// strategy is one way to kill the whole set.
type strategy struct {
	name    string
	what    string // for the table's legend
	bpfkill bool
	cgroup  bool // needs cgroup.kill
	batch   bool // needs the batch engine
	argv    func(*staged) []string
}

// name of the strategies that others are compared with.
const (
	pkill      = "pkill"
	cgroupKill = "cgroup.kill"
	groupFIFO  = "pgid-fifo"
	ours       = "bpfkill-batch"
)

var strategies = []strategy{
	{name: pkill, what: "pkill -9 NAME", argv: func(*staged) []string {
		return []string{"pkill", "-9", storm.Target}
	}},
	{name: "xargs", what: "pgrep NAME | xargs kill -9", argv: func(*staged) []string {
		return shell("pgrep " + storm.Target + " | xargs kill -9")
	}},
	{name: "pgid", what: "kill -9 -PGID", argv: func(s *staged) []string {
		return shell("kill -9 -" + strconv.Itoa(s.pgid))
	}},
	{name: groupFIFO, what: "the same under SCHED_FIFO", argv: func(s *staged) []string {
		return fifo(shell("kill -9 -" + strconv.Itoa(s.pgid)))
	}},
	{name: cgroupKill, what: "one write to cgroup.kill", cgroup: true, argv: func(s *staged) []string {
		return shell("echo 1 >" + filepath.Join(s.cgroup, "cgroup.kill"))
	}},
	{name: "loop-fifo", what: "kill -9 PID... under SCHED_FIFO", argv: func(s *staged) []string {
		args := append(shell(`kill -9 "$@"`), "sh")
		for _, pid := range s.pids {
			args = append(args, strconv.Itoa(pid))
		}
		return fifo(args)
	}},
	bpfkill(ours, "batch", "auto"),
	bpfkill("bpfkill-batch-nocorral", "batch", "off"),
	bpfkill("bpfkill-loop", "loop", "auto"),
	bpfkill("bpfkill-loop-nocorral", "loop", "off"),
	bpfkill("bpfkill-cgroup", "cgroup", "auto"),
	bpfkill("bpfkill-cgroup-nocorral", "cgroup", "off"),
}

func bpfkill(name, engine, corral string) strategy {
	return strategy{
		name: name, what: "bpfkill --engine " + engine + " --corral " + corral, bpfkill: true,
		cgroup: engine == "cgroup", batch: engine == "batch",
		argv: func(s *staged) []string {
			return []string{s.bpfkill, "--target", storm.Target, "--engine", engine, "--corral", corral, "--output", "json"}
		},
	}
}

func shell(script string) []string { return []string{"sh", "-c", script} }

func fifo(argv []string) []string { return append([]string{"chrt", "-f", "1"}, argv...) }

// Names lists the strategies.
func Names() []string {
	var names []string
	for i := range strategies {
		names = append(names, strategies[i].name)
	}
	return names
}

func find(name string) *strategy {
	for i := range strategies {
		if strategies[i].name == name {
			return &strategies[i]
		}
	}
	return nil
}

// describe is what a strategy does, or the name of one that this version does not know.
func describe(name string) string {
	if s := find(name); s != nil {
		return s.what
	}
	return name
}

// DefaultBpfkill is the program beside this one, or the one in the search path.
func DefaultBpfkill() string {
	self, err := os.Executable()
	if err != nil {
		return "bpfkill"
	}
	beside := filepath.Join(filepath.Dir(self), "bpfkill")
	if _, err := os.Stat(beside); err != nil {
		return "bpfkill"
	}
	return beside
}
