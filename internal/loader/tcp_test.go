package loader

import "testing"

// TestEndsOfConnections: which end a peer is taken for, where network namespaces may
// use the same addresses.
func TestEndsOfConnections(t *testing.T) {
	const key, here, there, elsewhere = 1, 10, 11, 12
	for _, test := range []struct {
		name string
		ends []tcpEnd
		want uint64
	}{
		{"nobody", nil, 0},
		{"in the same namespace", []tcpEnd{{here, 5}}, 5},
		{"in another one", []tcpEnd{{there, 6}}, 6},
		{"in both: it is the same", []tcpEnd{{there, 6}, {here, 5}}, 5},
		{"in two others: it is not known which", []tcpEnd{{there, 6}, {elsewhere, 7}}, 0},
	} {
		tcp := newTCPBuilder()
		tcp.self[key] = test.ends
		if got := tcp.queue(key, here); got != test.want {
			t.Errorf("%s: queue %d, want %d", test.name, got, test.want)
		}
	}
}
