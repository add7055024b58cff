/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What a wake costs: the woken thread is followed until it sleeps again. Waiting
 * for a page or a lock of the kernel's own is not sleeping: that is part of the
 * cost.
 */
#ifndef BPFKILL_FOLLOW_H
#define BPFKILL_FOLLOW_H

#define VM_FAULT_RETRY 0x400

__u64 following = 0; /* set once anybody is */
__u64 lost_costs = 0; /* of woken threads for which there was no room */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set by the loader */
	__type(key, __s32);
	__type(value, struct followed);
} followed SEC(".maps");

static __always_inline void follow(struct task_struct *task, struct wake_key *key, __u32 state)
{
	__s32 tid = BPF_CORE_READ(task, pid);
	struct followed f = {
		.key = *key,
		.cpu_ns = BPF_CORE_READ(task, se.sum_exec_runtime),
		.major_faults = BPF_CORE_READ(task, maj_flt),
		.stopped = !!(state & (TASK_STOPPED | TASK_TRACED)),
	};

	following = 1;
	if (bpf_map_update_elem(&followed, &tid, &f, BPF_ANY))
		__sync_fetch_and_add(&lost_costs, 1);
}

/* What is known of the running thread, NULL for nothing. */
static __always_inline struct followed *find_followed(void)
{
	__s32 tid = bpf_get_current_pid_tgid();

	return following ? bpf_map_lookup_elem(&followed, &tid) : 0;
}

/* The same, unless it went back to user mode: what it does until then comes of
 * what woke it, its own death by a signal included. */
static __always_inline struct followed *find_unwinding(void)
{
	struct followed *f = find_followed();

	return f && !f->returned ? f : 0;
}

/* Whether a followed thread, which goes to sleep in a state, has been in user mode since
 * its wake: who was stopped comes back from no system call. */
static __always_inline bool went_back(struct followed *f, __u32 state)
{
	return f->returned || (f->stopped && state & TASK_INTERRUPTIBLE);
}

/* Adds what task, which goes to sleep or dies, has cost to its wake. */
static __always_inline void end_follow(struct followed *f, struct task_struct *task, bool back)
{
	struct wake *w = bpf_map_lookup_elem(&wakes, &f->key);
	__s32 tid = BPF_CORE_READ(task, pid);

	if (w) {
		__sync_fetch_and_add(&w->cpu_ns,
				     BPF_CORE_READ(task, se.sum_exec_runtime) - f->cpu_ns);
		__sync_fetch_and_add(&w->major_faults,
				     BPF_CORE_READ(task, maj_flt) - f->major_faults);
		__sync_fetch_and_add(&w->swap_ins, f->swap_ins);
		if (back)
			__sync_fetch_and_add(&w->returned, 1);
		__sync_fetch_and_add(&w->ended, 1);
	}
	bpf_map_delete_elem(&followed, &tid);
}

#endif
