package waitgraph

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
)

// family is three processes, each the child of the one before, in one session
// and one process group; the first is the init of the namespace. Nobody waits
// for anything yet.
func family() *Snapshot {
	s := &Snapshot{Processes: people(3)}
	for p := range s.Processes {
		s.Processes[p].PGID, s.Processes[p].SID = 100, 100
		s.Kin = append(s.Kin, Kin{Parent: int32(p - 1), Tracer: -1, VforkCaller: -1, ExitSignal: sigCHLD, ExitQueue: -1, SignalQueue: -1})
	}
	s.Processes[0].NamespaceInit = true
	return s
}

// catches makes a process one that SIGCHLD, say, interrupts.
func catches(s *Snapshot, p int, sig int32) {
	s.Processes[p].SIGCHLD = SignalCaught
	s.Processes[p].Accepted = s.Processes[p].Accepted.With(sig)
	s.Processes[p].Interruptible = s.Processes[p].Interruptible.With(sig)
}

// sleepsOn puts a process on a new object that is nothing but a queue.
func sleepsOn(s *Snapshot, p int32) int32 {
	s.Objects = append(s.Objects, Object{})
	o := int32(len(s.Objects) - 1)
	s.Sleepers = append(s.Sleepers, Sleeper{Object: o, Process: p, File: -1})
	return o
}

func waitsFor(s *Snapshot, w ChildWait) { s.ChildWaits = append(s.ChildWaits, w) }

