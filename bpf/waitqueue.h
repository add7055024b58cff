/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The walk of lists: wait queues (who sleeps, and how), locks and the requests
 * behind them, connections that nobody accepted yet. A handler queues the heads
 * that it found with push_queue() and push_list(), and then calls walk_pending().
 */
#ifndef BPFKILL_WAITQUEUE_H
#define BPFKILL_WAITQUEUE_H

#define WQ_FLAG_EXCLUSIVE 1
#define AF_UNIX 1

/* EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET: what is left when a
 * one-shot item has fired. ep_poll_callback() ignores such an item. */
#define EP_PRIVATE_BITS 0xf0000000

/* A walk visits at most FANOUT^4 entries, all queues behind one descriptor
 * together. Each level is a global function: the verifier checks it once,
 * whatever the loop around it, on kernels without bpf_loop (before v5.17). The
 * loops must stay loops: the verifier follows each call for its stack depth. */
#define FANOUT 32
#define WALK_RETRIES 4
const volatile __u64 sleepers_per_queue = 32768;

/* What a list that is walked consists of. */
#define LIST_SLEEPERS 0 /* a wait queue */
#define LIST_CHILD_WAITERS 1 /* a wait queue of wait_opts */
#define LIST_LOCKS 2 /* the locks on a file */
#define LIST_BLOCKED 3 /* the requests behind one lock */
#define LIST_UNIX_BACKLOG 4 /* connections that a listener has not accepted */
#define LIST_TCP_BACKLOG 5
#define LIST_DATAGRAMS 6 /* that a socket has not read */
#define LIST_MAPPINGS 7 /* the mappings of a file: an rbtree */
#define LIST_MARKS 8 /* the marks of inotify and fanotify on something */
#define LIST_UNDOS 9 /* the sets of semaphores that an exit changes */
#define LIST_SEM_WAITERS 10
#define LIST_PI_STATES 11 /* the contended mutexes with priority inheritance of a thread */
#define LIST_PI_WAITERS 12 /* who waits for one: an rbtree */
#define LIST_EVENTS 13 /* the performance events of a thread */
#define LIST_BUFFER_EVENTS 14 /* those that write to one buffer */

