package storm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var ptraceTopologies = []Topology{
	{
		Name: "ptrace-tracer", Unit: "tracers", Channel: "signal", regroups: true,
		Summary: "servers that trace a router child: stopped at a signal, stopped at SIGSTOP, asleep, or to be killed with the tracer",
		Outcome: "who stopped at a signal wakes and gets it, who stopped at SIGSTOP wakes and stops, who sleeps sleeps on, and the last dies",
		needs:   needPtrace,
		build:   buildPtraceTracer,
	}, {
		Name: "ptrace-tracee", Unit: "servers", Channel: "child",
		Summary: "servers that are traced by a router, which is no parent of theirs and waits for them in wait4, or catches SIGCHLD; or of which it traces a second thread only; or whose parent, a router, waits too",
		Outcome: "every tracer wakes, and the parent that waits: it is told when the tracer reaps",
		needs:   needPtrace,
		build:   buildPtraceTracee,
	}, {
		Name: "ptrace-pipe", Unit: "servers", Channel: "pipe",
		Summary: "servers that read from a router child, which is blocked in a write and traced by one of its own that waits for it",
		Outcome: "every writer stops at SIGPIPE, and its tracer wakes",
		needs:   needPtrace,
		build:   buildPtracePipe,
	},
}

// needPtrace asks Yama, which lets a process trace its descendants only.
func needPtrace() error {
	text, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	scope := strings.TrimSpace(string(text))
	if scope == "3" || (scope != "0" && os.Geteuid() != 0) {
		return fmt.Errorf("ptrace: kernel.yama.ptrace_scope is %s: %w", scope, unix.EPERM)
	}
	return nil
}

func buildPtraceTracer(b *builder, n int) {
	server := func(tracee *node) *node {
		return &node{comm: Target, role: "server", children: []*node{tracee}}
	}
	seizing := func(options int, tracee *node) *node {
		s := server(tracee)
		s.shut = func() {
			b.pidOf(regPID, 1)
			b.must(regTemp, unix.SYS_PTRACE, imm(unix.PTRACE_SEIZE), reg(regPID), imm(0), imm(options))
		}
		return s
	}
	b.trees(n,
		server(&node{role: "at a signal", wakes: dies("server"), wait: func() {
			b.catch(unix.SIGUSR1, 0)
			b.stopTraced(unix.SIGUSR1)
		}}),
		server(&node{
			role: "at SIGSTOP", wakes: stirs("server"),
			// In a session of its own: a stopped member of the storm's group would
			// bring SIGHUP on all of it when the last of its parents dies.
			open: func() { b.must(regTemp, unix.SYS_SETSID) },
			wait: func() { b.stopTraced(unix.SIGSTOP) },
		}),
		seizing(0, &node{role: "asleep", wait: b.pause}),
		seizing(unix.PTRACE_O_EXITKILL, &node{
			role: "deadly", wakes: diesOf("server"), wait: b.pause,
		}),
	)
}

// traceAndWait traces the thread in regPID, which goes on, and waits for it.
func (b *builder) traceAndWait() {
	b.must(regTemp, unix.SYS_PTRACE, imm(unix.PTRACE_SEIZE), reg(regPID), imm(0), imm(0))
	b.block(unix.SYS_WAIT4, reg(regPID), imm(0), imm(unix.WALL), imm(0))
}

// stopTraced has the process traced by its parent, and stopped at a signal that
// it sends itself.
func (b *builder) stopTraced(sig unix.Signal) {
	b.state = 't'
	b.must(regTemp, unix.SYS_PTRACE, imm(unix.PTRACE_TRACEME), imm(0), imm(0), imm(0))
	b.must(regPID, unix.SYS_GETPID)
	b.block(unix.SYS_KILL, reg(regPID), imm(int(sig)))
}

func buildPtracePipe(b *builder, n int) {
	b.trees(n, &node{
		comm: Target, role: "server",
		open: func() { b.pipe(regIn, regOut) },
		shut: func() { b.closeFD(regOut) },
		children: []*node{{
			role: "writer",
			wakes: []when{
				{deaths: []string{"server"}, effect: Stirs},
				{deaths: []string{"server", "tracer"}, effect: Dies},
			},
			open: func() { b.closeFD(regIn) },
			wait: func() { b.writeToFull(regOut) },
			children: []*node{{
				role: "tracer", wakes: anyDies("server", "writer"), after: "writer",
				open: func() { b.closeFD(regOut) },
				wait: func() { b.must(regPID, unix.SYS_GETPPID); b.traceAndWait() },
			}},
		}},
	})
}

func buildPtraceTracee(b *builder, n int) {
	tracer := func(role string, wait func()) *node {
		return &node{
			comm: Target, role: "server",
			children: []*node{{
				role: role, wakes: dies("server"),
				wait: func() {
					b.must(regPID, unix.SYS_GETPPID)
					b.must(regTemp, unix.SYS_PTRACE, imm(unix.PTRACE_SEIZE), reg(regPID), imm(0), imm(0))
					wait()
				},
			}},
		}
	}
	b.trees(n,
		tracer("waiting", func() { b.wait4(imm(^uintptr(0))) }),
		tracer("catching", func() { b.catch(unix.SIGCHLD, 0); b.pause() }),
		&node{
			comm: Target, role: "server",
			children: []*node{{
				role: "waiting for a thread", wakes: dies("server"), thread: true,
				wait: b.traceAndWait,
			}},
		},
		&node{
			role: "waiting parent", wakes: dies("its server"),
			wait: func() { b.pidOf(regPID, 1); b.wait4(reg(regPID)) },
			children: []*node{
				{comm: Target, role: "its server"},
				{role: "waiting for a sibling", wakes: dies("its server"), wait: func() { b.pidOf(regPID, 1); b.traceAndWait() }},
			},
		},
	)
}
