package storm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Ways to wait for whoever supervises another process, or watches over it.
var supervisorTopologies = []Topology{
	{
		Name: "userfaultfd", Unit: "routers", Channel: "other",
		Summary:       "routers in a page fault that an smtpserver child is to resolve: it alone has the userfaultfd",
		Unpredictable: "faults that wait for a userfaultfd are in no queue that the snapshot reads",
		Outcome:       "every router wakes, and gets a page of zeroes",
		needs:         func() error { return needCall("userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC) },
		build:         buildUserfault,
	}, {
		Name: "seccomp-supervisor", Unit: "routers", Channel: "other",
		Summary:       "routers in a system call that an smtpserver child is to decide: it alone has the seccomp listener",
		Unpredictable: "system calls that wait for a seccomp supervisor are in no queue that the snapshot reads",
		Outcome:       "every router wakes: its call fails",
		needs:         needSeccomp,
		build:         buildSeccompSupervisor,
	}, {
		Name: "seccomp-supervised", Unit: "servers", Channel: "other",
		Summary:       "servers with a seccomp filter, each with a router child that polls its listener",
		Unpredictable: "who polls a seccomp listener is in no queue that the snapshot reads",
		Outcome:       "every router wakes: there is nobody left to supervise",
		needs:         needSeccompHangup,
		build:         buildSeccompSupervised,
	}, {
		Name: "fanotify", Unit: "routers", Channel: "other",
		Summary:       "routers that open a file, which an smtpserver is to permit by fanotify: up to four for each",
		Unpredictable: "opens that wait for a permission are in no queue that the snapshot reads",
		Outcome:       "every router wakes: what nobody forbids any more is permitted",
		needs:         needFanotify,
		build:         buildFanotify,
	}, {
		Name: "perf", Unit: "servers", Channel: "other",
		Summary: "servers, each with a router child that polls a performance event of the server, or one of its own that shares a buffer with it, or that the server has inherited",
		Outcome: "every router wakes: the event has hung up. Whose own has not sleeps on",
		needs:   needPerf,
		build:   buildPerf,
	}, {
		Name: "clear-tid", Unit: "routers", Channel: "futex",
		Summary:       "routers that share their memory with an smtpserver child, and wait for the word that the kernel clears when that ends",
		Unpredictable: "which word the kernel clears is known, but not who waits for it: futexes are hashed by address",
		Outcome:       "every router wakes",
		build:         buildClearTID,
	},
}

// needCall tries a system call that returns a descriptor.
func needCall(what string, number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	fd, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return unix.Close(int(fd))
}

// ioctls and structures of linux/userfaultfd.h.
const (
	uffdAPI          = 0xaa
	uffdioAPI        = 0xc018aa3f
	uffdioRegister   = 0xc020aa00
	uffdModeMissing  = 1
	uffdioStart      = scratchStruct // of struct uffdio_register
	uffdioLength     = scratchStruct + 8
	uffdioMode       = scratchStruct + 16
	uffdioAPIVersion = scratchStruct // of struct uffdio_api
)

func buildUserfault(b *builder, n int) {
	page := unix.Getpagesize()
	b.trees(n, &node{
		role: "faulting", wakes: dies("handler"),
		open: func() {
			scratch := imm(b.scratch)
			b.must(regIn, unix.SYS_USERFAULTFD, imm(unix.O_CLOEXEC))
			b.store64(scratch, uffdioAPIVersion, imm(uffdAPI))
			b.must(regTemp, unix.SYS_IOCTL, reg(regIn), imm(uffdioAPI), imm(b.scratch+uffdioAPIVersion))
			b.must(regPtr, unix.SYS_MMAP, imm(0), imm(page), imm(unix.PROT_READ|unix.PROT_WRITE),
				imm(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS), imm(^uintptr(0)), imm(0))
			b.store64(scratch, uffdioStart, reg(regPtr))
			b.store64(scratch, uffdioLength, imm(page))
			b.store64(scratch, uffdioMode, imm(uffdModeMissing))
			b.must(regTemp, unix.SYS_IOCTL, reg(regIn), imm(uffdioRegister), imm(b.scratch+uffdioStart))
		},
		shut:     func() { b.closeFD(regIn) },
		wait:     func() { b.block(unix.SYS_SYSINFO, reg(regPtr)) },
		children: []*node{{comm: Target, role: "handler"}},
	})
}

const seccompNewListener = 8 // SECCOMP_FILTER_FLAG_NEW_LISTENER

func needSeccomp() error {
	// EFAULT says that the flag is known.
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_MODE_FILTER-1, seccompNewListener, 0)
	if errno != unix.EFAULT {
		return fmt.Errorf("seccomp listener: %w (Linux 5.0 or later with CONFIG_SECCOMP_FILTER)", errno)
	}
	return nil
}

// needSeccompHangup asks for a kernel that lets a filter go when its last task
// exits, not when it is reaped: v6.11, bfafe5efa975.
func needSeccompHangup() error {
	if os.Geteuid() != 0 {
		return errors.New("another process's seccomp listener: needs root")
	}
	if err := needLinux(6, 11, "a seccomp listener that hangs up at an exit"); err != nil {
		return err
	}
	return needSeccomp()
}

// seccompListener has a supervisor decide about getppid from now on.
func (b *builder) seccompListener(fd int) {
	instruction := func(code uint16, jt, jf byte, k uint32) []byte {
		i := append(shorts(code), jt, jf)
		return binary.NativeEndian.AppendUint32(i, k)
	}
	const load, jumpEqual, ret, notify, allow = 0x20, 0x15, 0x06, 0x7fc00000, 0x7fff0000
	filter := instruction(load, 0, 0, 0)
	filter = append(filter, instruction(jumpEqual, 0, 1, unix.SYS_GETPPID)...)
	filter = append(filter, instruction(ret, 0, 0, notify)...)
	filter = append(filter, instruction(ret, 0, 0, allow)...)
	program := binary.NativeEndian.AppendUint64(shorts(uint16(len(filter)/8), 0, 0, 0), uint64(b.constant(filter)))
	b.must(regTemp, unix.SYS_PRCTL, imm(unix.PR_SET_NO_NEW_PRIVS), imm(1), imm(0), imm(0), imm(0))
	b.must(fd, unix.SYS_SECCOMP, imm(unix.SECCOMP_MODE_FILTER-1), imm(seccompNewListener), imm(b.constant(program)))
}

func buildSeccompSupervisor(b *builder, n int) {
	b.trees(n, &node{
		role: "supervised", wakes: dies("supervisor"),
		open:     func() { b.seccompListener(regIn) },
		shut:     func() { b.closeFD(regIn) },
		wait:     func() { b.block(unix.SYS_GETPPID) },
		children: []*node{{comm: Target, role: "supervisor"}},
	})
}

// listenerFD is where a supervised server keeps its listener.
const listenerFD = 100

func buildSeccompSupervised(b *builder, n int) {
	b.trees(n, &node{
		comm: Target, role: "supervised",
		wait: func() {
			b.seccompListener(regIn)
			b.must(regTemp, unix.SYS_DUP3, reg(regIn), imm(listenerFD), imm(unix.O_CLOEXEC))
			b.closeFD(regIn)
			b.accept()
		},
		children: []*node{{
			role: "supervisor", wakes: dies("supervised"), after: "supervised",
			wait: func() {
				b.must(regPID, unix.SYS_GETPPID)
				b.must(regFD, unix.SYS_PIDFD_OPEN, reg(regPID), imm(0))
				b.must(regIn, unix.SYS_PIDFD_GETFD, reg(regFD), imm(listenerFD), imm(0))
				b.closeFD(regFD)
				b.poll(regIn)
			},
		}},
	})
}

func needFanotify() error {
	return needCall("fanotify (root, and CONFIG_FANOTIFY_ACCESS_PERMISSIONS)", unix.SYS_FANOTIFY_INIT,
		unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)
}

// permitted is how many routers wait for one server: there may be few fanotify
// groups (fs.fanotify.max_user_groups).
const permitted = 4

func buildFanotify(b *builder, n int) {
	tree := func(routers int) *node {
		return &node{
			comm: Target, role: "server",
			open: b.makeLockFile,
			wait: func() {
				b.must(regIn, unix.SYS_FANOTIFY_INIT, imm(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC), imm(unix.O_RDONLY))
				b.mark(0, unix.FAN_OPEN_PERM, lockPath)
				b.accept()
			},
			children: []*node{{
				role: "opener", times: routers, wakes: dies("server"), after: "server",
				wait: func() {
					b.state = 'D' // killable
					b.block(unix.SYS_OPENAT, b.anew(unix.O_RDONLY)...)
				},
			}},
		}
	}
	if n >= permitted {
		b.trees(n/permitted, tree(permitted))
	}
	if rest := n % permitted; rest > 0 {
		b.trees(1, tree(rest))
	}
}

// perfAttributes are those of the event that counts nothing: struct
// perf_event_attr in its first version.
func perfAttributes(flags byte) []byte {
	const software, size, dummy, flagsAt = 1, 64, 9, 40
	attributes := append(words(software, size, dummy, 0), make([]byte, size-16)...)
	attributes[flagsAt] = flags
	return attributes
}

const perfInherit = 1 << 1 // perf_event_attr.inherit, on little-endian machines

func needPerf() error {
	fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Size: unix.PERF_ATTR_SIZE_VER0, Config: unix.PERF_COUNT_SW_DUMMY,
	}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("perf_event_open: %w (root, and CONFIG_PERF_EVENTS)", err)
	}
	return unix.Close(fd)
}