struct queue {
	__u64 head; /* address of the list head */
	__u64 owner; /* whose end wakes; not for wait queues */
	__u64 scope; /* LIST_UNDOS: the IPC namespace */
	__u32 kind; /* LIST_* */
	__u32 pad;
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

/* Whether id is met for the first time in this snapshot. */
static __always_inline bool first_visit(__u64 id)
{
	__u8 one = 1;
	int err; /* not long: map operations return int until v6.3, d7ba4cc900bf */

	err = bpf_map_update_elem(&visited, &id, &one, BPF_NOEXIST);
	if (err && err != -17 /* EEXIST */)
		counts.dropped++;
	return !err;
}

/* Whether a list is an rbtree, whose head points to its first node. */
static __always_inline bool is_tree(__u32 kind)
{
	return kind == LIST_MAPPINGS || kind == LIST_PI_WAITERS;
}

/* Whether lists of a kind end with a null pointer, and do not lead back to their head. */
static __always_inline bool ends_in_null(__u32 kind)
{
	return kind == LIST_TCP_BACKLOG || kind == LIST_MARKS || is_tree(kind);
}

/* Queues a list for the walk, once however many ways lead to it. */
static __always_inline void push_scoped_list(void *head, __u64 owner, __u64 scope, __u32 kind)
{
	struct queue q = {
		.head = (__u64)head,
		.owner = owner,
		.scope = scope,
		.kind = kind,
	};
	struct list_head *list = head;

	if (!head || BPF_CORE_READ(list, next) == (ends_in_null(kind) ? 0 : list))
		return;
	if (first_visit(q.head) && bpf_map_push_elem(&pending, &q, 0))
		counts.dropped++;
}

static __always_inline void push_list(void *head, __u64 owner, __u32 kind)
{
	push_scoped_list(head, owner, 0, kind);
}

/* A wait queue is named by the address of its list head. */
static __always_inline __u64 queue_id(void *head)
{
	return (__u64)head + bpf_core_field_offset(struct wait_queue_head, head);
}

static __always_inline __u64 push_queue(void *head)
{
	__u64 id = queue_id(head);

	push_list((void *)id, 0, LIST_SLEEPERS);
	return id;
}

/* The records in progress: calls are deep, and the stack is for all of them together. */
static struct link_record link;
static struct sleeper_record sleeper;

static __always_inline void begin_link(__u32 kind, __u64 from, __u64 to)
{
	__builtin_memset(&link, 0, sizeof(link));
	link.kind = kind;
	link.from = from;
	link.to = to;
}

static __always_inline void write_link(void)
{
	if (bpf_ringbuf_output(&sleepers, &link, sizeof(link), BPF_RB_NO_WAKEUP))
		counts.dropped++;
}

static __always_inline void emit_link(__u32 kind, __u64 from, __u64 to, __u64 inode)
{
	begin_link(kind, from, to);
	link.inode = inode;
	write_link();
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
static __always_inline struct task_struct *poll_task(struct wait_queue_entry *entry, void *whead)
{
	struct poll_table_entry *pte =
		(void *)entry - bpf_core_field_offset(struct poll_table_entry, wait);
	struct poll_wqueues *pwq = BPF_CORE_READ(entry, private);
	struct task_struct *task;

	if (!pwq || BPF_CORE_READ(pte, wait_address) != whead)
		return 0;
	task = BPF_CORE_READ(pwq, polling_task);
	sleeper.link_id = (__u64)BPF_CORE_READ(pte, filp);
	sleeper.events = BPF_CORE_READ(pte, key);
	return looks_like_task(task) ? task : 0;
}

#define IO_WQE_F_MASK 3UL /* flags in the pointer to a request */

/* Opcodes of requests that write to a file, and get SIGPIPE for it. */
#define IORING_OP_WRITEV 2
#define IORING_OP_WRITE_FIXED 5
#define IORING_OP_WRITE 23

/* Whether an entry is io_uring's: it says which queue it is on, and for which events. */
static __always_inline bool ring_polls(struct wait_queue_entry *entry, void *whead)
{
	struct io_poll_iocb *older;
	struct io_poll *poll;

	if (bpf_core_type_exists(struct io_poll)) {
		poll = (void *)entry - bpf_core_field_offset(struct io_poll, wait);
		if (BPF_CORE_READ(poll, head) != whead)
			return false;
		sleeper.events = BPF_CORE_READ(poll, events);
		return true;
	}
	older = (void *)entry - bpf_core_field_offset(struct io_poll_iocb, wait);
	if (BPF_CORE_READ(older, head) != whead)
		return false;
	sleeper.events = BPF_CORE_READ(older, events);
	return true;
}

/* The task whose work it is to go on with the request of an io_uring that polls here: to
 * be given that interrupts its sleep, wherever it sleeps (io_poll_wake, task_work_add). */
static __always_inline struct task_struct *ring_task(struct wait_queue_entry *entry, void *whead)
{
	struct io_kiocb___task *older;
	struct task_struct *task;
	struct io_kiocb *request;
	__u8 opcode;

	if (!bpf_core_type_exists(struct io_kiocb)) /* CONFIG_IO_URING */
		return 0;
	request = (void *)((__u64)BPF_CORE_READ(entry, private) & ~IO_WQE_F_MASK);
	older = (void *)request;
	if (!request || !ring_polls(entry, whead))
		return 0;
	if (bpf_core_field_exists(older->task))
		task = BPF_CORE_READ(older, task);
	else
		task = BPF_CORE_READ(request, tctx, task);
	if (!looks_like_task(task) || !(task_state(task) & TASK_INTERRUPTIBLE))
		return 0;
	opcode = BPF_CORE_READ(request, opcode);
	sleeper.writes = opcode == IORING_OP_WRITEV || opcode == IORING_OP_WRITE_FIXED ||
			 opcode == IORING_OP_WRITE;
	return task;
}

static __always_inline struct epitem *epoll_item(struct wait_queue_entry *entry, void *whead)
{
	struct eppoll_entry *pwq = (void *)entry - bpf_core_field_offset(struct eppoll_entry, wait);

	if (BPF_CORE_READ(entry, private) || BPF_CORE_READ(pwq, whead) != whead)
		return 0;
	return BPF_CORE_READ(pwq, base);
}

static __always_inline void begin_sleeper(__u64 entry, __u64 queue)
{
	__builtin_memset(&sleeper, 0, sizeof(sleeper));
	sleeper.entry_id = entry;
	sleeper.queue_id = queue;
}

static __always_inline void write_sleeper(void)
{
	if (bpf_ringbuf_output(&sleepers, &sleeper, sizeof(sleeper), BPF_RB_NO_WAKEUP))
		counts.dropped++;
}

static __always_inline void write_task(struct task_struct *task)
{
	sleeper.tgid = BPF_CORE_READ(task, tgid);
	sleeper.start_ns = group_start_ns(task);
	sleeper.holds_sigpipe = BPF_CORE_READ(task, blocked.sig[0]) >> (SIGPIPE - 1) & 1;
	BPF_CORE_READ_STR_INTO(&sleeper.comm, task, group_leader, comm);
	write_sleeper();
}

/* An epoll instance passes the wake on to its own sleepers, and to whoever polls
 * the instance. */
static __always_inline void emit_epoll(struct epitem *item)
{
	struct eventpoll *ep = BPF_CORE_READ(item, ep);

	sleeper.events = BPF_CORE_READ(item, event.events);
	if (!(sleeper.events & ~EP_PRIVATE_BITS))
		return;
	sleeper.via = VIA_EPOLL;
	sleeper.link_id = push_queue((void *)ep + bpf_core_field_offset(struct eventpoll, wq));
	write_sleeper();
	sleeper.link_id =
		push_queue((void *)ep + bpf_core_field_offset(struct eventpoll, poll_wait));
	write_sleeper();
}

/* A datagram socket whose peer's buffer is full waits for room there on behalf
 * of its own pollers (unix_dgram_peer_wake_me). */
static __always_inline bool emit_relay(struct wait_queue_entry *entry)
{
	struct unix_sock *u;
	void *peer = BPF_CORE_READ(entry, private);

	if (!bpf_core_type_exists(struct unix_sock) || !peer)
		return false;
	u = (void *)entry - bpf_core_field_offset(struct unix_sock, peer_wake);
	if (BPF_CORE_READ(u, peer) != peer ||
	    BPF_CORE_READ(u, sk.__sk_common.skc_family) != AF_UNIX)
		return false;
	sleeper.via = VIA_RELAY;
	sleeper.link_id = push_queue((void *)BPF_CORE_READ(u, sk.sk_wq) +
				     bpf_core_field_offset(struct socket_wq, wait));
	write_sleeper();
	return true;
}

/* include/uapi/linux/wait.h; wait4 sets WEXITED itself. */
#define WEXITED 4
#define WNOWAIT 0x01000000

static __always_inline void child_waiter(struct wait_queue_entry *entry)
{
	struct wait_opts *wo = (void *)entry - bpf_core_field_offset(struct wait_opts, child_wait);
	__u32 type = BPF_CORE_READ(wo, wo_type);

	sleeper.keeps = (BPF_CORE_READ(wo, wo_flags) & (WEXITED | WNOWAIT)) != WEXITED;
	if (type == PIDTYPE_MAX) {
		sleeper.via = VIA_CHILD;
		return;
	}
	sleeper.via = type == PIDTYPE_PGID ? VIA_CHILD_PGRP : VIA_CHILD_PID;
	sleeper.link_id = (__u64)BPF_CORE_READ(wo, wo_pid);
}

static __always_inline void emit_entry(struct wait_queue_entry *entry)
{
	void *whead = (void *)walk.queue.head - bpf_core_field_offset(struct wait_queue_head, head);
	struct task_struct *task = BPF_CORE_READ(entry, private);
	struct epitem *item = epoll_item(entry, whead);

	begin_sleeper((__u64)entry, walk.queue.head);
	sleeper.exclusive = BPF_CORE_READ(entry, flags) & WQ_FLAG_EXCLUSIVE;
	if (item) {
		emit_epoll(item);
		return;
	}
	if (!looks_like_task(task)) {
		task = poll_task(entry, whead);
		sleeper.via = task ? VIA_POLL : VIA_OTHER;
		if (!task)
			task = ring_task(entry, whead);
	} else if (walk.queue.kind == LIST_CHILD_WAITERS) {
		child_waiter(entry);
	}
	if (!task && emit_relay(entry))
		return;
	if (task)
		write_task(task);
	else
		write_sleeper();
}

#endif
