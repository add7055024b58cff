package storm

import "golang.org/x/sys/unix"

var pipeTopologies = []Topology{
	{
		Name: "smtp", Unit: "servers", Channel: "pipe",
		Summary: "servers in accept, each with a router child that reads its pipe; one router in eight has a child of its own",
		Outcome: "every router wakes; a delivery wakes when its router dies too",
		build:   buildSMTP,
	}, {
		Name: "pipeline", Unit: "stages", Channel: "pipe",
		Summary: "a | b | c …: each stage is the child of the one before and reads from it",
		Outcome: "the first stage dies and the second wakes; the rest follow only if it dies too",
		build:   buildPipeline,
	}, {
		Name: "fanin", Unit: "writers", Channel: "pipe",
		Summary: "writers that share one pipe's write end, and one reader, the first writer's child",
		Outcome: "nobody wakes until the last writer dies; then the reader does",
		build:   buildFanin,
	}, {
		Name: "herd", Unit: "readers", Channel: "pipe",
		Summary: "one writer, and many readers, its children, blocked on one pipe",
		Outcome: "all readers wake at once",
		build:   buildHerd,
	}, {
		Name: "mutual", Unit: "pairs", Channel: "pipe", Mutual: true,
		Summary: "pairs that read each other's pipe; in every other pair both are targets",
		Outcome: "whoever of a pair dies first wakes the other",
		build:   buildMutual,
	}, {
		Name: "epoll", Unit: "servers", Channel: "pipe",
		Summary: "servers in accept, each with a router child in epoll_pwait on its pipe",
		Outcome: "every router wakes",
		build:   func(b *builder, n int) { buildPairs(b, n, unix.SYS_EPOLL_PWAIT, b.epoll) },
	}, {
		Name: "poll", Unit: "servers", Channel: "pipe",
		Summary: "servers in accept, each with a router child in ppoll on its pipe",
		Outcome: "every router wakes",
		build:   func(b *builder, n int) { buildPairs(b, n, unix.SYS_PPOLL, b.poll) },
	}, {
		Name: "chain", Unit: "processes", Channel: "pipe",
		Summary: "p1 reads p2's pipe, p2 reads p3's, …; all are targets, and the pids ascend in the worst order",
		Outcome: "killing by pid wakes each process just before its own signal; the right order is by descending pid",
		build:   buildChain,
	}, {
		Name: "forker", Unit: "long-lived processes", Channel: "other", Quiet: true, Restless: true,
		Summary: "up to four processes that fork as fast as they can, their children and grandchildren exiting, beside sleepers",
		Outcome: "everything dies, whatever was forked meanwhile included",
		build:   buildForker,
	}, {
		Name: "sleepers", Unit: "processes", Channel: "other", Quiet: true,
		Summary: "processes that wait on nobody",
		Outcome: "nobody wakes",
		build:   buildSleepers,
	},
}

const owner = -1

func buildSMTP(b *builder, n int) {
	server, router, busy, delivery := b.newLabel(), b.newLabel(), b.newLabel(), b.newLabel()

	b.place(server)
	b.pipe(regIn, regOut)
	b.fork(router, reg(regNext))
	b.closeFD(regIn)
	b.prologue(Target)
	b.accept()

	b.place(router)
	b.closeFD(regOut)
	childless := b.newLabel()
	b.jumpZero(regExtra, childless)
	b.jump(busy)
	b.place(childless)
	b.prologue("router")
	b.read(regIn)

	b.place(busy)
	b.pipe(regIn2, regOut2)
	b.fork(delivery, reg(regExtra))
	b.closeFD(regIn2)
	b.prologue("router")
	b.read(regIn)

	b.place(delivery)
	b.closeFD(regIn)
	b.closeFD(regOut2)
	b.prologue("delivery")
	b.read(regIn2)

	for i := range n {
		s := b.member(Target, "server", unix.SYS_ACCEPT4, owner)
		r := b.member("router", "router", unix.SYS_READ, s, s)
		d := direct{slot: s, script: server, in: -1, out: -1, next: r, extra: -1}
		if i%8 == 0 {
			d.extra = b.member("delivery", "delivery", unix.SYS_READ, r, r)
		}
		b.bear(d)
	}
}

