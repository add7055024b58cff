/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * System V semaphores: who dies is undone what it did with SEM_UNDO (exit_sem), and those
 * go on whose operations have become possible. What a process did is in its undo list, by
 * set; who waits is in lists of the set's, on the stacks of the sleepers.
 */
#ifndef BPFKILL_SEM_H
#define BPFKILL_SEM_H

#define SEMAPHORES_MAX 64 /* of one set */
#define OPERATIONS_MAX 16 /* of one semop() */
#define XA_DEPTH 6
#define XA_NODE 2 /* the low bits of a pointer to a node, and not to an element */
#define IPCMNI_SHIFT 15
#define IPCMNI_EXTEND_SHIFT 24 /* with ipcmni_extend, since v5.2 */

struct operation { /* struct sembuf of the ABI */
	__u16 semaphore;
	__s16 operation;
	__s16 flags;
};

/* The loops below call global functions, which the verifier looks at once, and each for
 * itself: so each asks whether there are semaphores (CONFIG_SYSVIPC). Calls go no deeper
 * than that: eight functions. */
#define no_semaphores() (!bpf_core_type_exists(struct sem_array))

/* What is at an index of an IDR, 0 for nothing (radix_tree_load_root). */
static __always_inline __u64 idr_entry(struct idr *idr, __u32 index)
{
	__u64 entry = (__u64)BPF_CORE_READ(idr, idr_rt.xa_head);
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < XA_DEPTH && (entry & 3) == XA_NODE; i++) {
		struct xa_node *node = (void *)(entry - XA_NODE);
		__u32 slot = index >> BPF_CORE_READ(node, shift) &
			     (bpf_core_field_size(node->slots) / sizeof(void *) - 1);

		entry = (__u64)read_pointer((void *)node +
					    bpf_core_field_offset(struct xa_node, slots) +
					    slot * sizeof(void *));
	}
	return entry;
}

/* The set with an id in an IPC namespace, 0 for none (sem_obtain_object_check). */
__attribute__((noinline)) __u64 semaphore_set(__u64 namespace, __s32 id)
{
	struct kern_ipc_perm *perm;
	struct idr *idr;

	if (no_semaphores())
		return 0;
	/* ids[IPC_SEM_IDS] is the first. */
	idr = (void *)namespace + bpf_core_field_offset(struct ipc_namespace, ids) +
	      bpf_core_field_offset(struct ipc_ids, ipcs_idr);
	perm = (void *)idr_entry(idr, id & ((1 << IPCMNI_SHIFT) - 1));
	if (!perm || BPF_CORE_READ(perm, id) != id)
		perm = (void *)idr_entry(idr, id & ((1 << IPCMNI_EXTEND_SHIFT) - 1));
	if (!perm || BPF_CORE_READ(perm, id) != id)
		return 0;
	return (__u64)perm - bpf_core_field_offset(struct sem_array, sem_perm);
}

/* What to change each semaphore of a set by. */
static __always_inline __s16 *adjustments(struct sem_undo *undo)
{
	struct sem_undo___apart *apart = (void *)undo;

	if (bpf_core_field_exists(apart->semadj))
		return BPF_CORE_READ(apart, semadj);
	return (void *)undo + bpf_core_field_offset(struct sem_undo, semadj);
}

/* What a semaphore is, and who waits for it alone. */
__attribute__((noinline)) int push_semaphore(__u64 set, __u32 i)
{
	struct sem *sem;

	if (no_semaphores())
		return 0;
	sem = (void *)set + bpf_core_field_offset(struct sem_array, sems) +
	      i * bpf_core_type_size(struct sem);
	begin_link(LINK_SEM_VALUE, set, 0);
	link.freed = i;
	link.wanted = BPF_CORE_READ(sem, semval);
	write_link();
	push_list((void *)sem + bpf_core_field_offset(struct sem, pending_const), set,
		  LIST_SEM_WAITERS);
	push_list((void *)sem + bpf_core_field_offset(struct sem, pending_alter), set,
		  LIST_SEM_WAITERS);
	return 0;
}

