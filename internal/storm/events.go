package storm

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

var eventTopologies = []Topology{
	{
		Name: "eventfd", Unit: "servers", Channel: "other", Quiet: true,
		Summary: "servers that share an eventfd with a router child, which waits in read, ppoll or epoll_pwait",
		Outcome: "nobody wakes: the other holders of an eventfd are nothing to it",
		build: func(b *builder, n int) {
			b.trees(n, b.sharers(func() { b.must(regIn, unix.SYS_EVENTFD2, imm(0), imm(unix.EFD_CLOEXEC)) })...)
		},
	}, {
		Name: "timerfd", Unit: "servers", Channel: "other", Quiet: true,
		Summary: "the same with a timerfd that is not set",
		Outcome: "nobody wakes",
		build: func(b *builder, n int) {
			b.trees(n, b.sharers(func() {
				b.must(regIn, unix.SYS_TIMERFD_CREATE, imm(unix.CLOCK_MONOTONIC), imm(unix.TFD_CLOEXEC))
			})...)
		},
	}, {
		Name: "inotify", Unit: "servers", Channel: "other",
		Summary: "routers that watch for a file being closed, in read, ppoll or epoll_pwait, each with smtpserver children (four, or a few more) that have it open",
		Outcome: "every router wakes: dying closes files",
		build: func(b *builder, n int) {
			b.watchers(n, b.makeLockFile, func() { b.inotifyOn(lockPath, unix.IN_CLOSE) })
		},
	}, {
		Name: "inotify-directory", Unit: "servers", Channel: "other",
		Summary: "the same, with the file's directory watched, on a file system of their own",
		Outcome: "every router wakes",
		needs:   needRoot("to mount a file system"),
		build: func(b *builder, n int) {
			b.watchers(n, b.makeNamedFile, func() { b.inotifyOn(ownMount, unix.IN_CLOSE) })
		},
	}, {
		Name: "inotify-mapped", Unit: "servers", Channel: "other",
		Summary:       "the same, with a file that the smtpservers have mapped, and open no longer",
		Outcome:       "every router wakes: with its last mapping a file is closed",
		Unpredictable: "mappings are looked at only of files that are in descriptor tables as well",
		build: func(b *builder, n int) {
			b.watchersOf(n, b.mapOnly, anyDies, b.makeLockFile, func() { b.inotifyOn(lockPath, unix.IN_CLOSE) })
		},
	}, {
		Name: "inotify-unlinked", Unit: "servers", Channel: "other",
		Summary:       "routers that watch a file without a name, in read, ppoll or epoll_pwait, each with smtpserver children (four, or a few more) that alone have it open",
		Outcome:       "every router wakes: with its last holder the file goes, and the watch",
		Unpredictable: "who holds a file that has no name any more is not counted",
		build: func(b *builder, n int) {
			b.watchersOf(n, b.reopenLockFile, dies, b.makeLockFile, func() {
				b.inotifyOn(lockPath, unix.IN_DELETE_SELF)
				b.must(regTemp, unix.SYS_CLOSE, imm(lockFile))
			})
		},
	}, {
		Name: "fanotify-close", Unit: "servers", Channel: "other",
		Summary: "the same with fanotify",
		Outcome: "every router wakes",
		needs:   needFanotify,
		build: func(b *builder, n int) {
			b.watchers(n, b.makeLockFile, func() { b.fanotifyOn(0, lockPath) })
		},
	}, {
		Name: "fanotify-mount", Unit: "servers", Channel: "other",
		Summary: "the same, with the file's mount watched, or its file system",
		Outcome: "every router wakes",
		needs:   needFanotify,
		build: func(b *builder, n int) {
			b.watchers(n, b.makeNamedFile,
				func() { b.fanotifyOn(unix.FAN_MARK_MOUNT, ownMount) },
				func() { b.fanotifyOn(unix.FAN_MARK_FILESYSTEM, ownMount) })
		},
	}, {
		Name: "signalfd-inherited", Unit: "servers", Channel: "signal", Uncharged: true,
		Summary:       "servers with a signalfd in an epoll instance, each with a router child that waits on the instance",
		Unpredictable: "it is who sends the signal, and who reaps, that wakes",
		Outcome:       "every router is woken, finds no signal of its own, and sleeps on",
		build:         buildSignalfdInherited,
	}, {
		Name: "tap", Unit: "servers", Channel: "other",
		Summary:       "servers with a tap in a network namespace of their own, each with a router child that listens to rtnetlink there",
		Unpredictable: "network devices are not read",
		Outcome:       "every router wakes: the device is gone",
		needs:         needTap,
		build:         buildTap,
	}, {
		Name: "sigio", Unit: "servers", Channel: "signal",
		Summary:       "servers, each with a router child that asked for SIGIO at the other end of a pipe, a socket pair or a TCP connection, and sleeps in something else",
		Unpredictable: "the lists of files with O_ASYNC are not read",
		Outcome:       "every router's handler is called",
		build:         buildSigio,
	},
}

