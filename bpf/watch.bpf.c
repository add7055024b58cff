// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Who wakes whom in ordinary life, among the watched: the processes that the user
 * selected, and those that they wake. It runs at every wake on the machine, so
 * the cheapest test comes first.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "task.h"
#include "trail.h"

#define EEXIST 17
#define BUCKETS 65536 /* of tgids; most tgids have one of their own */

/* Whether some tgid of a bucket is watched. The loader writes the one, the program
 * the other; neither takes back what the other set. */
__u8 selected[BUCKETS];
__u8 met[BUCKETS];

__u64 lost_events = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set by the loader */
	__type(key, __s32);
	__type(value, struct watched);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536); /* set by the loader */
	__type(key, struct wake_key);
	__type(value, struct contact);
} contacts SEC(".maps");

static __always_inline struct watched *find_watched(__s32 tgid, struct task_struct *task)
{
	struct watched *w = bpf_map_lookup_elem(&watched, &tgid);

	return w && w->start_ns == group_start_ns(task) ? w : 0;
}

/* Watches whom a selected process wakes. Returns false for want of space. */
static __always_inline bool meet(__s32 tgid, struct task_struct *task)
{
	struct watched fresh = {.start_ns = group_start_ns(task), .met = true};
	struct watched *w = find_watched(tgid, task);

	met[(__u32)tgid % BUCKETS] = 1;
	if (w) {
		w->met = true;
		return true;
	}
	return !bpf_map_update_elem(&watched, &tgid, &fresh, BPF_ANY);
}

/* A wake by what the waker does itself: not by an interrupt that hit it. TCP over
 * loopback wakes in a software interrupt on the sender's stack. */
static __always_inline bool own_doing(__u64 trail)
{
	__u64 tcp = MARK_TCP | MARK_TCP_RECEIVE;

	if (trail & (MARK_INTERRUPT | MARK_KERNEL))
		return false;
	return !(trail & MARK_SOFTIRQ) || (trail & tcp) == tcp;
}

static __always_inline bool count_contact(struct wake_key *key, struct task_struct *waker,
					  struct task_struct *wakee)
{
	struct contact *c = bpf_map_lookup_elem(&contacts, key);
	struct contact fresh = {};

	if (!c) {
		BPF_CORE_READ_STR_INTO(&fresh.waker, waker, group_leader, comm);
		BPF_CORE_READ_STR_INTO(&fresh.wakee, wakee, group_leader, comm);
		bpf_map_update_elem(&contacts, key, &fresh, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&contacts, key);
	}
	if (c)
		__sync_fetch_and_add(&c->count, 1);
	return c;
}

SEC("tp_btf/sched_waking")
int BPF_PROG(watch_waking, struct task_struct *wakee)
{
	__s32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u32 bucket = (__u32)tgid % BUCKETS;
	struct wake_key key = {.cause = tgid};
	struct task_struct *waker;
	struct watched *w;

	if (!(selected[bucket] | met[bucket]) || wakee->flags & PF_KTHREAD || wakee->tgid == tgid)
		return 0;
	waker = (void *)bpf_get_current_task();
	w = find_watched(tgid, waker);
	if (!w || !awaits_event(task_state(wakee)))
		return 0;
	key.wakee = wakee->tgid;
	if (!w->selected && !find_watched(key.wakee, wakee))
		return 0;
	/* Who stops or goes on where an interrupt brought it tells its parent itself. */
	if (!read_trail(ctx, MARK_EXIT | MARK_INTERRUPT | MARK_NOTIFY_PARENT, &key.trail)) {
		__sync_fetch_and_add(&lost_events, 1);
		return 0;
	}
	if (!own_doing(key.trail))
		return 0;
	if (key.trail & MARK_NOTIFY_PARENT && waits_for_child(wakee))
		key.trail |= MARK_WAIT;
	key.cause_start_ns = group_start_ns(waker);
	key.wakee_start_ns = group_start_ns(wakee);
	/* In this order: whoever reads the contact finds both of them watched, or gone. */
	if (!meet(key.wakee, wakee) || !count_contact(&key, waker, wakee))
		__sync_fetch_and_add(&lost_events, 1);
	return 0;
}

/* The last thread of a process ends: nobody wakes it any more, and the wakes that it
 * causes come soon. The loader forgets it after a while. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(watch_exit, struct task_struct *task)
{
	__s32 tgid = task->tgid;
	__u32 bucket = (__u32)tgid % BUCKETS;
	struct watched *w;

	if (!(selected[bucket] | met[bucket]) || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	w = find_watched(tgid, task);
	if (w)
		w->exited_ns = bpf_ktime_get_ns();
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
