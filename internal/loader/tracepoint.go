package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Since v7.0 (a46023d5616e) a program that a tracepoint runs can be preempted,
// and the kernel skips it for whoever reaches the tracepoint on that CPU in the
// meantime. A second, identical program behind the first closes the gap: the
// first one's preempted run has not got to it yet.
const preemptibleMajor = 7

// secondOf names the second copy of a program.
func secondOf(program string) string { return program + "_second" }

// preemptible reports whether tracepoints are. Without a release that can be read
// they are taken not to be.
func preemptible() bool {
	release, err := Kernel()
	if err != nil {
		return false
	}
	var major int
	_, err = fmt.Sscanf(release, "%d.", &major)
	return err == nil && major >= preemptibleMajor
}

// addSeconds gives programs a second copy, where tracepoints are preemptible.
// Running both must do no harm.
func addSeconds(spec *ebpf.CollectionSpec, programs ...string) {
	if preemptible() {
		addCopies(spec, programs...)
	}
}

// addCopies gives programs a second copy.
func addCopies(spec *ebpf.CollectionSpec, programs ...string) {
	for _, name := range programs {
		spec.Programs[secondOf(name)] = spec.Programs[name].Copy()
	}
}

// attachTracepoint attaches a tp_btf program, and its second if it has one. The
// caller closes the links, on error too.
func attachTracepoint(coll *ebpf.Collection, program string) ([]link.Link, error) {
	var links []link.Link
	for _, name := range []string{program, secondOf(program)} {
		p := coll.Programs[name]
		if p == nil {
			continue
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return links, fmt.Errorf("attach %s: %w", name, err)
		}
		links = append(links, l)
	}
	return links, nil
}

// missedRuns counts how often the kernel passed programs over, at most: what
// both copies of one missed. It is 0 before v5.12, which does not count.
func missedRuns(coll *ebpf.Collection, programs ...string) (n uint64, err error) {
	for _, program := range programs {
		missed, err := recursionMisses(coll.Programs[program])
		if err != nil {
			return 0, err
		}
		if second := coll.Programs[secondOf(program)]; second != nil {
			again, err := recursionMisses(second)
			if err != nil {
				return 0, err
			}
			missed = min(missed, again)
		}
		n += missed
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
