package loader

import "github.com/bpfkill/bpfkill/internal/waitgraph"

// What a process does with a signal: SIGNAL_* of bpf/record.h.
const (
	signalCaught    = 1
	signalIgnored   = 2
	signalNoCldWait = 4
	signalNoCldStop = 8
)

const (
	sigHUP  = 1
	sigKILL = 9
	sigPIPE = 13
	sigCHLD = 17
	sigCONT = 18
)

// taker is what one thread does with signals.
type taker struct {
	blocked waitgraph.SignalSet
	awaited waitgraph.SignalSet // not blocked only while sigtimedwait waits for them
	state   byte
	exiting bool
	traced  bool
}

func (r *snapshotProcessRecord) taker() taker {
	blocked := waitgraph.SignalSet(r.Blocked)
	return taker{
		blocked: blocked, awaited: waitgraph.SignalSet(r.RealBlocked) &^ blocked,
		state:   stateLetter(r.State, r.ExitState),
		exiting: r.Flags&processExiting != 0,
		traced:  r.Tracer != 0,
	}
}

// takes is wants_signal() of kernel/signal.c, but for a thread that is stopped:
// it takes the signal once it goes on.
func (t *taker) takes(sig int32) bool {
	switch {
	case t.exiting:
		return false
	case sig == sigKILL:
		return true
	}
	return !t.blocked.Has(sig) && t.state != 't'
}

// receiver is a process that signals are sent to.
type receiver struct {
	threads []taker // the leader first
	init    bool    // of a pid namespace
}

// react adds to s what the process does with a signal: its action is what, and it
// is sent to thread first, or to any one where first is negative.
func (p *receiver) react(s *waitgraph.Signals, sig int32, what uint8, first int) {
	ignored := what&signalIgnored != 0 || what&signalCaught == 0 && (ignoredByDefault(sig) || p.drops(sig))
	for i := range p.threads {
		t := &p.threads[i]
		if (first < 0 || i == first) && (!ignored || t.traced && sig != sigKILL || t.blocked.Has(sig) || t.awaited.Has(sig)) {
			s.Accepted = s.Accepted.With(sig)
		}
	}
	if !s.Accepted.Has(sig) {
		return
	}
	if first >= 0 && p.threads[first].takes(sig) {
		p.gets(s, sig, what, &p.threads[first], first)
		return
	}
	for i := range p.threads {
		if t := &p.threads[i]; t.takes(sig) {
			p.gets(s, sig, what, t, first)
		}
	}
}

// gets adds to s what it means that thread t gets a signal.
func (p *receiver) gets(s *waitgraph.Signals, sig int32, what uint8, t *taker, first int) {
	if t.state == 'S' {
		s.Interruptible = s.Interruptible.With(sig)
	}
	byDefault := what&(signalCaught|signalIgnored) == 0
	switch {
	case sig == sigKILL:
		s.Deadly = s.Deadly.With(sig)
	case t.awaited.Has(sig):
	case t.traced && (first < 0 || p.threads[first].traced):
		s.Trapped = s.Trapped.With(sig)
	case !byDefault, ignoredByDefault(sig), p.drops(sig):
	case stopsByDefault(sig):
		s.Stopping = s.Stopping.With(sig)
	default:
		s.Deadly = s.Deadly.With(sig)
	}
}

// drops reports whether the kernel protects the process from the default action of
// a signal (SIGNAL_UNKILLABLE). From outside of its namespace, where the parent
// of an init is, SIGKILL and SIGSTOP do reach it.
func (p *receiver) drops(sig int32) bool {
	const sigSTOP = 19
	return p.init && sig != sigKILL && sig != sigSTOP
}

