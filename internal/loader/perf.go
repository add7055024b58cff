package loader

import "github.com/bpfkill/bpfkill/internal/waitgraph"

// perfBuilder gathers the performance events of processes. Each buffer that they write to
// is an object for each process that is measured: the exit of any of its threads tells who
// polls there.
type perfBuilder struct {
	owned  []snapshotLinkRecord // from a buffer to who is measured
	queues map[uint64][]uint64  // buffer -> queues of who polls it
}

func (p *perfBuilder) addLink(r *snapshotLinkRecord) {
	if r.Kind == linkEventOwner {
		p.owned = append(p.owned, *r)
		return
	}
	p.queues[r.From] = append(p.queues[r.From], r.To)
}

func (p *perfBuilder) addObjects(b *snapshotBuilder) {
	type measured struct {
		buffer uint64
		proc   int32
	}
	seen := make(map[measured]bool) // a process has an event for each thread and CPU
	for i := range p.owned {
		r := &p.owned[i]
		proc, ok := b.process[taskKey{r.Tgid, r.To}]
		key := measured{r.From, proc}
		if !ok || seen[key] {
			continue
		}
		seen[key] = true
		obj := b.newObject(waitgraph.Object{Channel: waitgraph.ChannelOther, Name: "performance event"})
		b.hold(obj, proc)
		for _, q := range p.queues[r.From] {
			b.link(obj, q)
		}
	}
}
