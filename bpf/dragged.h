/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Whom the deaths drag along: a process to which one of the dying sent a signal,
 * and that did nothing about it. Asleep or not, it ends or stops, and what that
 * brings about is the dying one's doing.
 */
#ifndef BPFKILL_DRAGGED_H
#define BPFKILL_DRAGGED_H

#include "signal.h"

/* Signals that by default neither end nor stop anybody. */
#define SIGNAL_BIT(sig) (1UL << ((sig)-1))
#define SIGNALS_HARMLESS \
	(SIGNAL_BIT(SIGCHLD) | SIGNAL_BIT(SIGCONT) | SIGNAL_BIT(SIGURG) | SIGNAL_BIT(SIGWINCH))

/* What became of a signal (include/trace/events/signal.h): these two were queued. */
#define TRACE_SIGNAL_DELIVERED 0
#define TRACE_SIGNAL_LOSE_INFO 4

/* A process and the signal that it got: which of several it ends or stops by shows
 * when it does. */
struct dragged_key {
	__s32 tgid;
	__s32 sig;
};

struct dragged {
	__u64 start_ns;
	struct wake_key key; /* of the wake by this signal, had the process slept */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set by the loader */
	__type(key, struct dragged_key);
	__type(value, struct dragged);
} dragged SEC(".maps");

__u64 dragging = 0; /* set once anybody is */

/* Whether nothing but its default is done about a signal. */
static __always_inline bool signal_at_default(struct task_struct *task, __u32 sig)
{
	struct k_sigaction *slot = signal_slot(BPF_CORE_READ(task, sighand), sig);

	return BPF_CORE_READ(slot, sa.sa_handler) == SIG_DFL;
}

/* Whether a signal that was generated may end or stop its receiver. */
static __always_inline bool signal_drags(struct task_struct *task, int sig, int result)
{
	if (sig < 1 || sig > SIGNALS_MAX || SIGNAL_BIT(sig) & SIGNALS_HARMLESS)
		return false;
	if (result != TRACE_SIGNAL_DELIVERED && result != TRACE_SIGNAL_LOSE_INFO)
		return false;
	return signal_at_default(task, sig);
}

/* Returns false for want of space. */
static __always_inline bool record_dragged(int sig, struct wake_key *key)
{
	struct dragged_key whom = {.tgid = key->wakee, .sig = sig};
	struct dragged d = {.start_ns = key->wakee_start_ns, .key = *key};
	int err;

	err = bpf_map_update_elem(&dragged, &whom, &d, BPF_ANY);
	dragging = 1;
	return !err;
}

/* The signal by which task's process ends or stops, if one of the dying sent it. */
static __always_inline struct dragged *find_dragged(struct task_struct *task)
{
	struct dragged_key whom = {};
	struct dragged *d;

	if (!dragging)
		return 0;
	whom.sig = BPF_CORE_READ(task, signal, group_exit_code) & 0x7f;
	if (!whom.sig)
		return 0;
	whom.tgid = BPF_CORE_READ(task, tgid);
	d = bpf_map_lookup_elem(&dragged, &whom);
	return d && d->start_ns == group_start_ns(task) ? d : 0;
}

/* Whether task handles a signal before it reaches user mode that may end or stop
 * it: a traced process stops for any. */
static __always_inline bool signal_ahead(struct task_struct *task)
{
	unsigned long pending = BPF_CORE_READ(task, pending.signal.sig[0]) |
				BPF_CORE_READ(task, signal, shared_pending.signal.sig[0]);

	pending &= ~BPF_CORE_READ(task, blocked.sig[0]);
	return pending & ~SIGNALS_HARMLESS || (pending && BPF_CORE_READ(task, ptrace));
}

#endif
