package window

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfkill/bpfkill/internal/affinity"
)

// Descriptors that the guardian is born with.
const (
	guardSocket = 3
	guardTable  = 4
)

// IsGuardian reports whether this process was started to be a killer's guardian.
// A program that calls [Run] must ask that first of all, and call [Guard].
func IsGuardian() bool { return len(os.Args) == 1 && os.Args[0] == guardianName }

// Guard waits until the killer has finished or died, and in the second case
// undoes what it did to the affinity of threads that live. It returns an exit
// status.
func Guard() int {
	if err := guard(); err != nil {
		return 1
	}
	return 0
}

func guard() error {
	runtime.LockOSThread() // the scheduling policy below is this thread's
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	debug.SetGCPercent(-1)
	memfd := os.NewFile(guardTable, "table")
	// All of this makes the guardian surer and faster; it guards without it, too.
	_ = os.WriteFile("/proc/self/comm", []byte(guardianName), 0)
	_, _ = setOOMScore("-1000")
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_ONFAULT)
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: fifoPriority}, 0)

	if _, err := unix.Write(guardSocket, []byte{1}); err != nil {
		return err // the killer has died already
	}
	for {
		_, err := unix.Read(guardSocket, make([]byte, 1))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		break // the killer sends nothing: this is its end, however it came
	}
	t, err := openTable(memfd)
	if err != nil || t == nil || t.finished() {
		return err
	}
	r := newRestorer(t)
	r.recorded()
	return errors.Join(r.born(), r.failed)
}

// restorer gives back what was taken. Whoever is still confined to the corral's
// CPU, or the one that it moves to, and was not before, is let out.
type restorer struct {
	*table
	confined corralSets
	began    uint64 // in clock ticks since boot, as /proc shows start times
	// Threads that were let out and have not been seen to do anything since: one may
	// be in the middle of a fork, and its child still inherits the corral.
	unsettled map[int32]stat
	// What children of the recorded inherit instead of the corral, by parent, and
	// where that is gone by process group and by session.
	parents, groups, sessions map[int32]affinity.Set
	// failed is why the first who lives on could not be let out.
	failed error
	// What any of the recorded may use: for descendants whose origin is not to be
	// seen any more.
	anybody affinity.Set
}

func newRestorer(t *table) *restorer {
	r := &restorer{
		table: t, confined: setsOf(int(t.head.cpu), int(t.head.other)), began: ticks(t.head.beganNS), unsettled: map[int32]stat{},
		parents: map[int32]affinity.Set{}, groups: map[int32]affinity.Set{}, sessions: map[int32]affinity.Set{},
	}
	for i := range t.len() {
		e, wanted := &t.entries[i], t.wanted(i)
		for word := range wanted {
			r.anybody[word] |= wanted[word]
		}
		r.parents[e.pid] = wanted
		if e.pgid != 0 {
			r.groups[e.pgid] = wanted
		}
		if e.sid != 0 {
			r.sessions[e.sid] = wanted
		}
	}
	return r
}

// recorded restores the threads in the table.
func (r *restorer) recorded() {
	for i := range r.len() {
		e := &r.entries[i]
		// A stranger who got the number since is seldom confined, and younger.
		if now, err := affinity.Get(int(e.tid)); err != nil || !r.confined.has(&now) {
			continue
		}
		st, err := readStat(int(e.tid))
		if err != nil || st.start > ticks(e.seenNS) {
			continue
		}
		wanted := r.wanted(i)
		r.restore(e.tid, &wanted)
	}
}

// restore lets one thread out. What it does from now on is its own: its state is
// read afterwards, so that only what it does after that counts.
func (r *restorer) restore(tid int32, wanted *affinity.Set) bool {
	switch errno := affinity.Apply(tid, wanted); errno {
	case 0:
	case unix.ESRCH:
		return false // it has died
	default:
		if r.failed == nil {
			r.failed = fmt.Errorf("restore the affinity of thread %d: %w", tid, errno)
		}
		return false
	}
	st, err := readStat(int(tid))
	if err == nil {
		r.unsettled[tid] = st
	}
	return true
}

const (
	guardPause = 10 * time.Millisecond // between two looks, and more each time
	guardLimit = 10 * time.Second      // for a machine that is beside itself
	// guardLooks is how often nobody must be found in a row: a look at all
	// processes takes its time, and one that ends meanwhile may have had a child.
	guardLooks = 4
)

