/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * File locks: who waits behind whom. A request that conflicts with another
 * request waits behind that one, so the blocked form trees under each lock; a
 * lock that goes wakes those directly behind it, and so does a request.
 */
#ifndef BPFKILL_LOCKS_H
#define BPFKILL_LOCKS_H

#define FL_POSIX 1
#define FL_OFDLCK 1024

/* A field of a lock, whose names changed with the struct. */
#define lock_field(lock, field)                                                                \
	((void *)(lock) + (bpf_core_type_exists(struct file_lock_core)                         \
				   ? bpf_core_field_offset(struct file_lock_core, flc_##field) \
				   : bpf_core_field_offset(struct file_lock, fl_##field)))

#define lock_of(at, field) ((void *)(at) - (lock_field(0, field) - (void *)0))

static __always_inline void *read_pointer(void *at)
{
	void *p = 0;

	bpf_probe_read_kernel(&p, sizeof(p), at);
	return p;
}

static __always_inline bool list_is_empty(void *head)
{
	return read_pointer(head) == head;
}

static __always_inline __u32 lock_flags(void *lock)
{
	if (bpf_core_type_exists(struct file_lock_core))
		return BPF_CORE_READ((struct file_lock_core *)lock, flc_flags);
	return BPF_CORE_READ((struct file_lock *)lock, fl_flags);
}

/* A mapping holds a reference to its file, and with it the locks that the file owns. */
static __always_inline void emit_mapping(void *at)
{
	struct vm_area_struct *vma = at - bpf_core_field_offset(struct vm_area_struct, shared.rb);
	struct mm_struct *mm = BPF_CORE_READ(vma, vm_mm);
	struct task_struct *owner;

	if (!bpf_core_field_exists(mm->owner)) /* CONFIG_MEMCG */
		return;
	owner = BPF_CORE_READ(mm, owner);
	begin_link(LINK_MAPPED, (__u64)BPF_CORE_READ(vma, vm_file), group_start_ns(owner));
	link.inode = (__u64)vma; /* tells mappings apart */
	link.tgid = BPF_CORE_READ(owner, tgid);
	write_link();
}

static __always_inline void push_mappings(struct file *file)
{
	struct address_space *mapping = BPF_CORE_READ(file, f_mapping);

	if (mapping)
		push_list((void *)mapping +
				  bpf_core_field_offset(struct address_space, i_mmap.rb_leftmost),
			  0, LIST_MAPPINGS);
}

/* One lock on a file: its owner is a descriptor table for POSIX locks, a file
 * for those of flock(2) and for open file description locks. */
static __always_inline void emit_lock(void *at)
{
	void *lock = lock_of(at, list);
	void *blocked = lock_field(lock, blocked_requests);
	__u32 flags = lock_flags(lock);
	__u32 kind = flags & FL_POSIX && !(flags & FL_OFDLCK) ? LINK_LOCK_TABLE : LINK_LOCK_FILE;

	void *owner;

	if (list_is_empty(blocked))
		return;
	owner = read_pointer(lock_field(lock, owner));
	emit_link(kind, (__u64)lock, (__u64)owner, walk.queue.owner);
	if (kind == LINK_LOCK_FILE)
		push_mappings(owner);
	push_list(blocked, (__u64)lock, LIST_BLOCKED);
}

static __always_inline void emit_blocked(void *at)
{
	void *request = lock_of(at, blocked_member);
	void *blocked = lock_field(request, blocked_requests);
	__u64 queue = push_queue(lock_field(request, wait));

	emit_link(LINK_LOCK_BLOCKED, walk.queue.owner, queue, 0);
	if (list_is_empty(blocked))
		return;
	emit_link(LINK_LOCK_WAITER, (__u64)request, queue, 0);
	push_list(blocked, (__u64)request, LIST_BLOCKED);
}

/* Whether there are locks on the file behind inode. Who waits for them comes
 * with the walk. */
static __always_inline bool fill_locked(struct descriptor_record *r, struct inode *inode)
{
	struct file_lock_context *ctx = inode->i_flctx;
	void *flocks = (void *)ctx + bpf_core_field_offset(struct file_lock_context, flc_flock);
	void *posix = (void *)ctx + bpf_core_field_offset(struct file_lock_context, flc_posix);

	if (!ctx || (list_is_empty(flocks) && list_is_empty(posix)))
		return false;
	r->kind = OBJECT_LOCKED;
	r->inode = inode->i_ino;
	r->object_id = (__u64)ctx;
	r->end = END_OPEN;
	push_list(flocks, r->inode, LIST_LOCKS);
	push_list(posix, r->inode, LIST_LOCKS);
	return true;
}

#endif
