/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Mutexes with priority inheritance (FUTEX_LOCK_PI): the kernel itself knows who owns
 * those that somebody waits for, and hands each to the first in its tree of waiters when
 * its owner exits (exit_pi_state_list).
 */
#ifndef BPFKILL_FUTEX_H
#define BPFKILL_FUTEX_H

static __always_inline void push_owned(struct task_struct *task)
{
	struct task_struct___futex *older = (void *)task;
	void *owned = task;

	if (bpf_core_field_exists(task->futex.pi_state_list)) /* CONFIG_FUTEX */
		owned += bpf_core_field_offset(struct task_struct, futex.pi_state_list);
	else if (bpf_core_field_exists(older->pi_state_list))
		owned += bpf_core_field_offset(struct task_struct___futex, pi_state_list);
	else
		return;
	push_list(owned, (__u64)task, LIST_PI_STATES);
}

/* Whether a mutex is still on the list of its queue's owner: one that is handed on goes to
 * another list, from which there is no way back. */
static __always_inline bool still_owned(void *at)
{
	struct futex_pi_state *state;

	if (!bpf_core_type_exists(struct futex_pi_state))
		return false;
	state = at - bpf_core_field_offset(struct futex_pi_state, list);
	return BPF_CORE_READ(state, owner) == (void *)walk.queue.owner;
}

static __always_inline void emit_pi_state(void *at)
{
	struct task_struct *owner = (void *)walk.queue.owner;
	struct futex_pi_state *state;

	if (!bpf_core_type_exists(struct futex_pi_state) || !still_owned(at))
		return;
	state = at - bpf_core_field_offset(struct futex_pi_state, list);
	begin_link(LINK_PI_OWNER, (__u64)state, group_start_ns(owner));
	link.tgid = BPF_CORE_READ(owner, tgid);
	write_link();
	push_list((void *)state + bpf_core_field_offset(struct futex_pi_state,
							pi_mutex.waiters.rb_leftmost),
		  (__u64)state, LIST_PI_WAITERS);
}

static __always_inline void emit_pi_waiter(void *at)
{
	struct rt_mutex_waiter *waiter;
	struct task_struct *task;

	if (!bpf_core_type_exists(struct futex_pi_state))
		return;
	if (bpf_core_type_exists(struct rt_waiter_node))
		waiter = at - bpf_core_field_offset(struct rt_mutex_waiter, tree.entry);
	else
		waiter = at - bpf_core_field_offset(struct rt_mutex_waiter___plain, tree_entry);
	task = BPF_CORE_READ(waiter, task);
	if (!looks_like_task(task))
		return;
	begin_sleeper((__u64)waiter, walk.queue.owner);
	write_task(task);
}

#endif
