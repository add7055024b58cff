/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The walk of wait queues: who sleeps, and how. A handler queues the heads that
 * it found with push_queue() and then calls walk_pending().
 */
#ifndef BPFKILL_WAITQUEUE_H
#define BPFKILL_WAITQUEUE_H

#define WQ_FLAG_EXCLUSIVE 1

/* EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET: what is left when a
 * one-shot item has fired. ep_poll_callback() ignores such an item. */
#define EP_PRIVATE_BITS 0xf0000000

/* A walk visits at most FANOUT^4 entries, all queues behind one descriptor
 * together. Each level is a global function: the verifier checks it once,
 * whatever the loop around it, on kernels without bpf_loop (before v5.17). */
#define FANOUT 32
#define WALK_RETRIES 4
const volatile __u64 sleepers_per_queue = 32768;

struct queue {
	__u64 head; /* address of the list_head */
	__u64 object_id;
};

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 32768);
	__uint(value_size, sizeof(struct queue));
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} visited SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} sleepers SEC(".maps");

struct walk_counts counts = {};

/* The walk in progress. One iterator runs at a time, from one reader. */
static struct {
	struct queue queue;
	__u64 cursor; /* the next list_head to look at, 0: no queue open */
	__u64 seen;
	__u64 retries;
} walk;

/* Queues a wait queue for the walk, once however many ways lead to it. */
static __always_inline void push_queue(void *head, __u64 object_id)
{
	struct queue q = {
		.head = (__u64)head + bpf_core_field_offset(struct wait_queue_head, head),
		.object_id = object_id,
	};
	__u8 one = 1;
	int err; /* not long: map operations return int until v6.3, d7ba4cc900bf */

	err = bpf_map_update_elem(&visited, &q.head, &one, BPF_NOEXIST);
	if (err == -17 /* EEXIST */)
		return;
	if (err || bpf_map_push_elem(&pending, &q, 0))
		counts.dropped++;
}

/* Whether p is a task: it has a leader, which leads itself and has its tgid. A
 * field that cannot be read is 0. */
static __always_inline bool looks_like_task(struct task_struct *p)
{
	struct task_struct *leader = BPF_CORE_READ(p, group_leader);
	int tgid = BPF_CORE_READ(p, tgid);

	return leader && tgid > 0 && BPF_CORE_READ(p, pid) > 0 &&
	       BPF_CORE_READ(leader, group_leader) == leader && BPF_CORE_READ(leader, pid) == tgid;
}

/*
 * Who sleeps is told by structure, not by the callback's address: that would
 * take reading all of /proc/kallsyms, which a kernel may hide. A plain sleeper's
 * entry leads to its task. An entry of poll or of epoll is part of a record that
 * names the queue again, and poll's record leads to a task, too.
 */
static __always_inline struct task_struct *poll_task(struct wait_queue_entry *entry, void *whead,
						     __u64 *file_id)
{
	struct poll_table_entry *pte =
		(void *)entry - bpf_core_field_offset(struct poll_table_entry, wait);
	struct poll_wqueues *pwq = BPF_CORE_READ(entry, private);
	struct task_struct *task;

	if (!pwq || BPF_CORE_READ(pte, wait_address) != whead)
		return 0;
	task = BPF_CORE_READ(pwq, polling_task);
	*file_id = (__u64)BPF_CORE_READ(pte, filp);
	return looks_like_task(task) ? task : 0;
}

static __always_inline struct epitem *epoll_item(struct wait_queue_entry *entry, void *whead)
{
	struct eppoll_entry *pwq = (void *)entry - bpf_core_field_offset(struct eppoll_entry, wait);

	if (BPF_CORE_READ(entry, private) || BPF_CORE_READ(pwq, whead) != whead)
		return 0;
	return BPF_CORE_READ(pwq, base);
}

static __always_inline void emit_epoll(struct sleeper_record *r, struct epitem *item)
{
	struct eventpoll *ep = BPF_CORE_READ(item, ep);

	r->via = VIA_EPOLL;
	r->link_id = (__u64)ep;
	push_queue((void *)ep + bpf_core_field_offset(struct eventpoll, wq), r->link_id);
}

static __always_inline void emit_entry(struct wait_queue_entry *entry)
{
	void *whead = (void *)walk.queue.head - bpf_core_field_offset(struct wait_queue_head, head);
	struct sleeper_record r = {
		.entry_id = (__u64)entry,
		.object_id = walk.queue.object_id,
	};
	struct task_struct *task = BPF_CORE_READ(entry, private);
	struct epitem *item = epoll_item(entry, whead);

	r.exclusive = BPF_CORE_READ(entry, flags) & WQ_FLAG_EXCLUSIVE;
	if (item) {
		if (!(BPF_CORE_READ(item, event.events) & ~EP_PRIVATE_BITS))
			return;
		emit_epoll(&r, item);
	} else {
		if (!looks_like_task(task)) {
			task = poll_task(entry, whead, &r.link_id);
			r.via = task ? VIA_POLL : VIA_OTHER;
		}
		if (task) {
			r.tgid = BPF_CORE_READ(task, tgid);
			r.start_ns = group_start_ns(task);
			BPF_CORE_READ_STR_INTO(&r.comm, task, group_leader, comm);
		}
	}
	if (bpf_ringbuf_output(&sleepers, &r, sizeof(r), BPF_RB_NO_WAKEUP))
		counts.dropped++;
}

static __always_inline void open_queue(void)
{
	struct list_head *head = (void *)walk.queue.head;

	walk.cursor = (__u64)BPF_CORE_READ(head, next);
	walk.seen = 0;
}

/* One step of the walk: 0 to go on, 1 when no queue is left. The list is read
 * without its lock. An entry that leaves the queue under the walk points to
 * itself (list_del_init): the queue is then read again, and Go drops what it
 * has twice. */
static __always_inline int step(void)
{
	struct list_head *at = (void *)walk.cursor;
	struct list_head *next;

	if (!walk.cursor) {
		if (bpf_map_pop_elem(&pending, &walk.queue))
			return 1;
		walk.retries = 0;
		open_queue();
		return 0;
	}
	if (walk.cursor == walk.queue.head) {
		walk.cursor = 0;
		return 0;
	}
	if (walk.seen >= sleepers_per_queue) {
		counts.truncated++;
		walk.cursor = 0;
		return 0;
	}
	if (bpf_probe_read_kernel(&next, sizeof(next), &at->next))
		next = at;
	if (next == at || !next) {
		if (++walk.retries < WALK_RETRIES) {
			open_queue();
			return 0;
		}
		counts.raced++;
		walk.cursor = 0;
		return 0;
	}
	emit_entry((void *)at - bpf_core_field_offset(struct wait_queue_entry, entry));
	walk.seen++;
	walk.cursor = (__u64)next;
	return 0;
}

__attribute__((noinline)) int walk_steps(void)
{
	int i;

	for (i = 0; i < FANOUT; i++)
		if (step())
			return 1;
	return 0;
}

__attribute__((noinline)) int walk_steps2(void)
{
	int i;

	for (i = 0; i < FANOUT; i++)
		if (walk_steps())
			return 1;
	return 0;
}

__attribute__((noinline)) int walk_steps3(void)
{
	int i;

	for (i = 0; i < FANOUT; i++)
		if (walk_steps2())
			return 1;
	return 0;
}

__attribute__((noinline)) int walk_pending(void)
{
	int i;

	for (i = 0; i < FANOUT; i++)
		if (walk_steps3())
			return 1;
	return 0;
}

#endif