// sharers are trees of a server and a child that waits in read, ppoll or
// epoll_pwait on a descriptor that both have, and does not wake.
func (b *builder) sharers(open func()) []*node {
	var kinds []*node
	for _, w := range b.receiving(regIn) {
		kinds = append(kinds, &node{
			comm: Target, role: "server", open: open,
			children: []*node{{role: w.role, wait: w.wait}},
		})
	}
	return kinds
}

// watchedBy is how many of n servers one router watches: there may be few instances
// (fs.inotify.max_user_instances, fs.fanotify.max_user_groups).
func watchedBy(n int) int {
	const least, routers = 4, 40
	return max(least, (n+routers-1)/routers)
}

// watchers are n servers that have a file open, which file makes, and those who watch for
// its being closed: each of watch has whoever calls it be told, in regIn.
func (b *builder) watchers(n int, file func(), watch ...func()) {
	b.watchersOf(n, b.reopenLockFile, anyDies, file, watch...)
}

// watchersOf are watchers of other things: hold is how a server holds the file, and wakes
// are the deaths that matter.
func (b *builder) watchersOf(n int, hold func(), wakes func(roles ...string) []when, file func(), watch ...func()) {
	kinds := func(servers int) (all []*node) {
		for _, w := range watch {
			all = append(all, b.watching(servers, hold, wakes, file, w)...)
		}
		return all
	}
	watched := watchedBy(n)
	b.trees(n/watched, kinds(watched)...)
	if rest := n % watched; rest > 0 {
		b.trees(1, kinds(rest)[2])
	}
}

// watching are trees of a router and n servers.
func (b *builder) watching(n int, hold func(), wakes func(roles ...string) []when, file, watch func()) []*node {
	var kinds []*node
	for _, w := range b.receiving(regIn) {
		watcher := &node{
			role: w.role, open: file,
			wait: func() { watch(); w.wait() },
		}
		var roles []string
		for i := range n {
			role := fmt.Sprintf("server %d", i)
			watcher.children = append(watcher.children, &node{comm: Target, role: role, open: hold})
			roles = append(roles, role)
		}
		watcher.wakes = wakes(roles...)
		kinds = append(kinds, watcher)
	}
	return kinds
}

// ownMount is where makeNamedFile mounts a file system, in a mount namespace of its own.
const ownMount = "/tmp"

// makeNamedFile makes the file at lockPath one of a directory, a mount and a file system
// that nobody else uses.
func (b *builder) makeNamedFile() {
	b.must(regTemp, unix.SYS_UNSHARE, imm(unix.CLONE_NEWNS))
	b.must(regTemp, unix.SYS_MOUNT, imm(0), imm(b.comm("/")), imm(0), imm(unix.MS_REC|unix.MS_PRIVATE), imm(0))
	b.must(regTemp, unix.SYS_MOUNT, imm(0), imm(b.comm(ownMount)), imm(b.comm("tmpfs")), imm(0), imm(0))
	b.must(regFD, unix.SYS_OPENAT, imm(unix.AT_FDCWD), imm(b.comm(ownMount+"/spool")),
		imm(unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC), imm(0o600))
	b.lockFileIs(regFD)
}

func (b *builder) inotifyOn(path string, events int) {
	b.must(regIn, unix.SYS_INOTIFY_INIT1, imm(unix.IN_CLOEXEC))
	b.must(regTemp, unix.SYS_INOTIFY_ADD_WATCH, reg(regIn), imm(b.comm(path)), imm(events))
}

