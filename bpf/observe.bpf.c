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

#define STACK_DEPTH 32
#define IRQ_STACK_DEPTH 64

/* From /proc/kallsyms: where interrupts and exceptions enter the kernel, and
 * where a process exits. */
const volatile __u64 irqentry_text_start = 0;
const volatile __u64 irqentry_text_end = 0;
const volatile __u64 do_exit_start = 0;
const volatile __u64 do_exit_end = 0;

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

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, STACK_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, IRQ_STACK_DEPTH * sizeof(__u64));
} scratch SEC(".maps");

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
		fresh.wakee_start_ns = group_start_ns(wakee);
		BPF_CORE_READ_STR_INTO(&fresh.comm, wakee, group_leader, comm);
		bpf_map_update_elem(&wakes, key, &fresh, BPF_NOEXIST);
		w = bpf_map_lookup_elem(&wakes, key);
	}
	if (w)
		__sync_fetch_and_add(&w->count, 1);
	else
		__sync_fetch_and_add(&lost_events, 1);
}

/* Whether the wake comes from an interrupt that only happened to hit the dying:
 * one on top of do_exit. Below it there may be one, too: a process that ran in user
 * mode dies on its way back from the interrupt that told it of its signal. */
static __always_inline bool in_interrupt(void *ctx)
{
	__u32 zero = 0;
	__u64 *ips = bpf_map_lookup_elem(&scratch, &zero);
	long size;
	int i;

	if (!ips)
		return false;
	size = bpf_get_stack(ctx, ips, IRQ_STACK_DEPTH * sizeof(__u64), 0);
	for (i = 0; i < IRQ_STACK_DEPTH; i++) {
		if (i * (long)sizeof(__u64) >= size)
			break;
		if (ips[i] >= do_exit_start && ips[i] < do_exit_end)
			return false;
		if (ips[i] >= irqentry_text_start && ips[i] < irqentry_text_end)
			return true;
	}
	return false;
}

/* Whether the wake is one to count: by a doomed process that is exiting, of
 * somebody who slept until an event. Who waits uninterruptibly waits for the
 * kernel itself, for a lock or a page, and would run on in any case; a killable
 * wait may be that of a vfork parent for its child. */
static __always_inline bool by_the_dying(void *ctx, struct task_struct *waker,
					 struct task_struct *wakee)
{
	__u32 sleep = task_state(wakee) & (TASK_UNINTERRUPTIBLE | TASK_WAKEKILL);

	return BPF_CORE_READ(waker, flags) & PF_EXITING && find_doomed(waker) &&
	       sleep != TASK_UNINTERRUPTIBLE && !in_interrupt(ctx);
}

/*
 * In the waker's context. Not counted: the kernel's own threads, threads of the
 * dying process itself, and members that have their signal already.
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
	if (key.cause == key.wakee || !by_the_dying(ctx, waker, wakee))
		return 0;
	if (d && !d->early_ns) {
		d->waker = key.cause;
		d->early_ns = bpf_ktime_get_ns();
	}
	key.stack = bpf_get_stackid(ctx, &stacks, 0);
	if (key.stack < 0) { /* the wake counts all the same, without its channel */
		key.stack = -1;
		__sync_fetch_and_add(&lost_events, 1);
	}
	count_wake(&key, wakee);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