// born restores threads and children that the confined have started, who
// inherited the corral, until there can be no more of them.
func (r *restorer) born() error {
	deadline := time.Now().Add(guardLimit)
	pause := guardPause
	for quiet := 0; quiet < guardLooks && time.Now().Before(deadline); {
		settled := r.settle()
		found, err := r.sweep()
		if err != nil {
			return err
		}
		// What is left is no work to keep others from theirs for long.
		_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}, 0)
		if found > 0 {
			quiet, pause = 0, guardPause
			continue
		}
		if settled {
			quiet++
		}
		time.Sleep(pause)
		pause = min(2*pause, 10*guardPause)
	}
	return nil
}

// settle reports whether every thread that was let out has been seen outside of a
// fork since: dead, asleep as no fork sleeps, or with user time or page faults
// that it did not have.
func (r *restorer) settle() bool {
	for tid, then := range r.unsettled {
		now, err := readStat(int(tid))
		if err != nil || now.start != then.start || strings.ContainsRune("STtZX", rune(now.state)) ||
			now.userTime != then.userTime || now.faults != then.faults {
			delete(r.unsettled, tid)
		}
	}
	return len(r.unsettled) == 0
}

// sweep looks at all processes once and returns how many threads it let out.
func (r *restorer) sweep() (found int, err error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		st, err := readStat(pid)
		if err != nil {
			continue
		}
		if wanted, ok := r.related(int32(pid), &st); ok {
			n := r.letOut(pid, &wanted)
			if n > 0 {
				// Its children are its own, and those of its group and session.
				r.parents[int32(pid)] = wanted
				r.groups[st.pgrp], r.sessions[st.session] = wanted, wanted
			}
			found += n
		}
	}
	return found, nil
}

// related reports whether a process is one of the recorded, or was started since
// by one, and what its threads should have been born with.
func (r *restorer) related(pid int32, st *stat) (affinity.Set, bool) {
	if wanted, ok := r.parents[pid]; ok {
		return wanted, true
	}
	if st.start < r.began {
		return affinity.Set{}, false
	}
	for _, kin := range []struct {
		of map[int32]affinity.Set
		id int32
	}{{r.parents, st.ppid}, {r.groups, st.pgrp}, {r.sessions, st.session}} {
		if wanted, ok := kin.of[kin.id]; ok {
			return wanted, true
		}
	}
	// A daemon: it was forked twice, with a session of its own in between, and who
	// could tell of its origin has died. That somebody else's daemon was started in
	// the same moment, and on this CPU alone, is a small risk beside one that stays.
	if st.ppid == 1 || !exists(st.session) {
		return r.anybody, true
	}
	return affinity.Set{}, false
}

// exists reports whether there is a process of that number.
func exists(pid int32) bool {
	_, err := readStat(int(pid))
	return err == nil
}

// letOut restores the threads of a process that were born confined.
func (r *restorer) letOut(pid int, wanted *affinity.Set) (found int) {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0
	}
	for _, name := range names {
		tid, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		now, err := affinity.Get(tid)
		if err != nil || !r.confined.has(&now) {
			continue
		}
		st, err := readStat(tid)
		if err != nil || st.start < r.began {
			continue // confined by somebody else
		}
		if !r.restore(int32(tid), wanted) {
			continue
		}
		if now, err := affinity.Get(tid); err == nil && !r.confined.has(&now) {
			found++
		}
	}
	return found
}

// stat is what /proc/TID/stat says. Reading it touches none of the process's own
// pages.
type stat struct {
	state               byte
	ppid, pgrp, session int32
	faults, userTime    uint64
	start               uint64 // clock ticks since boot
}

func readStat(tid int) (stat, error) {
	// Not /proc/TID/stat, which counts for all threads of its process.
	id := strconv.Itoa(tid)
	b, err := os.ReadFile("/proc/" + id + "/task/" + id + "/stat")
	if err != nil {
		return stat{}, err
	}
	// The name may hold blanks and parentheses; the last one ends it.
	_, after, ok := cutLast(string(b), ") ")
	f := strings.Fields(after)
	if !ok || len(f) < 20 {
		return stat{}, fmt.Errorf("parse stat: %q", b)
	}
	st := stat{state: f[0][0]}
	var errs []error
	for i, n := range []*int32{&st.ppid, &st.pgrp, &st.session} {
		v, err := strconv.ParseInt(f[1+i], 10, 32)
		*n, errs = int32(v), append(errs, err)
	}
	for i, n := range map[int]*uint64{7: &st.faults, 11: &st.userTime, 19: &st.start} {
		v, err := strconv.ParseUint(f[i], 10, 64)
		*n, errs = v, append(errs, err)
	}
	return st, errors.Join(errs...)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// ticks converts nanoseconds to the unit of /proc/PID/stat: USER_HZ is 100 on
// every 64-bit machine that Go runs on.
func ticks(ns uint64) uint64 { return ns / (1e9 / 100) }