// finishSignals fills in what each process does with signals.
func (b *snapshotBuilder) finishSignals() {
	threads := make(map[int32][]int, len(b.kin.threads)) // by process: indexes
	for i := range b.kin.threads {
		r := &b.kin.threads[i]
		if p, ok := b.process[taskKey{r.Tgid, r.StartNs}]; ok {
			threads[p] = append(threads[p], i)
		}
	}
	sent := b.exitSignals()
	var p receiver
	for i := range b.kin.records {
		r, proc := &b.kin.records[i], &b.snap.Processes[i]
		p.threads, p.init = append(p.threads[:0], r.taker()), r.Flags&processInit != 0
		for _, t := range threads[int32(i)] {
			p.threads = append(p.threads, b.kin.threads[t].taker())
		}
		p.reactions(&proc.Signals, r, 0)
		p.reactions(&proc.AnyThread, r, -1)
		for sig, what := range sent[int32(i)] {
			p.react(&proc.Signals, sig, what, 0)
			p.react(&proc.AnyThread, sig, what, -1)
		}
		for n, t := range threads[int32(i)] {
			b.addThread(int32(i), &b.kin.threads[t], &p, n+1)
		}
	}
}

// reactions adds what the process does with the signals that any death can send,
// and with that of its parent's death.
func (p *receiver) reactions(s *waitgraph.Signals, r *snapshotProcessRecord, first int) {
	p.react(s, sigHUP, r.Sighup, first)
	p.react(s, sigCHLD, r.Sigchld, first)
	p.react(s, sigCONT, r.Sigcont, first)
	p.react(s, sigPIPE, r.Sigpipe, first)
	if r.PdeathSignal > 0 {
		p.react(s, r.PdeathSignal, r.Sigpdeath, first)
	}
}

// exitSignals are the signals other than SIGCHLD that children send at their
// exits, by parent, and what that does with them.
func (b *snapshotBuilder) exitSignals() map[int32]map[int32]uint8 {
	var sent map[int32]map[int32]uint8
	for i := range b.kin.records {
		r := &b.kin.records[i]
		parent := b.indexOf(r.Parent, r.ParentStartNs)
		if r.ExitSignal <= 0 || r.ExitSignal == sigCHLD || parent < 0 {
			continue
		}
		if sent == nil {
			sent = make(map[int32]map[int32]uint8)
		}
		if sent[parent] == nil {
			sent[parent] = make(map[int32]uint8)
		}
		sent[parent][r.ExitSignal] = r.Sigexit
	}
	return sent
}

// addThread adds the nth thread of p where it has ties of its own.
func (b *snapshotBuilder) addThread(proc int32, r *snapshotProcessRecord, p *receiver, n int) {
	if r.Tracer == 0 && r.PdeathSignal == 0 && r.ExitQueue == 0 {
		return
	}
	t := waitgraph.Thread{
		Process: proc, Tracer: b.indexOf(r.Tracer, r.TracerStartNs),
		KilledByTracer: r.Flags&processExitKill != 0, ExitQueue: -1,
		State: p.threads[n].state, ParentDeathSignal: r.PdeathSignal,
	}
	if r.ExitQueue != 0 {
		t.ExitQueue = b.queueObject(r.ExitQueue)
	}
	if r.PdeathSignal > 0 {
		p.react(&t.Signals, r.PdeathSignal, r.Sigpdeath, n)
	}
	b.snap.Threads = append(b.snap.Threads, t)
}

// sigchld is what the process does with SIGCHLD.
func (r *snapshotProcessRecord) sigchld() waitgraph.SignalDisposition {
	switch {
	case r.Sigchld&signalIgnored != 0:
		return waitgraph.SignalIgnored
	case r.Sigchld&signalCaught != 0:
		return waitgraph.SignalCaught
	}
	return waitgraph.SignalDefault
}

// stopsByDefault is SIG_KERNEL_STOP_MASK of the kernel.
func stopsByDefault(sig int32) bool {
	const sigSTOP, sigTTOU = 19, 22
	return sig >= sigSTOP && sig <= sigTTOU
}

// ignoredByDefault is SIG_KERNEL_IGNORE_MASK of the kernel.
func ignoredByDefault(sig int32) bool {
	const sigURG, sigWINCH = 23, 28
	return sig == sigCONT || sig == sigCHLD || sig == sigWINCH || sig == sigURG
}
