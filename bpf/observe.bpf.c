// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The measurement: when the doomed were signalled and exited, and whom their
 * deaths woke. Everything else is filtered out here, in the kernel.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "task.h"
#include "trail.h"
#include "hangup.h"

/* Signals to the doomed and their exits; wakes besides. */
#define OBSERVE_EXITS 1
#define OBSERVE_WAKES 2

__u64 observing = 0;
__u64 lost_events = 0;

struct { /* shared with execute.bpf.c */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* set by the loader */
	__type(key, __s32);
	__type(value, struct doomed);
} doomed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set by the loader */
	__type(key, struct wake_key);
	__type(value, struct wake);
} wakes SEC(".maps");

/* Marks of which each says alone what a wake came through. */
const volatile __u64 telling = 0;

#include "follow.h"
#include "dragged.h"

/* Threads that were woken and returned to user mode, and when they started, by their
 * ids: what such a one waits for afterwards is of its own choice. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set by the loader */
	__type(key, __s32);
	__type(value, __u64);
} returned SEC(".maps");

static __always_inline void set_returned(struct task_struct *task)
{
	__s32 tid = BPF_CORE_READ(task, pid);
	__u64 start_ns = BPF_CORE_READ(task, start_boottime);

	if (bpf_map_update_elem(&returned, &tid, &start_ns, BPF_ANY))
		__sync_fetch_and_add(&lost_costs, 1);
}

static __always_inline bool has_returned(struct task_struct *task)
{
	__s32 tid = BPF_CORE_READ(task, pid);
	__u64 *start_ns = bpf_map_lookup_elem(&returned, &tid);

	return start_ns && *start_ns == BPF_CORE_READ(task, start_boottime);
}

static __always_inline struct doomed *find_doomed(struct task_struct *task)
{
	__s32 tgid = BPF_CORE_READ(task, tgid);
	struct doomed *d = bpf_map_lookup_elem(&doomed, &tgid);

	return d && d->start_ns == group_start_ns(task) ? d : 0;
}

/* The same of a tracepoint's own argument, which plain loads may read: what runs
 * once for each signal makes the window longer. */
static __always_inline struct doomed *find_doomed_argument(struct task_struct *task)
{
	__s32 tgid = task->tgid;
	struct doomed *d = bpf_map_lookup_elem(&doomed, &tgid);

	return d && d->start_ns == task->group_leader->start_boottime ? d : 0;
}

SEC("tp_btf/signal_deliver")
int BPF_PROG(signal_deliver, int sig, void *info, struct k_sigaction *ka)
{
	struct followed *f;
	struct doomed *d;

	if (!observing)
		return 0;
	f = find_followed();
	if (f && ka->sa.sa_handler != SIG_DFL && ka->sa.sa_handler != SIG_IGN)
		f->returned = true; /* to a handler */
	if (sig != SIGKILL)
		return 0;
	d = find_doomed((void *)bpf_get_current_task());
	if (d && !d->delivered_ns)
		d->delivered_ns = bpf_ktime_get_ns();
	return 0;
}

/* The last switch away from the dead. Where process_exit was passed over, the exit is as
 * late as this. Nothing is passed over here, with preemption off. */
static __always_inline void stamp_end(struct task_struct *task)
{
	struct doomed *d = find_doomed(task);

	if (!d || BPF_CORE_READ(task, signal, live.counter))
		return;
	d->gone_ns = bpf_ktime_get_ns(); /* of several threads the last one's stays */
	if (!d->exit_ns)
		d->exit_ns = d->gone_ns;
}

static __always_inline bool count_wake(struct wake_key *key, struct task_struct *wakee, bool again)
{
	struct wake *w = bpf_map_lookup_elem(&wakes, key);
	struct wake fresh = {};

	if (!w) {
		BPF_CORE_READ_STR_INTO(&fresh.comm, wakee, group_leader, comm);
		bpf_map_update_elem(&wakes, key, &fresh, BPF_NOEXIST);
		w = bpf_map_lookup_elem(&wakes, key);
	}
	if (!w) {
		__sync_fetch_and_add(&lost_events, 1);
		return false;
	}
	__sync_fetch_and_add(&w->count, 1);
	if (again)
		__sync_fetch_and_add(&w->again, 1);
	return true;
}

/* Whether a thread that is woken in a state had returned to user mode after an earlier
 * wake. It may be about to go to sleep still: then the earlier one is never followed to
 * its end, for its end is seen by the CPU that the thread leaves. */
static __always_inline bool is_again(struct task_struct *wakee, __u32 state)
{
	__s32 tid = BPF_CORE_READ(wakee, pid);
	struct followed *f = following ? bpf_map_lookup_elem(&followed, &tid) : 0;

	if (f && went_back(f, state)) {
		set_returned(wakee);
		return true;
	}
	return following && has_returned(wakee);
}

