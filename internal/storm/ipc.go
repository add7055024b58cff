package storm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

var ipcTopologies = []Topology{
	{
		Name: "sysv-sem", Unit: "servers", Channel: "other",
		Summary: "servers that hold a System V semaphore with SEM_UNDO, each with a router child in semop: for the semaphore, or for zero",
		Outcome: "every router wakes: the kernel undoes what the dead did",
		needs:   needSysVSem,
		build:   buildSysVSem,
	}, {
		Name: "sysv-sem-shared", Unit: "trees", Channel: "other",
		Summary: "servers that hold one unit of a System V semaphore with SEM_UNDO: of three routers that wait for one each, or two servers of three such, or of one that waits for both",
		Outcome: "of three routers as many wake as there were servers, and the one that waits for two units",
		needs:   needSysVSem,
		build:   buildSysVSemShared,
	}, {
		Name: "mqueue", Unit: "servers", Channel: "other", Quiet: true,
		Summary: "servers that have a POSIX message queue open, each with a router child that waits for a message, or for room for one",
		Outcome: "nobody wakes: a queue does not care who has it open",
		needs:   needMqueue,
		build:   buildMqueue,
	}, {
		Name: "mqueue-notice", Unit: "servers", Channel: "other",
		Summary:       "servers that asked a POSIX message queue for notice by a thread, each with a router child that awaits it: in read, ppoll or epoll_pwait on the netlink socket that it comes through",
		Outcome:       "every router wakes: who closes the queue is told that there is no notice any more",
		Unpredictable: "who asked a message queue for notice, and the netlink socket that it goes to, are not read",
		needs:         needMqueue,
		build:         buildMqueueNotice,
	}, {
		Name: "netlink", Unit: "servers", Channel: "other",
		Summary:       "servers that do not receive from a netlink socket, each with a router child that waits to send to it",
		Outcome:       "every router wakes: there is nobody any more to send to",
		Unpredictable: "netlink sockets, and who waits for room in them, are not read",
		build:         buildNetlink,
	},
}

// needIPC asks for root, as each tree gets an IPC namespace of its own: what lives
// there needs no name of its own, and goes when the last of the processes does.
func needIPC(what, option string, call uintptr) error {
	if os.Geteuid() != 0 {
		return errors.New("an IPC namespace of one's own: needs root")
	}
	// Whatever else this says, it is known.
	if _, _, errno := unix.Syscall(call, ^uintptr(0), ^uintptr(0), ^uintptr(0)); errno == unix.ENOSYS {
		return fmt.Errorf("%s: %w (%s)", what, errno, option)
	}
	return nil
}

func needSysVSem() error {
	return needIPC("System V semaphores", "CONFIG_SYSVIPC", unix.SYS_SEMCTL)
}

func needMqueue() error {
	return needIPC("POSIX message queues", "CONFIG_POSIX_MQUEUE", unix.SYS_MQ_UNLINK)
}

// ownIPC leaves the IPC namespace of the others.
func (b *builder) ownIPC() { b.must(regTemp, unix.SYS_UNSHARE, imm(unix.CLONE_NEWIPC)) }

const semUndo = 0x1000

// semop is an operation on the only semaphore of a set.
func (b *builder) semop(operation int16, flags int) arg {
	return imm(b.constant(shorts(0, uint16(operation), uint16(flags))))
}

// semaphore makes a set of one, which is 0, in an IPC namespace of its own, and brings
// it to where others have to wait.
func (b *builder) semaphore(operations ...arg) {
	b.ownIPC()
	b.must(regIn, unix.SYS_SEMGET, imm(unix.IPC_PRIVATE), imm(1), imm(0o600))
	b.semops(operations...)
}

func (b *builder) semops(operations ...arg) {
	for _, o := range operations {
		b.must(regTemp, unix.SYS_SEMOP, reg(regIn), o, imm(1))
	}
}

func (b *builder) awaitSemaphore(operation arg) {
	b.block(unix.SYS_SEMOP, reg(regIn), operation, imm(1))
}

func buildSysVSem(b *builder, n int) {
	tree := func(role string, start []arg, wait arg) *node {
		return &node{
			comm: Target, role: "server",
			open: func() { b.semaphore(start...) },
			children: []*node{{
				role: role, wakes: dies("server"),
				wait: func() { b.awaitSemaphore(wait) },
			}},
		}
	}
	b.trees(n,
		tree("waiting for it", []arg{b.semop(1, 0), b.semop(-1, semUndo)}, b.semop(-1, 0)),
		tree("waiting for zero", []arg{b.semop(1, semUndo)}, b.semop(0, 0)),
	)
}

