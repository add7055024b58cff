// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The benchmark's clock: when each of a set of processes was signalled, first ran
 * after the first signal to any of them, and was gone. It is the same for
 * whatever kills them, and knows nothing of bpfkill.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "task.h"

/* The first SIGKILL to any of them. */
__u64 begun_ns = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024); /* set by the loader */
	__type(key, __s32);
	__type(value, struct timed);
} timed SEC(".maps");

static __always_inline struct timed *find_timed(struct task_struct *task)
{
	__s32 tgid = BPF_CORE_READ(task, tgid);
	struct timed *t = bpf_map_lookup_elem(&timed, &tgid);

	return t && t->start_ns == group_start_ns(task) ? t : 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(time_signal, int sig, void *info, struct task_struct *task)
{
	struct timed *t;

	if (sig != SIGKILL)
		return 0;
	t = find_timed(task);
	if (!t || t->signalled_ns)
		return 0;
	t->signalled_ns = bpf_ktime_get_ns();
	if (!begun_ns)
		begun_ns = t->signalled_ns;
	/* The first signal has woken it already, and another CPU may have switched to it. */
	if (!t->ran_ns && bpf_core_field_exists(task->on_cpu) && BPF_CORE_READ(task, on_cpu))
		t->ran_ns = t->signalled_ns;
	return 0;
}

/* A thread's last switch is away from it for ever: by then its memory and its
 * descriptors are released. */
SEC("tp_btf/sched_switch")
int BPF_PROG(time_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct timed *t;

	if (!begun_ns)
		return 0;
	if (task_state(prev) & TASK_DEAD) {
		t = find_timed(prev);
		if (t)
			t->gone_ns = bpf_ktime_get_ns();
	}
	t = find_timed(next);
	if (t && !t->ran_ns)
		t->ran_ns = bpf_ktime_get_ns();
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
