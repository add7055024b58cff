/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What a wake is about, told by the functions on the waker's kernel stack. The
 * loader writes down where those functions are that tell something.
 */
#ifndef BPFKILL_TRAIL_H
#define BPFKILL_TRAIL_H

#define TRAIL_DEPTH 64

/* How many threads of a process that wait for children are looked at. */
#define WAITING_MAX 64

/* Ascending by start; what is not used starts beyond every address. */
const volatile struct landmark landmarks[LANDMARKS_MAX] = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, TRAIL_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

/* The marks of the function that a call returns to. A call may be a function's
 * last instruction: what it returns to is then beyond the end. A global function,
 * which the verifier checks once, not once for each frame. */
__attribute__((noinline)) __u64 marks_of(__u64 return_address)
{
	__u64 ip = return_address - 1;
	__u32 step, at = 0;

	for (step = LANDMARKS_MAX / 2; step; step /= 2)
		if (landmarks[(at + step) % LANDMARKS_MAX].start <= ip)
			at += step;
	at %= LANDMARKS_MAX;
	return ip >= landmarks[at].start && ip < landmarks[at].end ? landmarks[at].marks : 0;
}

/* Marks of the functions on the stack in the map, which has so many bytes, as far
 * as the first that has one of the marks in *until*. A global function, too: the
 * verifier would walk the whole stack for each way that leads here. */
__attribute__((noinline)) __u64 marks_of_stack(__u64 size, __u64 until)
{
	__u32 zero = 0;
	__u64 *ips = bpf_map_lookup_elem(&stacks, &zero);
	__u64 marks, inner = 0, trail = 0;
	__u64 i;

	if (!ips)
		return 0;
	for (i = 0; i < TRAIL_DEPTH; i++) {
		if (i * sizeof(__u64) >= size)
			break;
		marks = marks_of(ips[i]);
		/* do_notify_pidfd() calls this at its very end, and leaves no trace. No
		 * branch: the verifier would go both ways at each frame. */
		marks |= (marks / MARK_EXIT & inner / MARK_QUEUE & 1) * MARK_PIDFD;
		trail |= marks;
		if (marks & until)
			break;
		inner = marks;
	}
	return trail & ~MARK_QUEUE;
}

/* Marks of the functions on the current stack, from the wake outwards. Returns
 * false when the stack could not be read. */
static __always_inline bool read_trail(void *ctx, __u64 until, __u64 *trail)
{
	__u32 zero = 0;
	__u64 *ips = bpf_map_lookup_elem(&stacks, &zero);
	long size;

	if (!ips)
		return false;
	size = bpf_get_stack(ctx, ips, TRAIL_DEPTH * sizeof(__u64), 0);
	if (size < 0)
		return false;
	*trail = marks_of_stack(size, until);
	return true;
}

/* Whether somebody in this state sleeps until an event. Who waits uninterruptibly
 * waits for the kernel itself, for a lock or a page, and would run on in any case;
 * a killable wait may be that of a vfork parent for its child. */
static __always_inline bool awaits_event(__u32 state)
{
	return !(state & TASK_RTLOCK_WAIT) &&
	       (state & (TASK_UNINTERRUPTIBLE | TASK_WAKEKILL)) != TASK_UNINTERRUPTIBLE;
}

/* Whether task waits for its children: it is queued where do_notify_parent() wakes.
 * The functions in between call the next at their very end, which leaves no trace
 * of them on the stack. Of a process with more that wait than are looked at, it is
 * taken to be one of them. */
static __always_inline bool waits_for_child(struct task_struct *task)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct list_head *head = (void *)signal +
				 bpf_core_field_offset(struct signal_struct, wait_chldexit) +
				 bpf_core_field_offset(struct wait_queue_head, head);
	struct list_head *at = BPF_CORE_READ(head, next);
	struct wait_queue_entry *entry;
	int i;

	for (i = 0; i < WAITING_MAX; i++) {
		if (!at || at == head)
			break;
		entry = (void *)at - bpf_core_field_offset(struct wait_queue_entry, entry);
		if (BPF_CORE_READ(entry, private) == task)
			return true;
		at = BPF_CORE_READ(at, next);
	}
	return i == WAITING_MAX;
}

#endif