/* What the i-th semaphore of a set will be changed by. */
__attribute__((noinline)) int emit_adjustment(__u64 set, __u64 changes, __u32 i)
{
	__s16 change = 0;

	if (no_semaphores())
		return 0;
	bpf_probe_read_kernel(&change, sizeof(change), (void *)(changes + i * sizeof(change)));
	if (!change)
		return 0;
	begin_link(LINK_SEM_UNDO, walk.queue.owner, set);
	link.inode = BPF_CORE_READ((struct sem_array *)set, sem_perm.id);
	link.freed = i;
	link.wanted = change;
	write_link();
	return 0;
}

/* One set on which a process, or several with one undo list, did something that its exit
 * undoes; with it, once, the values, and who waits for one semaphore or for several. */
__attribute__((noinline)) int emit_undo(__u64 at)
{
	struct sem_undo *undo;
	__u64 set, changes;
	bool first;
	int i, n;
	__s32 id;

	if (no_semaphores())
		return 0;
	undo = (void *)at - bpf_core_field_offset(struct sem_undo, list_proc);
	id = BPF_CORE_READ(undo, semid);
	if (id < 0) /* the set was removed */
		return 0;
	set = semaphore_set(walk.queue.scope, id);
	if (!set)
		return 0;
	changes = (__u64)adjustments(undo);
	first = first_visit(set);
	n = BPF_CORE_READ((struct sem_array *)set, sem_nsems);
	if (n > SEMAPHORES_MAX)
		counts.truncated++;
#pragma clang loop unroll(disable)
	for (i = 0; i < SEMAPHORES_MAX && i < n; i++) {
		emit_adjustment(set, changes, i);
		if (first)
			push_semaphore(set, i);
	}
	if (!first)
		return 0;
	push_list((void *)set + bpf_core_field_offset(struct sem_array, pending_const), set,
		  LIST_SEM_WAITERS);
	push_list((void *)set + bpf_core_field_offset(struct sem_array, pending_alter), set,
		  LIST_SEM_WAITERS);
	return 0;
}

/* The i-th of n operations that the caller of semop() behind queue waits to do. */
__attribute__((noinline)) int emit_operation(__u64 queue, __u64 operations, int i, int n)
{
	struct operation operation = {};

	if (bpf_probe_read_kernel(&operation, sizeof(operation),
				  (void *)(operations + i * sizeof(operation))))
		return 0;
	begin_link(LINK_SEM_OPERATION, walk.queue.owner, queue);
	link.tgid = n;
	link.inode = i;
	link.freed = operation.semaphore | (__u32)(__u16)operation.flags << 16;
	link.wanted = operation.operation;
	write_link();
	return 0;
}

/* One who waits in semop(): on a queue of its own, as not all go on at once. */
__attribute__((noinline)) int emit_sem_waiter(__u64 at)
{
	struct task_struct *task;
	struct sem_queue *q;
	__u64 operations;
	int i, n;

	if (no_semaphores())
		return 0;
	q = (void *)at - bpf_core_field_offset(struct sem_queue, list);
	task = BPF_CORE_READ(q, sleeper);
	operations = (__u64)BPF_CORE_READ(q, sops);
	n = BPF_CORE_READ(q, nsops);
	if (!looks_like_task(task))
		return 0;
	begin_sleeper((__u64)q, (__u64)q);
	write_task(task);
	if (n > OPERATIONS_MAX)
		counts.truncated++;
#pragma clang loop unroll(disable)
	for (i = 0; i < OPERATIONS_MAX && i < n; i++)
		emit_operation((__u64)q, operations, i, n);
	return 0;
}

/* Whose exit undoes something. Threads share one list (CLONE_SYSVSEM). */
static __always_inline void fill_undo(struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct sem_undo_list *list;

	if (!bpf_core_field_exists(task->sysvsem)) /* CONFIG_SYSVIPC */
		return;
	list = BPF_CORE_READ(task, sysvsem.undo_list);
	if (!list || (task != leader && list == BPF_CORE_READ(leader, sysvsem.undo_list)))
		return;
	begin_link(LINK_SEM_UNDOER, (__u64)list, group_start_ns(task));
	link.tgid = BPF_CORE_READ(task, tgid);
	write_link();
	push_scoped_list((void *)list + bpf_core_field_offset(struct sem_undo_list, list_proc),
			 (__u64)list, (__u64)BPF_CORE_READ(task, nsproxy, ipc_ns), LIST_UNDOS);
}

#endif
