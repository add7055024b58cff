package storm

import "golang.org/x/sys/unix"

var incidentTopologies = []Topology{{
	Name: "mail", Unit: "servers", Channel: "pipe",
	Summary: "servers in accept with 64 KiB of their own, each with a router child that reads its pipe; --mem is the routers' alone",
	Outcome: "every router wakes",
	build:   buildMail,
}}

// serverBytes is what a server of the mail topology has of its own: what dying
// and waking cost there lies in the routers.
const serverBytes = 64 << 10

func buildMail(b *builder, n int) {
	server, router := b.newLabel(), b.newLabel()
	routers := b.opts.MemBytes

	b.place(server)
	b.pipe(regIn, regOut)
	b.fork(router, reg(regNext))
	b.closeFD(regIn)
	b.opts.MemBytes = min(routers, serverBytes)
	b.prologue(Target)
	b.accept()
	b.opts.MemBytes = routers

	b.place(router)
	b.closeFD(regOut)
	b.prologue("router")
	b.read(regIn)

	for range n {
		s := b.member(Target, "server", unix.SYS_ACCEPT4, owner)
		r := b.member("router", "router", unix.SYS_READ, s, s)
		b.bear(direct{slot: s, script: server, in: -1, out: -1, next: r, extra: -1})
	}
}
