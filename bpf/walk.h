/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* The walk itself, through whatever the handlers queued. */
#ifndef BPFKILL_WALK_H
#define BPFKILL_WALK_H

static __always_inline void open_queue(void)
{
	struct list_head *head = (void *)walk.queue.head;

	walk.cursor = (__u64)BPF_CORE_READ(head, next);
	if (walk.queue.kind == LIST_TCP_BACKLOG && walk.cursor)
		walk.cursor += bpf_core_field_offset(struct request_sock, dl_next);
	walk.seen = 0;
}

/* One element of the list in progress. What is not in walk_step() does not add to the
 * stack of what is called from there. */
__attribute__((noinline)) int emit_element(__u64 element)
{
	void *at = (void *)element;

	switch (walk.queue.kind) {
	case LIST_LOCKS:
		emit_lock(at);
		break;
	case LIST_BLOCKED:
		emit_blocked(at);
		break;
	case LIST_UNIX_BACKLOG:
		emit_unix_backlog(at);
		break;
	case LIST_TCP_BACKLOG:
		emit_tcp_backlog(at);
		break;
	case LIST_DATAGRAMS:
		emit_datagram(at);
		break;
	case LIST_MAPPINGS:
		emit_mapping(at);
		break;
	case LIST_MARKS:
		emit_mark(at);
		break;
	case LIST_PI_STATES:
		emit_pi_state(at);
		break;
	case LIST_PI_WAITERS:
		emit_pi_waiter(at);
		break;
	case LIST_EVENTS:
		emit_event(at);
		break;
	case LIST_BUFFER_EVENTS:
		emit_buffer_event(at);
		break;
	default:
		emit_entry(at - bpf_core_field_offset(struct wait_queue_entry, entry));
	}
	return 0;
}

#define TREE_DEPTH 40

/* The next node of an rbtree in its order, 0 after the last (rb_next). */
__attribute__((noinline)) __u64 tree_successor(__u64 at)
{
	struct rb_node *node = (void *)at, *next = BPF_CORE_READ(node, rb_right);
	int i;

	if (next) {
#pragma clang loop unroll(disable)
		for (i = 0; i < TREE_DEPTH && next; i++) {
			node = next;
			next = BPF_CORE_READ(node, rb_left);
		}
		return (__u64)node;
	}
#pragma clang loop unroll(disable)
	for (i = 0; i < TREE_DEPTH; i++) {
		next = (void *)(BPF_CORE_READ(node, __rb_parent_color) & ~3UL);
		if (!next || BPF_CORE_READ(next, rb_right) != node)
			return (__u64)next;
		node = next;
	}
	return 0;
}

/* Where the list goes on, 0 where that cannot be read. Elements point to their
 * successors with their own first field, those of a TCP backlog with one inside. */
static __always_inline __u64 successor(struct list_head *at)
{
	struct list_head *next;

	if (walk.queue.kind == LIST_PI_STATES && !still_owned(at))
		return 0;
	if (is_tree(walk.queue.kind))
		return tree_successor((__u64)at);
	if (bpf_probe_read_kernel(&next, sizeof(next), &at->next) || !next)
		return 0;
	if (walk.queue.kind == LIST_TCP_BACKLOG)
		return (__u64)next + bpf_core_field_offset(struct request_sock, dl_next);
	return (__u64)next;
}

/* One step of the walk: 0 to go on, 1 when no list is left. The list is read
 * without its lock. An entry that leaves the list under the walk points to
 * itself (list_del_init, RB_CLEAR_NODE): the list is then read again, and Go drops
 * what it has twice. */
__attribute__((noinline)) int walk_step(void)
{
	__u64 next;

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
	next = successor((void *)walk.cursor);
	if (next == walk.cursor || (!next && !ends_in_null(walk.queue.kind))) {
		if (++walk.retries < WALK_RETRIES) {
			open_queue();
			return 0;
		}
		counts.raced++;
		walk.cursor = 0;
		return 0;
	}
	if (walk.queue.kind == LIST_UNDOS)
		emit_undo(walk.cursor);
	else if (walk.queue.kind == LIST_SEM_WAITERS)
		emit_sem_waiter(walk.cursor);
	else
		emit_element(walk.cursor);
	walk.seen++;
	walk.cursor = next;
	return 0;
}

__attribute__((noinline)) int walk_steps(void)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < FANOUT; i++)
		if (walk_step())
			return 1;
	return 0;
}

__attribute__((noinline)) int walk_steps2(void)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < FANOUT; i++)
		if (walk_steps())
			return 1;
	return 0;
}

__attribute__((noinline)) int walk_steps3(void)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < FANOUT; i++)
		if (walk_steps2())
			return 1;
	return 0;
}

__attribute__((noinline)) int walk_pending(void)
{
	int i;

#pragma clang loop unroll(disable)
	for (i = 0; i < FANOUT; i++)
		if (walk_steps3())
			return 1;
	return 0;
}

#endif
