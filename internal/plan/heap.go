package plan

// heap yields processes by cost, then identity. Costs may fall meanwhile.
type heap struct {
	entries  []priced
	position []int32 // by process: its place in entries plus one, 0 for none
}

type priced struct {
	cost    uint64
	process int32
}

func (a priced) before(b priced) bool {
	return a.cost < b.cost || a.cost == b.cost && a.process < b.process
}

func (h *heap) contains(p int32) bool { return h.position[p] != 0 }

func (h *heap) put(i int, e priced) {
	h.entries[i] = e
	h.position[e.process] = int32(i + 1)
}

func (h *heap) push(e priced) {
	h.entries = append(h.entries, e)
	h.up(len(h.entries)-1, e)
}

// lower gives a process that the heap contains a lower cost.
func (h *heap) lower(e priced) { h.up(int(h.position[e.process])-1, e) }

// up puts e at i or above.
func (h *heap) up(i int, e priced) {
	for i > 0 {
		above := (i - 1) / 2
		if !e.before(h.entries[above]) {
			break
		}
		h.put(i, h.entries[above])
		i = above
	}
	h.put(i, e)
}

// pop takes the first process; ok is false when there is none.
func (h *heap) pop() (p int32, ok bool) {
	if len(h.entries) == 0 {
		return 0, false
	}
	p = h.entries[0].process
	h.position[p] = 0
	end := len(h.entries) - 1
	e := h.entries[end]
	h.entries = h.entries[:end]
	i := 0
	for child := 1; child < end; child = 2*i + 1 {
		if child+1 < end && h.entries[child+1].before(h.entries[child]) {
			child++
		}
		if !h.entries[child].before(e) {
			break
		}
		h.put(i, h.entries[child])
		i = child
	}
	if end > 0 {
		h.put(i, e)
	}
	return p, true
}

// clear empties the heap.
func (h *heap) clear() {
	for _, e := range h.entries {
		h.position[e.process] = 0
	}
	h.entries = h.entries[:0]
}
