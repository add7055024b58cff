package main

import (
	"strings"
	"testing"

	"github.com/bpfkill/bpfkill/internal/storm"
)

// choose lists the topologies that can be staged and killed here and that want
// takes.
func choose(want func(*storm.Topology) bool) []*storm.Topology {
	var chosen []*storm.Topology
	for i := range storm.Topologies {
		if t := &storm.Topologies[i]; !t.Restless && t.Supported() == nil && want(t) {
			chosen = append(chosen, t)
		}
	}
	return chosen
}

// groups says which topologies are staged side by side and killed at once, where
// n is the size of each: all in groups of their own, or together as many as stay
// within a few thousand processes. Together stay those whose wakes can be
// predicted; the others leave in doubt what nobody else may leave in doubt. A
// tracer's death has its tracees tell init things, on their own account.
func groups(topologies []*storm.Topology, n int, together bool) [][]*storm.Topology {
	const processes, each = 6000, 3 // processes of a topology for one of its size, about
	most := max(1, processes/(each*n))
	var out, open [][]*storm.Topology // open: one for each kind
	kinds := map[string]int{}
	for _, t := range topologies {
		kind := "predictable"
		switch {
		case !together, t.Name == "ptrace-tracer":
			kind = t.Name
		case t.Unpredictable != "":
			kind = "unpredictable"
		case t.Mutual:
			kind = "mutual"
		}
		i, ok := kinds[kind]
		if !ok {
			i = len(open)
			kinds[kind] = i
			open = append(open, nil)
		}
		if open[i] = append(open[i], t); len(open[i]) == most {
			out = append(out, open[i])
			open[i] = nil
		}
	}
	for _, g := range open {
		if len(g) > 0 {
			out = append(out, g)
		}
	}
	return out
}

// stageAll starts a storm of each topology.
func stageAll(t *testing.T, topologies []*storm.Topology, n int) []*storm.Storm {
	t.Helper()
	storms := make([]*storm.Storm, len(topologies))
	for i, topology := range topologies {
		storms[i] = stage(t, topology.Name, n)
	}
	return storms
}

// names joins the names of topologies.
func names(topologies []*storm.Topology) string {
	all := make([]string, len(topologies))
	for i, t := range topologies {
		all[i] = t.Name
	}
	return strings.Join(all, "+")
}