func buildSysVSemShared(b *builder, n int) {
	take := b.semop(-1, semUndo)
	one := func() { b.awaitSemaphore(b.semop(-1, 0)) }
	// Two servers that hold a unit each, and whoever waits for those.
	held := func(waiting *node) *node {
		waiting.after = "another"
		return &node{
			comm: Target, role: "server",
			open: func() { b.semaphore(b.semop(2, 0), take) },
			children: []*node{
				{comm: Target, role: "another", open: func() { b.semops(take) }},
				waiting,
			},
		}
	}
	b.trees(n, &node{
		comm: Target, role: "server",
		open: func() { b.semaphore(b.semop(1, 0), take) },
		children: []*node{{
			role: "one of three", times: 3, wakes: []when{{deaths: []string{"server"}, oneOf: true}},
			wait: one,
		}},
	}, held(&node{
		role: "two of three", times: 3,
		wakes: []when{{deaths: []string{"server"}, oneOf: true}, {deaths: []string{"another"}, oneOf: true}},
		wait:  one,
	}), held(&node{
		role: "waiting for both", wakes: dies("server", "another"),
		wait: func() { b.awaitSemaphore(b.semop(-2, 0)) },
	}))
}

// mqueue makes a POSIX message queue in an IPC namespace of its own.
func (b *builder) mqueue(fd int) {
	b.ownIPC()
	// struct mq_attr: flags, one message, of eight bytes.
	attributes := append(words(0, 0, 1, 0, 8, 0), make([]byte, 40)...)
	b.must(fd, unix.SYS_MQ_OPEN, imm(b.comm("wakestorm")), imm(unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC),
		imm(0o600), imm(b.constant(attributes)))
}

func buildMqueue(b *builder, n int) {
	receive := func() {
		b.block(unix.SYS_MQ_TIMEDRECEIVE, reg(regIn), imm(b.scratch+scratchBuffer), imm(8), imm(0), imm(0))
	}
	send := func(block bool) {
		args := []arg{reg(regIn), imm(b.base()), imm(8), imm(0), imm(0)}
		if block {
			b.block(unix.SYS_MQ_TIMEDSEND, args...)
		} else {
			b.must(regTemp, unix.SYS_MQ_TIMEDSEND, args...)
		}
	}
	var kinds []*node
	for _, w := range []way{
		{"receiver", receive},
		{"poller", func() { b.poll(regIn) }},
		{"sender", func() { send(false); send(true) }},
	} {
		kinds = append(kinds, &node{
			comm: Target, role: "server",
			open:     func() { b.mqueue(regIn) },
			children: []*node{{role: w.role, wait: w.wait}},
		})
	}
	b.trees(n, kinds...)
}

const (
	sigevThread = 2  // SIGEV_THREAD
	cookieBytes = 32 // NOTIFY_COOKIE_LEN
)

func buildMqueueNotice(b *builder, n int) {
	cookie := b.constant(make([]byte, cookieBytes))
	event := imm(b.scratch + scratchStruct) // struct sigevent
	b.trees(n, b.pairs(func() {
		b.mqueue(regOut)
		b.socket(regIn, unix.AF_NETLINK, unix.SOCK_RAW)
		b.store64(event, 0, imm(cookie))
		b.store(event, 8, reg(regIn))
		b.store(event, 12, imm(sigevThread))
		b.must(regTemp, unix.SYS_MQ_NOTIFY, reg(regOut), event)
	}, dies("server"), b.receiving(regIn)...)...)
}

func buildNetlink(b *builder, n int) {
	socket := func(fd int) {
		b.must(fd, unix.SYS_SOCKET, imm(unix.AF_NETLINK), imm(unix.SOCK_RAW|unix.SOCK_CLOEXEC), imm(unix.NETLINK_USERSOCK))
		b.smallBuffers(fd)
	}
	b.trees(n, b.pairs(func() {
		socket(regOut)
		b.must(regTemp, unix.SYS_BIND, reg(regOut), imm(b.constant(shorts(unix.AF_NETLINK, 0, 0, 0, 0, 0))), imm(12))
		b.name(regOut)
		socket(regIn)
		b.connect(regIn)
	}, dies("server"), way{"sender", func() { b.sendMessage(regIn) }})...)
}
