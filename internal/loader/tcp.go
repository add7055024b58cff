package loader

// tcpBuilder pairs the two ends of connections on this machine: each names
// itself as the other names its peer.
type tcpBuilder struct {
	self  map[uint64]uint64 // key of an end -> its queue
	peers []objectQueue     // object -> key of the end that it tells of its own
}

func newTCPBuilder() tcpBuilder { return tcpBuilder{self: make(map[uint64]uint64)} }

func (t *tcpBuilder) addObject(r *snapshotDescriptorRecord, obj int32) {
	if r.SelfKey != 0 {
		t.self[r.SelfKey] = r.Own[0]
	}
	if r.PeerKey != 0 && r.Flags&descriptorSilent == 0 {
		t.addPeer(obj, r.PeerKey)
	}
}

func (t *tcpBuilder) addPeer(obj int32, key uint64) {
	t.peers = append(t.peers, objectQueue{obj, key})
}

// link links each end to the other's queue.
func (t *tcpBuilder) link(b *snapshotBuilder) {
	for _, p := range t.peers {
		if queue := t.self[p.queue]; queue != 0 {
			b.link(p.object, queue)
		}
	}
}