// buildPairs is smtp without deliveries, for other ways to wait.
func buildPairs(b *builder, n, call int, wait func(fd int)) {
	server, router := b.newLabel(), b.newLabel()

	b.place(server)
	b.pipe(regIn, regOut)
	b.fork(router, reg(regNext))
	b.closeFD(regIn)
	b.prologue(Target)
	b.accept()

	b.place(router)
	b.closeFD(regOut)
	b.prologue("router")
	wait(regIn)

	for range n {
		s := b.member(Target, "server", unix.SYS_ACCEPT4, owner)
		r := b.member("router", "router", call, s, s)
		b.bear(direct{slot: s, script: server, in: -1, out: -1, next: r, extra: -1})
	}
}

func buildPipeline(b *builder, n int) {
	first, stage, last, noInput := b.newLabel(), b.newLabel(), b.newLabel(), b.newLabel()

	b.place(first)
	b.jumpZero(regCount, noInput)
	b.pipe(regIn, regOut)
	b.fork(stage, reg(regNext))
	b.closeFD(regIn)
	b.place(noInput)
	b.prologue(Target)
	b.accept()

	// A stage is born with its parent's input in regIn2, its own in regIn.
	b.place(stage)
	b.closeFD(regOut)
	second := b.newLabel()
	b.jumpZero(regIn2, second)
	b.closeFD(regIn2)
	b.place(second)
	b.add(regIn2, reg(regIn), imm(0))
	b.add(regCount, reg(regCount), imm(^uintptr(0)))
	b.jumpZero(regCount, last)
	b.add(regNext, reg(regNext), imm(slotSize))
	b.pipe(regIn, regOut)
	b.fork(stage, reg(regNext))
	b.closeFD(regIn)
	b.place(last)
	b.prologue("router")
	b.read(regIn2)

	at := b.member(Target, "first", unix.SYS_ACCEPT4, owner)
	for i := 1; i < n; i++ {
		at = b.member("router", "stage", unix.SYS_READ, at, at)
	}
	b.bear(direct{script: first, in: -1, out: -1, next: min(1, n-1), extra: -1, count: n - 1})
}

func buildFanin(b *builder, n int) {
	first, writer, reader := b.newLabel(), b.newLabel(), b.newLabel()

	b.place(first)
	b.fork(reader, reg(regNext))
	b.closeFD(regIn)
	b.place(writer)
	b.prologue(Target)
	b.accept()

	b.place(reader)
	b.closeFD(regOut)
	b.prologue("router")
	b.read(regIn)

	var writers []int
	for range n {
		writers = append(writers, b.member(Target, "writer", unix.SYS_ACCEPT4, owner))
	}
	r := b.member("router", "reader", unix.SYS_READ, writers[0], writers...)
	b.bear(direct{slot: writers[0], script: first, in: 0, out: 0, next: r, extra: -1})
	for _, w := range writers[1:] {
		b.bear(direct{slot: w, script: writer, in: -1, out: 0, next: -1, extra: -1})
	}
	b.pipes = 1
}

func buildHerd(b *builder, n int) {
	writer, reader := b.newLabel(), b.newLabel()

	b.place(writer)
	b.pipe(regIn, regOut)
	b.forkMany(reader, regNext, regCount)
	b.closeFD(regIn)
	b.prologue(Target)
	b.accept()

	b.place(reader)
	b.closeFD(regOut)
	b.prologue("router")
	b.read(regIn)

	w := b.member(Target, "writer", unix.SYS_ACCEPT4, owner)
	for range n {
		b.member("router", "reader", unix.SYS_READ, w, w)
	}
	b.bear(direct{slot: w, script: writer, in: -1, out: -1, next: w + 1, extra: -1, count: n})
}

