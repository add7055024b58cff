package storm

import (
	"cmp"
	"fmt"

	"golang.org/x/sys/unix"
)

// node is one process of a family tree, as a topology describes it. The storm's
// owner forks the root, and each process its children, in their order.
type node struct {
	comm string // Target, or empty for a router
	role string // unique in its tree
	// times is how many there are of a node without children; 0 means one.
	times int
	// open is its first act: it makes what it shares with its children, or lets
	// go of what it inherited and has no business with.
	open func()
	// shut comes after its forks: it lets go of what only its children need.
	shut func()
	// wait ends in a blocking call; a target that has none accepts.
	wait func()
	// wakes are the ways in which it wakes, by roles; empty for never.
	wakes []when
	// after is the role that must be asleep before this one goes on to wait;
	// empty for none.
	after string
	// vfork makes its parent wait in vfork for its end, after the parent's
	// other forks and in place of any other blocking call.
	vfork bool
	// shares has it share its parent's memory.
	shares bool
	// autokill has it die with the pidfd that its parent, and nobody else, has of it.
	autokill bool
	// thread has it forked by a second thread of its parent, which then sleeps;
	// the thread's id is in regPID.
	thread bool
	// asks comes after the prologue, for what that would undo; wait can do the same.
	asks func()
	// aside is what a second thread does, which ends in blockAside.
	aside func()
	// exitSignal is what its parent gets at its end, SIGCHLD where it is 0.
	exitSignal unix.Signal
	children   []*node
}

// when is a wake whose deaths are roles, each standing for all that have it.
type when struct {
	deaths []string
	effect Effect
	// oneOf makes all that have such wakes in this tree, which have the same, a
	// group of which each wakes one.
	oneOf bool
}

// dies is the wake of one who runs when the roles have all died.
func dies(roles ...string) []when { return []when{{deaths: roles}} }

// diesOf is the wake of one who dies when the roles have all died.
func diesOf(roles ...string) []when { return []when{{deaths: roles, effect: Dies}} }

// stirs is the wake of one who is woken when the roles have all died, and sleeps on.
func stirs(roles ...string) []when { return []when{{deaths: roles, effect: Stirs}} }

// anyDies are the wakes of one who runs when one of the roles has died.
func anyDies(roles ...string) []when {
	var out []when
	for _, r := range roles {
		out = append(out, when{deaths: []string{r}})
	}
	return out
}

// walk calls f for the node and its descendants, each before its children.
func (nd *node) walk(f func(nd, parent *node)) { nd.walkFrom(nil, f) }

func (nd *node) walkFrom(parent *node, f func(nd, parent *node)) {
	f(nd, parent)
	for _, c := range nd.children {
		c.walkFrom(nd, f)
	}
}

func (nd *node) count() int { return max(nd.times, 1) }

func (nd *node) name() string {
	if nd.comm == "" {
		return "router"
	}
	return nd.comm
}

// trees stages n trees, of the kinds given in turn.
func (b *builder) trees(n int, kinds ...*node) {
	scripts := make([]*treeScript, len(kinds))
	for i := range n {
		k := i % len(kinds)
		if scripts[k] == nil {
			scripts[k] = b.treeScript(kinds[k])
		}
		b.tree(kinds[k], scripts[k])
	}
}

// treeScript is what the processes of one kind of tree do. The members of a tree
// are numbered in the order of walk.
type treeScript struct {
	start map[*node]label
	first map[*node]int // number in the tree of the first of the node's processes
	call  map[*node]int
	state map[*node]byte
	aside map[*node]int
}

func (b *builder) treeScript(root *node) *treeScript {
	t := &treeScript{map[*node]label{}, map[*node]int{}, map[*node]int{}, map[*node]byte{}, map[*node]int{}}
	size := 0
	root.walk(func(nd, _ *node) {
		t.start[nd], t.first[nd] = b.newLabel(), size
		size += nd.count()
	})
	root.walk(func(nd, parent *node) {
		b.place(t.start[nd])
		if parent == nil {
			b.add(regHome, reg(regSlot), imm(0))
		}
		b.life(nd, t)
		t.call[nd], t.state[nd], t.aside[nd] = b.blocked, b.state, b.asideCall
	})
	return t
}

// life emits what one process does.
func (b *builder) life(nd *node, t *treeScript) {
	if nd.open != nil {
		nd.open()
	}
	var vforked *node
	for _, c := range nd.children {
		switch {
		case c.vfork:
			vforked = c
		case c.thread:
			b.thread(func() {
				b.must(regPID, unix.SYS_GETTID)
				b.bearChild(c, t)
				b.forever()
			})
		case c.autokill:
			b.add(regNext, reg(regHome), imm(t.first[c]*slotSize))
			b.forkAutokilled(t.start[c], regNext)
		case c.shares:
			b.add(regNext, reg(regHome), imm(t.first[c]*slotSize))
			b.forkSharing(t.start[c], regNext)
		default:
			b.bearChild(c, t)
		}
	}
	if nd.shut != nil {
		nd.shut()
	}
	b.prologue(nd.name())
	if nd.after != "" {
		b.turn()
	}
	b.state, b.asideCall = 0, 0
	if nd.asks != nil {
		nd.asks()
	}
	if nd.aside != nil {
		b.thread(nd.aside)
	}
	switch {
	case vforked != nil:
		b.add(regNext, reg(regHome), imm(t.first[vforked]*slotSize))
		b.blockInVfork(t.start[vforked], reg(regNext))
	case nd.wait != nil:
		nd.wait()
	default:
		b.accept()
	}
}

// bearChild forks one child, or all of a node that stands for many.
func (b *builder) bearChild(c *node, t *treeScript) {
	b.add(regNext, reg(regHome), imm(t.first[c]*slotSize))
	if c.count() == 1 {
		b.forkFor(t.start[c], reg(regNext), cmp.Or(c.exitSignal, unix.SIGCHLD))
		return
	}
	b.add(regCount, imm(c.count()), imm(0))
	b.forkMany(t.start[c], regNext, regCount)
}

// tree plans the members of one tree and has its root forked.
func (b *builder) tree(root *node, t *treeScript) {
	base := len(b.members)
	roles := map[string][]int{}
	root.walk(func(nd, _ *node) {
		for k := range nd.count() {
			roles[nd.role] = append(roles[nd.role], base+t.first[nd]+k)
		}
	})
	group := 0
	root.walk(func(nd, parent *node) {
		m := member{comm: nd.name(), role: nd.role, call: t.call[nd], state: t.state[nd], aside: t.aside[nd], parent: owner, after: roles[nd.after]}
		if parent != nil {
			m.parent = base + t.first[parent]
		}
		for _, w := range nd.wakes {
			m.wakes = append(m.wakes, b.wake(w, roles, &group))
		}
		for range nd.count() {
			b.members = append(b.members, m)
		}
	})
	b.bear(direct{slot: base, script: t.start[root], in: -1, out: -1, next: -1, extra: -1})
}

// wake resolves roles into members. group is the tree's.
func (b *builder) wake(w when, roles map[string][]int, group *int) wake {
	out := wake{effect: w.effect}
	for _, role := range w.deaths {
		if len(roles[role]) == 0 {
			b.err = fmt.Errorf("nobody in this tree is the %s", role)
		}
		out.deaths = append(out.deaths, roles[role]...)
	}
	if w.oneOf {
		if *group == 0 {
			b.groups++
			*group = b.groups
		}
		out.group = *group
	}
	return out
}
