package loader

// tcpBuilder pairs the two ends of connections on this machine: each names
// itself as the other names its peer.
type tcpBuilder struct {
	self  map[uint64][]tcpEnd // by key
	peers []tcpTold
}

// tcpEnd is one end of a connection.
type tcpEnd struct {
	network uint64 // tells network namespaces apart
	queue   uint64
}

// tcpTold is the end that an object tells of its own.
type tcpTold struct {
	object       int32
	key, network uint64
}

func newTCPBuilder() tcpBuilder { return tcpBuilder{self: make(map[uint64][]tcpEnd)} }

func (t *tcpBuilder) addObject(r *snapshotDescriptorRecord, obj int32) {
	if r.SelfKey != 0 {
		t.self[r.SelfKey] = append(t.self[r.SelfKey], tcpEnd{r.ScopeId, r.Own[0]})
	}
	if r.PeerKey != 0 && r.Flags&descriptorSilent == 0 {
		t.addPeer(obj, r.PeerKey, r.ScopeId)
	}
}

func (t *tcpBuilder) addPeer(obj int32, key, network uint64) {
	t.peers = append(t.peers, tcpTold{obj, key, network})
}

// queue finds the end of that key which a socket in a network is connected to: one in
// the same network, or the only one there is elsewhere. That there are several is
// possible, where namespaces are copies of each other; 0 then.
func (t *tcpBuilder) queue(key, network uint64) uint64 {
	ends := t.self[key]
	for _, e := range ends {
		if e.network == network {
			return e.queue
		}
	}
	if len(ends) == 1 {
		return ends[0].queue
	}
	return 0
}

// link links each end to the other's queue.
func (t *tcpBuilder) link(b *snapshotBuilder) {
	for _, p := range t.peers {
		if queue := t.queue(p.key, p.network); queue != 0 {
			b.link(p.object, queue)
		}
	}
}
