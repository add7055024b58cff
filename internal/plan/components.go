package plan

import "math"

// components finds strongly connected components by Tarjan's algorithm, with
// its own stack in place of recursion. Nodes are processes, then sources: an
// edge leads from a process to each source that it still waits on, and from a
// source to each holder. Edges from waiters straight to holders would be as
// many as their product.
type components struct {
	*orderer
	index []int32 // by node: order of discovery, 0 for none yet, left when out of the stack
	low   []int32 // by node: the earliest node of the stack that it reaches

	path  []frame // the walk from a root to the current node
	stack []int32 // nodes whose component is not complete
	trail []int32 // nodes to be forgotten before the next search
}

// left is the index of nodes whose component is complete: beyond all others.
const left = math.MaxInt32

type frame struct {
	node, next int32 // next is the position of the edge to follow
}

func newComponents(o *orderer) *components {
	nodes := len(o.done) + len(o.settled)
	return &components{orderer: o, index: make([]int32, nodes), low: make([]int32, nodes)}
}

// edges lists where node leads, as processes or as sources.
func (c *components) edges(node int32) (to []int32, base int32) {
	n := int32(len(c.done))
	if node < n {
		return c.g.Waits(node), n
	}
	return c.g.Holders(node - n), 0
}

// find returns the components among members, which must wait on nothing
// unplaced but each other: component i is list[ends[i-1]:ends[i]], and waits
// on nothing outside itself and the components before it. work is the number
// of nodes and edges looked at.
func (c *components) find(members []int32) (list, ends []int32, work int) {
	list = make([]int32, 0, len(members))
	if c.trail = c.trail[:0]; c.trail == nil {
		c.trail = make([]int32, 0, len(members)+len(c.settled))
		c.stack = make([]int32, 0, len(members)+len(c.settled))
	}
	for _, root := range members {
		if c.index[root] != 0 {
			continue
		}
		c.enter(root)
		for len(c.path) > 0 {
			work++
			if c.step() {
				continue
			}
			node := c.path[len(c.path)-1].node
			c.path = c.path[:len(c.path)-1]
			if len(c.path) > 0 {
				above := c.path[len(c.path)-1].node
				c.low[above] = min(c.low[above], c.low[node])
			}
			if c.low[node] != c.index[node] {
				continue
			}
			before := len(list)
			if list = c.leave(node, list); len(list) > before {
				ends = append(ends, int32(len(list)))
			}
		}
	}
	for _, node := range c.trail {
		c.index[node] = 0
	}
	return list, ends, work
}

// enter puts a new node on the path.
func (c *components) enter(node int32) {
	c.trail = append(c.trail, node)
	c.index[node] = int32(len(c.trail))
	c.low[node] = c.index[node]
	c.stack = append(c.stack, node)
	c.path = append(c.path, frame{node: node})
}

// step follows one edge of the last node on the path; it is false when there
// is none left.
func (c *components) step() bool {
	last := &c.path[len(c.path)-1]
	to, base := c.edges(last.node)
	if int(last.next) == len(to) {
		return false
	}
	node := to[last.next] + base
	last.next++
	if base != 0 { // to a source: it may no longer matter
		if s := node - base; c.settled[s] || c.set.state[s]&fires == 0 {
			return true
		}
	}
	if c.index[node] == 0 {
		c.enter(node)
	} else {
		c.low[last.node] = min(c.low[last.node], c.index[node])
	}
	return true
}

// leave takes the component of node off the stack, and adds its processes to
// list.
func (c *components) leave(node int32, list []int32) []int32 {
	for {
		top := c.stack[len(c.stack)-1]
		c.stack = c.stack[:len(c.stack)-1]
		c.index[top] = left
		if int(top) < len(c.done) {
			list = append(list, top)
		}
		if top == node {
			return list
		}
	}
}