/* Whether the wakes of the running process come of its death: it is exiting, or
 * unwinds from a sleep that its signal ended, and hands on what it waited for. */
static __always_inline bool is_dying(struct task_struct *task)
{
	struct doomed *d = find_doomed(task);

	return d && (BPF_CORE_READ(task, flags) & PF_EXITING || (d->woken && d->generated_ns));
}

static __always_inline void set_cause(struct wake_key *key, __s32 tgid, __u64 start_ns)
{
	key->cause = tgid;
	key->cause_start_ns = start_ns;
}

/* Where there is nothing more to be learnt from a stack. An interrupt further out
 * only brought the process to where it stops or exits. */
#define TRAIL_ENDS (MARK_EXIT | MARK_INTERRUPT | MARK_SOFTIRQ | MARK_NOTIFY_PARENT)

/*
 * Whose death causes what the running process does: its own; that of who sent it
 * the signal by which it stops or exits; that of who woke it (it passes the wake on
 * before it reaches user mode); or that of who hung up on the TCP socket that a
 * software interrupt serves. An interrupt may hit any of them by chance. Who was
 * stopped did not wait for anything that it could pass on.
 */
static __always_inline bool find_cause(void *ctx, struct task_struct *waker, struct wake_key *key)
{
	struct closer *closer;
	struct followed *f;
	struct dragged *d;

	if (!is_dying(waker) && !hung_up_by() && !find_unwinding() && !find_dragged(waker))
		return false;
	if (!read_trail(ctx, TRAIL_ENDS, &key->trail)) {
		__sync_fetch_and_add(&lost_events, 1);
		return false;
	}
	if (key->trail & (MARK_INTERRUPT | MARK_KERNEL))
		return false;
	if (key->trail & MARK_SOFTIRQ) {
		closer = key->trail & MARK_TCP_RECEIVE ? hung_up_by() : 0;
		if (closer)
			set_cause(key, closer->tgid, closer->start_ns);
		return closer;
	}
	if (is_dying(waker)) {
		set_cause(key, BPF_CORE_READ(waker, tgid), group_start_ns(waker));
		return true;
	}
	d = key->trail & (MARK_EXIT | MARK_NOTIFY_PARENT) ? find_dragged(waker) : 0;
	if (d) {
		set_cause(key, d->key.cause, d->key.cause_start_ns);
		return true;
	}
	f = find_unwinding();
	if (!f || (f->stopped && !(key->trail & (MARK_EXIT | MARK_NOTIFY_PARENT))))
		return false;
	set_cause(key, f->key.cause, f->key.cause_start_ns);
	if (!(key->trail & (MARK_EXIT | telling)))
		key->trail = f->key.trail;
	return true;
}

/* What a signal does to its receiver shows later. */
static __always_inline void track_signal(void *ctx, int sig, struct task_struct *task, int result)
{
	struct task_struct *waker = (void *)bpf_get_current_task();
	struct wake_key key = {.wakee = task->tgid};
	struct followed *f;

	if (!signal_drags(task, sig, result) || !find_cause(ctx, waker, &key) ||
	    key.cause == key.wakee)
		return;
	key.wakee_start_ns = group_start_ns(task);
	/* What it sends itself, as who writes to a pipe that nobody reads any more does,
	 * comes of the wake that is counted already. */
	f = BPF_CORE_READ(waker, tgid) == key.wakee ? find_unwinding() : 0;
	if (f)
		key.trail = f->key.trail;
	if (!record_dragged(sig, &key))
		__sync_fetch_and_add(&lost_events, 1);
}

/* The killer's own signals take the short way: they make the window longer. */
SEC("tp_btf/signal_generate")
int BPF_PROG(signal_generate, int sig, void *info, struct task_struct *task, int group, int result)
{
	struct doomed *d;

	if (!observing)
		return 0;
	d = sig == SIGKILL ? find_doomed_argument(task) : 0;
	if (d && !d->generated_ns)
		d->generated_ns = bpf_ktime_get_ns();
	else if (!d && observing >= OBSERVE_WAKES)
		track_signal(ctx, sig, task, result);
	return 0;
}