// say writes sources as "channel: holders -> waiters[, which die][, relayed]", sorted.
func say(sources []Source) []string {
	out := []string{}
	for _, src := range sources {
		line := fmt.Sprintf("%v: %v -> %v", src.Channel, src.Holders, src.Waiters)
		if src.Deadly {
			line += ", which die"
		}
		if src.Relayed {
			line += ", relayed"
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// TestExits has one row for each rule of who is told of an exit.
func TestExits(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Snapshot)
		want   []string
	}{
		{"nobody waits", func(*Snapshot) {}, nil},
		{"wait for any child", func(s *Snapshot) { waitsFor(s, ChildWait{Process: 1, Child: -1}) },
			[]string{"child: [2] -> [1]"}},
		{"wait for that child", func(s *Snapshot) { waitsFor(s, ChildWait{Process: 1, Child: 2}) },
			[]string{"child: [2] -> [1]"}},
		{"wait for another child", func(s *Snapshot) { waitsFor(s, ChildWait{Process: 1, Child: 0}) }, nil},
		{"wait for the group", func(s *Snapshot) { waitsFor(s, ChildWait{Process: 1, Child: -1, PGID: 100}) },
			[]string{"child: [2] -> [1]"}},
		{"wait for another group", func(s *Snapshot) { waitsFor(s, ChildWait{Process: 1, Child: -1, PGID: 7}) }, nil},
		{"SIGCHLD is caught", func(s *Snapshot) { catches(s, 1, sigCHLD) }, []string{"child: [2] -> [1]"}},
		{"SIGCHLD is caught by one that runs", func(s *Snapshot) {
			s.Processes[1].SIGCHLD = SignalCaught
			s.Processes[1].Accepted = s.Processes[1].Accepted.With(sigCHLD)
		}, nil},
		{"SIGCHLD is ignored", func(s *Snapshot) {
			catches(s, 1, sigCHLD)
			s.Processes[1].SIGCHLD = SignalIgnored
		}, nil},
		{"another signal than SIGCHLD is sent", func(s *Snapshot) {
			catches(s, 1, sigCHLD)
			s.Kin[2].ExitSignal = sigHUP
		}, nil},
		{"SIGCHLD is blocked, and read through signalfd", func(s *Snapshot) {
			s.Processes[1].Accepted = s.Processes[1].Accepted.With(sigCHLD)
			s.Kin[1].SignalQueue = sleepsOn(s, 1)
		}, []string{"child: [2] -> [1]"}},
		{"signalfd where the signal is ignored by default", func(s *Snapshot) {
			s.Kin[1].SignalQueue = sleepsOn(s, 1)
		}, nil},
		{"init adopts", func(s *Snapshot) { catches(s, 0, sigCHLD) },
			[]string{"child: [1 2] -> [0]", "child: [1] -> [0]"}},
		{"a subreaper adopts before init does", func(s *Snapshot) {
			s.Processes = append(s.Processes, people(4)[3])
			s.Processes[3].PGID, s.Processes[3].SID = 100, 100
			s.Kin = append(s.Kin, Kin{Parent: 2, Tracer: -1, VforkCaller: -1, ExitSignal: sigCHLD, ExitQueue: -1, SignalQueue: -1})
			s.Kin[1].Subreaper = true
			catches(s, 0, sigCHLD)
			catches(s, 1, sigCHLD)
		}, []string{"child: [1 2 3] -> [0]", "child: [1 2] -> [0]", "child: [1] -> [0]", "child: [2 3] -> [1]", "child: [2] -> [1]"}},
		{"a zombie is told of again when its parent goes", func(s *Snapshot) {
			zombie(s, 2)
			catches(s, 0, sigCHLD)
		}, []string{"child: [1] -> [0]", "child: [1] -> [0]"}},
		{"the tracer is told, and the parent once the tracer is gone", func(s *Snapshot) {
			s.Kin[2].Tracer = 0
			catches(s, 0, sigCHLD)
			catches(s, 1, sigCHLD)
			s.Processes[0].AnyThread = s.Processes[0].Signals
		}, []string{"child: [0 2] -> [1]", "child: [1] -> [0]", "child: [2] -> [0]"}},
		{"the tracer reaps, and that tells the parent", func(s *Snapshot) {
			s.Kin[2].Tracer = 0
			catches(s, 1, sigCHLD)
			waitsFor(s, ChildWait{Process: 0, Child: 2})
		}, []string{"child: [1 2] -> [0]", "child: [2] -> [0]", "child: [2] -> [1], relayed"}},
		{"the tracer looks, and does not reap", func(s *Snapshot) {
			s.Kin[2].Tracer = 0
			catches(s, 1, sigCHLD)
			waitsFor(s, ChildWait{Process: 0, Child: 2, Keeps: true})
		}, []string{"child: [0 2] -> [1]", "child: [2] -> [0]"}},
		{"a tracer that does not care for stops is told of an exit", func(s *Snapshot) {
			s.Kin[2].Tracer = 0
			catches(s, 0, sigCHLD)
			s.Kin[0].NoChildStops = true
			s.Processes[0].AnyThread = s.Processes[0].Signals
		}, []string{"child: [1] -> [0]", "child: [2] -> [0]"}},
		{"a zombie whose tracer has not reaped it: the parent is told when that goes", func(s *Snapshot) {
			zombie(s, 2)
			s.Kin[2].Tracer = 0
			catches(s, 1, sigCHLD)
		}, []string{"child: [0] -> [1]"}},
		{"a stopped tracee is let go", func(s *Snapshot) {
			s.Kin[2].Tracer = 1
			s.Processes[2].State = 't'
		}, []string{"signal: [1] -> [2]"}},
		{"a tracee that runs is not", func(s *Snapshot) { s.Kin[2].Tracer = 1 }, nil},
		{"a tracee dies with its tracer", func(s *Snapshot) { s.Kin[2].Tracer, s.Kin[2].KilledByTracer = 1, true },
			[]string{"signal: [1] -> [2], which die"}},
		{"pidfd", func(s *Snapshot) { s.Kin[2].ExitQueue = sleepsOn(s, 0) }, []string{"pidfd: [2] -> [0]"}},
		{"who asked to die with its parent is the init of others", func(s *Snapshot) {
			s.Processes[1].NamespaceInit, s.Kin[1].Namespace, s.Kin[2].Namespace = true, 1, 1
			s.Processes[1].ParentDeathSignal = sigKILL
			s.Processes[1].Deadly = s.Processes[1].Deadly.With(sigKILL)
		}, []string{"parent-death: [0] -> [1], which die", "parent-death: [1] -> [2], which die"}},
		{"vfork", func(s *Snapshot) {
			s.Kin[2].VforkCaller = 1
			s.Processes[1].State = 'D'
		}, []string{"child: [2] -> [1]"}},
		{"parent-death signal", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal = 15
			catches(s, 2, 15)
		}, []string{"parent-death: [1] -> [2]"}},
		{"parent-death signal of a parent that may not send it", func(s *Snapshot) {
			s.Processes[1].UID, s.Processes[1].EUID = 7, 7
			s.Processes[2].ParentDeathSignal = 15
			catches(s, 2, 15)
		}, nil},
		{"parent-death signal of a parent with another user and CAP_KILL", func(s *Snapshot) {
			s.Processes[1].UID, s.Processes[1].EUID, s.Processes[1].CapKill = 7, 7, true
			s.Processes[2].ParentDeathSignal = 15
			catches(s, 2, 15)
		}, []string{"parent-death: [1] -> [2]"}},
		{"parent-death signal that ends", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal = 15
			s.Processes[2].Deadly = s.Processes[2].Deadly.With(15)
		}, []string{"parent-death: [1] -> [2], which die"}},
		{"parent-death signal that would end one who is stopped", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal, s.Processes[2].Stopped = 15, true
			s.Processes[2].Accepted = s.Processes[2].Accepted.With(15)
			s.Processes[2].Deadly = s.Processes[2].Deadly.With(15)
		}, nil},
		{"SIGKILL at the parent's death ends who is stopped, too", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal, s.Processes[2].Stopped = sigKILL, true
			s.Processes[2].Deadly = s.Processes[2].Deadly.With(sigKILL)
		}, []string{"parent-death: [1] -> [2], which die"}},
		{"SIGCONT at the parent's death: who adopts is told", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal, s.Processes[2].Stopped = sigCONT, true
			waitsFor(s, ChildWait{Process: 0, Child: 2})
		}, []string{"child: [1 2] -> [0]", "child: [1] -> [0], relayed", "parent-death: [1] -> [2]"}},
		{"SIGSTOP at the parent's death: who adopts hears of it, but not with SA_NOCLDSTOP", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal = 19
			catches(s, 2, 19)
			s.Processes[2].Stopping = s.Processes[2].Stopping.With(19)
			s.Kin[0].NoChildStops = true
			s.Processes[0].AnyThread = s.Processes[0].Signals
		}, []string{"parent-death: [1] -> [2]"}},
		{"parent-death signal of a traced process: its tracer is told", func(s *Snapshot) {
			s.Kin[2].Tracer = 0
			s.Processes[2].ParentDeathSignal = 15
			catches(s, 2, 15)
			s.Processes[2].Trapped = s.Processes[2].Trapped.With(15)
			waitsFor(s, ChildWait{Process: 0, Child: -1})
		}, []string{"child: [1 2] -> [0]", "child: [1] -> [0]", "child: [1] -> [0], relayed", "child: [2] -> [0]", "parent-death: [1] -> [2]"}},
		{"a traced writer stops at SIGPIPE", func(s *Snapshot) {
			s.Objects = []Object{{Channel: ChannelPipe, Readers: 1, Writers: 1}}
			s.Files = []File{{End: EndWrite, Refs: 1}, {End: EndRead, Refs: 1}}
			s.Descriptors = []Descriptor{open(1, 0, 1), open(2, 1, 0)}
			s.Sleepers = []Sleeper{writes(1)}
			s.Kin[1].Tracer = 0
			s.Processes[1].AnyThread.Trapped = SignalSet(0).With(sigPIPE)
			waitsFor(s, ChildWait{Process: 0, Child: 1})
		}, []string{"child: [1] -> [0]", "child: [2] -> [0], relayed", "pipe: [2] -> [1]"}},
		{"vfork with CLONE_PARENT: a sibling waits", func(s *Snapshot) {
			s.Kin[2].Parent, s.Kin[2].VforkCaller = 0, 1
			s.Processes[1].State = 'D'
		}, []string{"child: [2] -> [1]"}},
		{"parent-death signal of a thread", func(s *Snapshot) {
			th := Thread{Process: 2, Tracer: -1, ExitQueue: -1, ParentDeathSignal: 15}
			th.Signals.Accepted, th.Signals.Interruptible = th.Signals.Accepted.With(15), th.Signals.Interruptible.With(15)
			s.Threads = []Thread{th}
		}, []string{"parent-death: [1] -> [2]"}},
		{"a thread has a tracer of its own", func(s *Snapshot) {
			s.Threads = []Thread{{Process: 2, Tracer: 0, ExitQueue: -1}}
			waitsFor(s, ChildWait{Process: 0, Child: -1})
		}, []string{"child: [1 2] -> [0]", "child: [1] -> [0]", "child: [2] -> [0]"}},
		{"a thread that is stopped for its tracer is let go", func(s *Snapshot) {
			s.Threads = []Thread{{Process: 2, Tracer: 1, ExitQueue: -1, State: 't'}}
		}, []string{"signal: [1] -> [2]"}},
		{"pidfd of a thread", func(s *Snapshot) {
			s.Threads = []Thread{{Process: 2, Tracer: -1, ExitQueue: sleepsOn(s, 0)}}
		}, []string{"pidfd: [2] -> [0]"}},
		{"SIGCHLD to a thread of the parent", func(s *Snapshot) {
			s.Kin[2].OfThread = true
			s.Processes[1].AnyThread.Accepted = s.Processes[1].Accepted.With(sigCHLD)
			s.Processes[1].AnyThread.Interruptible = s.Processes[1].Interruptible.With(sigCHLD)
		}, []string{"child: [2] -> [1]"}},
		{"an exit signal that ends the parent", func(s *Snapshot) {
			s.Kin[2].ExitSignal = 15
			s.Processes[1].Deadly = s.Processes[1].Deadly.With(15)
		}, []string{"child: [2] -> [1], which die"}},
		{"parent-death signal, read through signalfd", func(s *Snapshot) {
			s.Processes[2].ParentDeathSignal = 15
			s.Processes[2].Accepted = s.Processes[2].Accepted.With(15)
			s.Kin[2].SignalQueue = sleepsOn(s, 0)
		}, []string{"parent-death: [1] -> [0]"}},
		{"parent-death signal, ignored", func(s *Snapshot) { s.Processes[2].ParentDeathSignal = 15 }, nil},
		{"session leader with a foreground group", func(s *Snapshot) {
			s.Kin[1].Foreground = 100
			catches(s, 2, sigHUP)
		}, []string{"pty: [1] -> [2]"}},
		{"stopped job: its shell goes", func(s *Snapshot) {
			s.Processes[0].SID = 1
			s.Processes[2].PGID, s.Processes[2].Stopped = 102, true
		}, []string{"signal: [1] -> [2]"}},
		{"stopped job: who adopts it is in the session as well", func(s *Snapshot) {
			s.Processes[2].PGID, s.Processes[2].Stopped = 102, true
		}, []string{"signal: [0 1] -> [2]"}},
		{"stopped job: the init of all adopts it", func(s *Snapshot) {
			s.Processes[0].KernelPID = 1
			s.Processes[2].PGID, s.Processes[2].Stopped = 102, true
		}, []string{"signal: [1] -> [2]"}},
		{"stopped job: who adopts it waits, and is told that it goes on", func(s *Snapshot) {
			s.Processes[0].SID = 1
			waitsFor(s, ChildWait{Process: 0, Child: 2})
			s.Processes[2].PGID, s.Processes[2].Stopped = 102, true
		}, []string{"child: [1 2] -> [0]", "child: [1] -> [0], relayed", "signal: [1] -> [2]"}},
		{"stopped job that dies of SIGHUP", func(s *Snapshot) {
			s.Processes[0].SID = 1
			s.Processes[2].PGID, s.Processes[2].Stopped = 102, true
			s.Processes[2].Deadly = s.Processes[2].Deadly.With(sigHUP)
		}, []string{"signal: [1] -> [2], which die"}},
		{"stopped job with two parents", func(s *Snapshot) {
			s.Processes[0].SID = 1
			more := people(5)[3:]
			s.Processes = append(s.Processes, more...)
			for p := 3; p < 5; p++ { // 1 is the parent of 2, 3 that of 4
				s.Kin = append(s.Kin, Kin{Parent: int32(p - 1), Tracer: -1, VforkCaller: -1, ExitSignal: sigCHLD, ExitQueue: -1, SignalQueue: -1})
				s.Processes[p].PGID, s.Processes[p].SID = 103, 100
			}
			s.Kin[3].Parent = 0
			s.Processes[2].PGID, s.Processes[2].Stopped, s.Processes[4].PGID = 102, true, 102
		}, []string{"signal: [1 3] -> [2]", "signal: [1 4] -> [2]"}},
		{"stopped job with a member whose parent is in it", func(s *Snapshot) {
			s.Processes[0].SID = 1
			s.Processes = append(s.Processes, people(4)[3])
			s.Kin = append(s.Kin, Kin{Parent: 2, Tracer: -1, VforkCaller: -1, ExitQueue: -1, SignalQueue: -1})
			for p := 2; p < 4; p++ {
				s.Processes[p].PGID, s.Processes[p].SID, s.Processes[p].Stopped = 102, 100, true
			}
		}, []string{"signal: [1] -> [2 3]", "signal: [2] -> [3]"}},
		{"stopped job that is orphaned already", func(s *Snapshot) {
			s.Processes[2].PGID, s.Processes[2].SID, s.Processes[2].Stopped = 102, 102, true
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := family()
			test.change(s)
			got, want := say(New(s).Sources), append([]string{}, test.want...)
			slices.Sort(want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("sources %q, want %q", got, want)
			}
		})
	}
}