// mapOnly has the process map a file of its own, and close it.
func (b *builder) mapOnly() {
	b.reopenLockFile()
	b.mapLockFile()
	b.must(regTemp, unix.SYS_CLOSE, imm(lockFile))
}

// fanotifyOn makes a group that is told when files are closed at path, or all on its
// mount or file system.
func (b *builder) fanotifyOn(mark uintptr, path string) {
	b.must(regIn, unix.SYS_FANOTIFY_INIT, imm(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC), imm(unix.O_RDONLY))
	b.mark(mark, unix.FAN_CLOSE, path)
}

// mark has the fanotify group in regIn be told of events at path.
func (b *builder) mark(mark, events uintptr, path string) {
	b.must(regTemp, unix.SYS_FANOTIFY_MARK, reg(regIn), imm(unix.FAN_MARK_ADD|mark), imm(events), imm(unix.AT_FDCWD), imm(b.comm(path)))
}

func buildSigio(b *builder, n int) {
	asked := func() {
		b.catch(unix.SIGIO, 0)
		b.must(regPID, unix.SYS_GETPID)
		b.must(regTemp, unix.SYS_FCNTL, reg(regIn), imm(unix.F_SETOWN), reg(regPID))
		b.must(regTemp, unix.SYS_FCNTL, reg(regIn), imm(unix.F_SETFL), imm(unix.O_ASYNC))
		b.pause()
	}
	pipe := func() { b.pipe(regIn, regOut) }
	pair := func() { b.socketPair(regIn, regOut, unix.SOCK_STREAM) }
	connection := func() { b.tcpPair(loopback4) }
	kinds := b.pairs(pipe, dies("server"), way{"of a pipe", asked})
	kinds = append(kinds, b.pairs(pair, dies("server"), way{"of a socket pair", asked})...)
	b.trees(n, append(kinds, b.pairs(connection, dies("server"), way{"of a TCP connection", asked})...)...)
}

func buildSignalfdInherited(b *builder, n int) {
	b.trees(n, &node{
		comm: Target, role: "server",
		open: func() { b.signalFD(regIn, unix.SIGUSR1); b.epollInstance(regFD, regIn, unix.EPOLLIN) },
		children: []*node{{
			role: "router", wakes: stirs("server"),
			wait: func() { b.epollWait(regFD) },
		}},
	})
}

const tapDevice = "/dev/net/tun"

func needTap() error {
	if err := needRoot("to have a network namespace")(); err != nil {
		return err
	}
	fd, err := unix.Open(tapDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w (CONFIG_TUN)", tapDevice, err)
	}
	return unix.Close(fd)
}

func buildTap(b *builder, n int) {
	const links = 1                   // RTMGRP_LINK
	request := make([]byte, 40)       // struct ifreq
	copy(request, "storm")            // ifr_name
	request[16] = unix.IFF_TAP        // ifr_flags
	request[17] = unix.IFF_NO_PI >> 8 // on little-endian machines
	b.trees(n, &node{
		comm: Target, role: "server",
		open: func() {
			b.must(regTemp, unix.SYS_UNSHARE, imm(unix.CLONE_NEWNET))
			b.must(regOut, unix.SYS_OPENAT, imm(unix.AT_FDCWD), imm(b.comm(tapDevice)), imm(unix.O_RDWR|unix.O_CLOEXEC), imm(0))
			for at := 0; at < len(request); at += 8 {
				b.store64(imm(b.scratch+scratchStruct), at, imm(uintptr(binary.NativeEndian.Uint64(request[at:]))))
			}
			b.must(regTemp, unix.SYS_IOCTL, reg(regOut), imm(unix.TUNSETIFF), imm(b.scratch+scratchStruct))
		},
		children: []*node{{
			role: "listener", wakes: dies("server"),
			open: func() {
				b.closeFD(regOut)
				b.socket(regIn, unix.AF_NETLINK, unix.SOCK_RAW)
				address := append(shorts(unix.AF_NETLINK, 0), words(0, links)...)
				b.must(regTemp, unix.SYS_BIND, reg(regIn), imm(b.constant(address)), imm(len(address)))
			},
			wait: func() { b.read(regIn) },
		}},
	})
}