const perfSetOutput = 0x2405 // PERF_EVENT_IOC_SET_OUTPUT

func buildPerf(b *builder, n int) {
	none := imm(^uintptr(0))
	plain, inherited := imm(b.constant(perfAttributes(0))), imm(b.constant(perfAttributes(perfInherit)))
	measure := func(fd int, attributes, pid, cpu arg) {
		b.must(fd, unix.SYS_PERF_EVENT_OPEN, attributes, pid, cpu, none, imm(unix.PERF_FLAG_FD_CLOEXEC))
	}
	// Without a buffer there is nothing to wait for.
	buffer := func(fd int) {
		b.must(regPtr, unix.SYS_MMAP, imm(0), imm(2*unix.Getpagesize()), imm(unix.PROT_READ|unix.PROT_WRITE),
			imm(unix.MAP_SHARED), reg(fd), imm(0))
	}
	server := func(poller *node) *node {
		return &node{comm: Target, role: "server", children: []*node{poller}}
	}
	b.trees(n, server(&node{
		role: "poller", wakes: dies("server"),
		wait: func() {
			b.must(regPID, unix.SYS_GETPPID)
			measure(regIn, plain, reg(regPID), none)
			buffer(regIn)
			b.poll(regIn)
		},
	}), server(&node{
		// It polls an event of its own, to whose buffer the server's writes.
		role: "sharer", wakes: stirs("server"),
		wait: func() {
			b.must(regPID, unix.SYS_GETPPID)
			measure(regIn, plain, imm(0), imm(0))
			buffer(regIn)
			measure(regOut, plain, reg(regPID), imm(0))
			b.must(regTemp, unix.SYS_IOCTL, reg(regOut), imm(perfSetOutput), reg(regIn))
			b.poll(regIn)
		},
	}), &node{
		// It polls an event of its own, which the server has inherited.
		role: "ancestor", wakes: stirs("server"),
		open: func() { measure(regIn, inherited, imm(0), imm(0)); buffer(regIn) },
		wait: func() { b.poll(regIn) },
		children: []*node{{
			comm: Target, role: "server",
			open: func() { b.closeFD(regIn) },
		}},
	})
}

func buildClearTID(b *builder, n int) {
	const word = scratchStruct
	b.trees(n, &node{
		role: "joining", wakes: dies("joined"),
		open: func() { b.store(imm(b.scratch), word, imm(1)) },
		wait: func() { b.block(unix.SYS_FUTEX, imm(b.scratch+word), imm(futexWait), imm(1), imm(0)) },
		children: []*node{{
			comm: Target, role: "joined", shares: true,
			wait: func() {
				b.must(regTemp, unix.SYS_SET_TID_ADDRESS, imm(b.scratch+word))
				b.accept()
			},
		}},
	})
}
