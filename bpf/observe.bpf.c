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

static __always_inline struct doomed *find_doomed(struct task_struct *task)
{
	__s32 tgid = BPF_CORE_READ(task, tgid);
	struct doomed *d = bpf_map_lookup_elem(&doomed, &tgid);

	return d && d->start_ns == group_start_ns(task) ? d : 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(signal_generate, int sig, void *info, struct task_struct *task)
{
	struct doomed *d;

	if (!observing || sig != SIGKILL)
		return 0;
	d = find_doomed(task);
	if (d && !d->generated_ns)
		d->generated_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/signal_deliver")
int BPF_PROG(signal_deliver, int sig)
{
	struct doomed *d;

	if (!observing || sig != SIGKILL)
		return 0;
	d = find_doomed((void *)bpf_get_current_task());
	if (d && !d->delivered_ns)
		d->delivered_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct doomed *d;

	if (!observing || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	d = find_doomed(task);
	if (d && !d->exit_ns)
		d->exit_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline void count_wake(struct wake_key *key, struct task_struct *wakee)
{
	struct wake *w = bpf_map_lookup_elem(&wakes, key);
	struct wake fresh = {};

	if (!w) {
		BPF_CORE_READ_STR_INTO(&fresh.comm, wakee, group_leader, comm);
		bpf_map_update_elem(&wakes, key, &fresh, BPF_NOEXIST);
		w = bpf_map_lookup_elem(&wakes, key);
	}
	if (w)
		__sync_fetch_and_add(&w->count, 1);
	else
		__sync_fetch_and_add(&lost_events, 1);
}

/* Whether the wake is one to count: by a doomed process that is exiting, of
 * somebody who slept until an event. Who waits uninterruptibly waits for the
 * kernel itself, for a lock or a page, and would run on in any case; a killable
 * wait may be that of a vfork parent for its child. */
static __always_inline bool by_the_dying(struct task_struct *waker, struct task_struct *wakee)
{
	__u32 sleep = task_state(wakee) & (TASK_UNINTERRUPTIBLE | TASK_WAKEKILL);

	return BPF_CORE_READ(waker, flags) & PF_EXITING && find_doomed(waker) &&
	       sleep != TASK_UNINTERRUPTIBLE;
}

/*
 * In the waker's context. Not counted: the kernel's own threads, threads of the
 * dying process itself, members that have their signal already, and wakes from
 * an interrupt that only happened to hit the dying. Every other wake is counted
 * or lost.
 */
SEC("tp_btf/sched_waking")
int BPF_PROG(waking, struct task_struct *wakee)
{
	struct task_struct *waker;
	struct wake_key key = {};
	struct doomed *d;

	if (!observing || wakee->flags & PF_KTHREAD)
		return 0;
	waker = (void *)bpf_get_current_task();
	key.cause = BPF_CORE_READ(waker, tgid);
	key.wakee = wakee->tgid;
	d = find_doomed(wakee);
	if (d && (d->generated_ns || d->exit_ns || key.cause == key.wakee))
		return 0;
	if (d)
		d->woken = true;
	if (key.cause == key.wakee || !by_the_dying(waker, wakee))
		return 0;
	if (!read_trail(ctx, &key.trail)) {
		__sync_fetch_and_add(&lost_events, 1);
		return 0;
	}
	if (key.trail & (MARK_INTERRUPT | MARK_KERNEL))
		return 0;
	if (d && !d->early_ns) {
		d->waker = key.cause;
		d->early_ns = bpf_ktime_get_ns();
	}
	key.cause_start_ns = group_start_ns(waker);
	key.wakee_start_ns = group_start_ns(wakee);
	count_wake(&key, wakee);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
