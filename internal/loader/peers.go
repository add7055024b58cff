package loader

import "github.com/bpfkill/bpfkill/internal/waitgraph"

// peerBuilder finds the objects whose sleepers wait for the end of another one that
// no process was found to hold: it lies in a message on a socket, or an io_uring has
// it, or somebody outside the caller's pid namespace.
type peerBuilder []peer

type peer struct {
	object int32 // who sleeps here waits
	files  int32 // the kernel's count of files of the other
	// The other end of a TCP connection.
	key, network uint64
}

func (p *peerBuilder) addObject(r *snapshotDescriptorRecord, obj int32) {
	switch r.Kind {
	case objectUnix, objectTCP, objectPTYMaster, objectPTYSlave:
		if r.Readers != 0 {
			*p = append(*p, peer{obj, int32(r.Readers), r.PeerKey, r.ScopeId})
		}
	}
}

// addMissing makes an object without files for each that no other object's end
// wakes. Call it when all links are there.
func (p peerBuilder) addMissing(b *snapshotBuilder) {
	woken := make(map[int32]bool, len(b.snap.Links))
	for _, l := range b.snap.Links {
		woken[l.To] = true
	}
	for _, peer := range p {
		if woken[peer.object] || peer.key != 0 && b.tcp.queue(peer.key, peer.network) != 0 {
			continue
		}
		o := &b.snap.Objects[peer.object]
		missing := b.newObject(waitgraph.Object{
			Channel: o.Channel, Name: "other end of " + o.Name, Writers: peer.files,
		})
		b.snap.Links = append(b.snap.Links, waitgraph.Link{From: missing, To: peer.object})
	}
}
