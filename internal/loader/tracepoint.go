package loader

import (
	"errors"
	"fmt"
	"math"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Since v7.0 (a46023d5616e) a program that a tracepoint runs can be preempted,
// and the kernel skips it for whoever reaches the tracepoint on that CPU in the
// meantime. A second, identical program behind the first closes the gap: the
// first one's preempted run has not got to it yet.
const preemptibleMajor = 7

// ordinals are what the further copies of a program are called.
var ordinals = []string{"_second", "_third", "_fourth", "_fifth", "_sixth", "_seventh", "_eighth"}

// copiesOf lists a program and its copies, as far as they were loaded.
func copiesOf(coll *ebpf.Collection, program string) (all []*ebpf.Program) {
	for _, ordinal := range append([]string{""}, ordinals...) {
		if p := coll.Programs[program+ordinal]; p != nil {
			all = append(all, p)
		}
	}
	return all
}

// preemptible reports whether tracepoints are.
func preemptible() bool { return atLeast(preemptibleMajor, 0) }

// addSeconds gives programs a second copy, where tracepoints are preemptible.
// Running both must do no harm.
func addSeconds(spec *ebpf.CollectionSpec, programs ...string) {
	if preemptible() {
		addCopies(spec, 1, programs...)
	}
}

// addSpares gives programs as many copies as there are, where tracepoints are preemptible:
// a burst may leave several processes preempted in the midst of a copy, each until its
// turn on that CPU comes again, and what is missed here nothing else tells.
func addSpares(spec *ebpf.CollectionSpec, programs ...string) {
	if preemptible() {
		addCopies(spec, len(ordinals), programs...)
	}
}

// addCopies gives each program so many further copies.
func addCopies(spec *ebpf.CollectionSpec, copies int, programs ...string) {
	for _, name := range programs {
		for _, ordinal := range ordinals[:copies] {
			spec.Programs[name+ordinal] = spec.Programs[name].Copy()
		}
	}
}

// attachTracepoint attaches a tp_btf program, and its copies if it has some. The
// caller closes the links, on error too.
func attachTracepoint(coll *ebpf.Collection, program string) ([]link.Link, error) {
	var links []link.Link
	for _, p := range copiesOf(coll, program) {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return links, fmt.Errorf("attach %s: %w", program, err)
		}
		links = append(links, l)
	}
	return links, nil
}

// unload detaches links, then unloads their collection, and reports every error.
func unload(coll *ebpf.Collection, links []link.Link) error {
	var errs []error
	for _, l := range links {
		errs = append(errs, l.Close())
	}
	coll.Close()
	return errors.Join(errs...)
}

// missedRuns counts how often the kernel passed programs over, at most: what
// every copy of one missed. It is 0 before v5.12, which does not count.
func missedRuns(coll *ebpf.Collection, programs ...string) (n uint64, err error) {
	for _, program := range programs {
		copies := copiesOf(coll, program)
		if len(copies) == 0 {
			continue
		}
		least := uint64(math.MaxUint64)
		for _, p := range copies {
			missed, err := recursionMisses(p)
			if err != nil {
				return 0, err
			}
			least = min(least, missed)
		}
		n += least
	}
	return n, nil
}

func recursionMisses(p *ebpf.Program) (uint64, error) {
	stats, err := p.Stats()
	if err != nil {
		return 0, fmt.Errorf("read program statistics: %w", err)
	}
	return stats.RecursionMisses, nil
}
