/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Performance events: the exit of who is measured wakes whoever polls one of the events that
 * share its event's buffer (perf_event_exit_event, ring_buffer_wakeup). An event that was
 * inherited (by a child, a thread, or a clone that swapped contexts with its parent) has the
 * buffer of the one that it comes from.
 */
#ifndef BPFKILL_PERF_H
#define BPFKILL_PERF_H

static __always_inline void push_context(struct perf_event_context *context,
					 struct task_struct *task)
{
	if (context)
		push_list((void *)context +
				  bpf_core_field_offset(struct perf_event_context, event_list),
			  (__u64)task, LIST_EVENTS);
}

static __always_inline void push_events(struct task_struct *task)
{
	struct task_struct___contexts *several = (void *)task;

	if (bpf_core_field_exists(several->perf_event_ctxp)) {
		push_context(BPF_CORE_READ(several, perf_event_ctxp[0]), task);
		push_context(BPF_CORE_READ(several, perf_event_ctxp[1]), task);
	} else if (bpf_core_field_exists(task->perf_event_ctxp)) { /* CONFIG_PERF_EVENTS */
		push_context(BPF_CORE_READ(task, perf_event_ctxp), task);
	}
}

/* An event of the thread that owns the list. */
static __always_inline void emit_event(void *at)
{
	struct perf_event *event = at - bpf_core_field_offset(struct perf_event, event_entry);
	struct perf_event *parent = BPF_CORE_READ(event, parent);
	struct task_struct *task = (void *)walk.queue.owner;
	struct perf_buffer *buffer = BPF_CORE_READ(parent ?: event, rb);

	if (!buffer)
		return;
	begin_link(LINK_EVENT_OWNER, (__u64)buffer, group_start_ns(task));
	link.tgid = BPF_CORE_READ(task, tgid);
	write_link();
	push_list((void *)buffer + bpf_core_field_offset(struct perf_buffer, event_list),
		  (__u64)buffer, LIST_BUFFER_EVENTS);
}

static __always_inline void emit_buffer_event(void *at)
{
	struct perf_event *event = at - bpf_core_field_offset(struct perf_event, rb_entry);
	void *waiters = (void *)event + bpf_core_field_offset(struct perf_event, waitq);

	if (!list_is_empty((void *)queue_id(waiters)))
		emit_link(LINK_EVENT_QUEUE, walk.queue.owner, push_queue(waiters), 0);
}

#endif