/* Whom a signal ends that was awake: no wake tells of it. */
static __always_inline void count_dragged(struct task_struct *task)
{
	struct dragged *d = find_dragged(task);

	if (d && !bpf_map_lookup_elem(&wakes, &d->key))
		count_wake(&d->key, task, false);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct doomed *d;

	if (!observing || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	d = find_doomed(task);
	if (!d)
		count_dragged(task);
	else if (!d->exit_ns)
		d->exit_ns = bpf_ktime_get_ns();
	return 0;
}

/*
 * In the waker's context. Not counted: the kernel's own threads, threads of the
 * dying process itself, members that have their signal already. Every other wake
 * by the dying is counted or lost.
 */
SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *wakee)
{
	struct task_struct *waker;
	struct wake_key key = {};
	struct doomed *d;
	__u32 state;

	if (observing < OBSERVE_WAKES || wakee->flags & PF_KTHREAD)
		return 0;
	key.wakee = wakee->tgid;
	d = find_doomed_argument(wakee);
	if (d && (d->generated_ns || d->exit_ns))
		return 0;
	waker = (void *)bpf_get_current_task();
	if (d && BPF_CORE_READ(waker, tgid) == key.wakee)
		return 0;
	if (d)
		d->woken = true;
	state = task_state(wakee);
	if (!awaits_event(state) || !find_cause(ctx, waker, &key) || key.cause == key.wakee)
		return 0;
	if (!(key.trail & MARK_SOFTIRQ) && BPF_CORE_READ(waker, tgid) == key.wakee)
		return 0;
	if (d) {
		d->waker = key.cause;
		d->early_ns = bpf_ktime_get_ns();
	}
	if (key.trail & MARK_NOTIFY_PARENT && waits_for_child(wakee))
		key.trail |= MARK_WAIT;
	key.wakee_start_ns = group_start_ns(wakee);
	if (count_wake(&key, wakee, is_again(wakee, state)))
		follow(wakee, &key, state);
	return 0;
}

static __always_inline void take_note(struct sock *sk, struct task_struct *task, int state)
{
	struct endpoints e = {};
	struct closer by = {}, *closer;
	struct followed *f;
	struct dragged *d;
	bool exiting;

	if (!read_endpoints(sk, &e))
		return;
	closer = bpf_map_lookup_elem(&closed, &e);
	record_hangup(closer);
	if (closer || (state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE))
		return;
	exiting = BPF_CORE_READ(task, flags) & PF_EXITING;
	d = exiting ? find_dragged(task) : 0;
	f = exiting ? find_unwinding() : 0;
	if (is_dying(task)) { /* its last file may be that of the call that its signal ended */
		by.tgid = BPF_CORE_READ(task, tgid);
		by.start_ns = group_start_ns(task);
	} else if (d) {
		by.tgid = d->key.cause;
		by.start_ns = d->key.cause_start_ns;
	} else if (f) {
		by.tgid = f->key.cause;
		by.start_ns = f->key.cause_start_ns;
	} else {
		return;
	}
	if (!record_close(&e, &by))
		__sync_fetch_and_add(&lost_events, 1);
}

/* Of each packet, before any protocol sees it: those of one connection within this
 * machine are delivered inside of it. */
SEC("tp_btf/netif_receive_skb")
int BPF_PROG(packet)
{
	if (observing)
		forget_hangup();
	return 0;
}

/* A process closes a TCP socket, or its peer learns of it. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_sock_state, struct sock *sk, int old_state, int state)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (observing < OBSERVE_WAKES || noted(sk, task, state))
		return 0;
	take_note(sk, task, state);
	note(sk, task, state);
	return 0;
}

/* On the CPU that prev leaves; what runs here runs at every context switch. */
SEC("tp_btf/sched_switch")
int BPF_PROG(switching, bool preempt, struct task_struct *prev)
{
	struct followed *f;
	struct doomed *d;
	__u32 state;
	bool back;

	if (preempt || !observing)
		return 0;
	state = task_state(prev);
	if (state & TASK_DEAD)
		stamp_end(prev);
	if (!following || !(state & (TASK_INTERRUPTIBLE | TASK_STOPPED | TASK_TRACED | TASK_DEAD)))
		return 0;
	f = find_followed();
	if (!f)
		return 0;
	d = find_doomed(prev);
	back = went_back(f, state) && !(d && d->tripped);
	if (back && !(state & TASK_DEAD))
		set_returned(prev);
	end_follow(f, prev, back);
	return 0;
}

/* Unless a signal is ahead: signal_deliver tells what that comes to. */
SEC("tp_btf/sys_exit")
int returning(void *ctx)
{
	struct followed *f = find_followed();

	if (f && !signal_ahead((void *)bpf_get_current_task()))
		f->returned = true;
	return 0;
}

/* Where the kernel lets nobody attach to functions it is left out: there is no
 * tracepoint for it. */
SEC("fexit/do_swap_page")
int swapped_in(__u64 *ctx)
{
	struct followed *f = find_followed();

	if (f && !(ctx[1] & VM_FAULT_RETRY))
		f->swap_ins++;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