// TestAutoReap: who adopts the children of a parent that leaves no zombies is told
// only of those that outlive it.
func TestAutoReap(t *testing.T) {
	for _, autoReap := range []bool{false, true} {
		s := family()
		s.Kin[1].AutoReap = autoReap
		waitsFor(s, ChildWait{Process: 0, Child: 2})
		sources := New(s).Sources
		if len(sources) != 1 {
			t.Fatalf("sources %v, want one", say(sources))
		}
		want := fmt.Sprintf("exit of %d and %d", s.Processes[1].PID, s.Processes[2].PID)
		if autoReap {
			want += fmt.Sprintf(", if %d exits first", s.Processes[1].PID)
		}
		if got := sources[0].Name; got != want {
			t.Errorf("source %q, want %q", got, want)
		}
	}
}

// TestLinks: the end of a socket wakes who sleeps on its peer, not on itself.
func TestLinks(t *testing.T) {
	s := &Snapshot{Processes: people(3),
		Objects:     []Object{{Channel: ChannelUnix, Name: "unix:[1]", Writers: 1}, {Channel: ChannelUnix, Name: "unix:[2]", Writers: 1}, {}},
		Files:       []File{{Object: 0, End: EndOpen, Refs: 1}, {Object: 1, End: EndOpen, Refs: 1}},
		Descriptors: []Descriptor{open(0, 0, 3), open(1, 1, 3)},
		Sleepers:    []Sleeper{asleep(1, ViaPlain), asleep(2, ViaPlain)},
		Links:       []Link{{From: 0, To: 1}, {From: 1, To: 0}, {From: 0, To: 2}},
	}
	s.Sleepers[0].Object, s.Sleepers[1].Object = 1, 2
	want := []Source{{Channel: ChannelUnix, Name: "unix:[1]", Holders: []int32{0}, Waiters: []int32{1, 2}}}
	if got := New(s).Sources; !reflect.DeepEqual(got, want) {
		t.Errorf("sources %+v, want %+v", got, want)
	}
}