func buildMutual(b *builder, n int) {
	mixed, both := b.newLabel(), b.newLabel()
	for _, pair := range []struct {
		start label
		comm  string
	}{{mixed, "router"}, {both, Target}} {
		second := b.newLabel()
		b.place(pair.start)
		b.pipe(regIn, regOut)
		b.pipe(regIn2, regOut2)
		b.fork(second, reg(regNext))
		b.closeFD(regOut)
		b.closeFD(regIn2)
		b.prologue(Target)
		b.read(regIn)

		b.place(second)
		b.closeFD(regIn)
		b.closeFD(regOut2)
		b.prologue(pair.comm)
		b.read(regIn2)
	}
	for i := range n {
		script, comm := mixed, "router"
		if i%2 == 1 {
			script, comm = both, Target
		}
		// Each is the holder of what the other waits on.
		a := b.member(Target, "first", unix.SYS_READ, owner, len(b.members)+1)
		c := b.member(comm, "second", unix.SYS_READ, a, a)
		b.bear(direct{slot: a, script: script, in: -1, out: -1, next: c, extra: -1})
	}
}

func buildChain(b *builder, n int) {
	end, link := b.newLabel(), b.newLabel()
	b.place(end)
	b.prologue(Target)
	b.accept()
	b.place(link)
	b.prologue(Target)
	b.read(regIn)

	// The end of the chain, on whom all others wait in turn, is forked first
	// and so has the lowest pid.
	b.member(Target, "end", unix.SYS_ACCEPT4, owner)
	for i := 1; i < n; i++ {
		b.member(Target, "link", unix.SYS_READ, owner, i-1)
	}
	for i := range n {
		d := direct{slot: i, script: link, in: i - 1, out: i, next: -1, extra: -1}
		if i == 0 {
			d.script = end
		}
		if i == n-1 {
			d.out = -1
		}
		b.bear(d)
	}
	b.pipes = n - 1
}

// burst is how many children a forker has before it waits for one.
const burst = 16

func buildForker(b *builder, n int) {
	root, worker, sleeper, brief := b.newLabel(), b.newLabel(), b.newLabel(), b.newLabel()
	workers := min(4, n)

	// The name comes first here: what is forked in the race must match it.
	b.place(root)
	b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_NAME), imm(b.comm(Target)))
	b.forkMany(worker, regNext, regCount)
	b.add(regCount, reg(regNumber), imm(0))
	b.forkMany(sleeper, regNext, regCount)
	b.place(worker)
	b.prologue(Target)
	b.forkForever(brief)

	b.place(brief)
	leaf := b.newLabel()
	b.fork(leaf, imm(0))
	b.place(leaf)
	b.must(regTemp, unix.SYS_EXIT_GROUP, imm(0))

	b.place(sleeper)
	b.prologue(Target)
	b.block(unix.SYS_PPOLL)

	r := b.member(Target, "forker", restless, owner)
	for i := 1; i < n; i++ {
		if i < workers {
			b.member(Target, "forker", restless, r)
		} else {
			b.member(Target, "sleeper", unix.SYS_PPOLL, r)
		}
	}
	b.bear(direct{slot: r, script: root, in: -1, out: -1, next: min(1, n-1), count: workers - 1, number: n - workers, extra: -1})
}

// forkForever forks short-lived children, a burst of them ahead of the waiting,
// until the fork limit is reached; then it sleeps.
func (b *builder) forkForever(child label) {
	b.add(regIn, imm(b.opts.ForkLimit), imm(0))
	b.add(regOut, imm(0), imm(0)) // children not waited for
	b.store(reg(regSlot), slotReady, imm(1))
	again, done, wait := b.here(), b.newLabel(), b.newLabel()
	b.jumpZero(regIn, done)
	b.fork(child, imm(0))
	b.add(regIn, reg(regIn), imm(^uintptr(0)))
	b.add(regOut, reg(regOut), imm(1))
	b.add(regTemp, reg(regOut), imm(^uintptr(burst-1)))
	b.jumpZero(regTemp, wait)
	b.jump(again)
	b.place(wait)
	b.try(regTemp, unix.SYS_WAIT4, imm(^uintptr(0)), imm(0), imm(0), imm(0))
	b.add(regOut, reg(regOut), imm(^uintptr(0)))
	b.jump(again)
	b.place(done)
	b.forever()
}

func buildSleepers(b *builder, n int) {
	sleeper := b.here()
	b.prologue(Target)
	b.block(unix.SYS_PPOLL)
	for range n {
		s := b.member(Target, "sleeper", unix.SYS_PPOLL, owner)
		b.bear(direct{slot: s, script: sleeper, in: -1, out: -1, next: -1, extra: -1})
	}
}
