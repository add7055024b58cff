/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Readers of task_struct that more than one object file needs. */
#ifndef BPFKILL_TASK_H
#define BPFKILL_TASK_H

#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000
#define SIGNAL_STOP_STOPPED 0x00000001
#define SIGKILL 9
#define TASK_INTERRUPTIBLE 0x0001
#define TASK_UNINTERRUPTIBLE 0x0002
#define TASK_STOPPED 0x0004
#define TASK_TRACED 0x0008
#define TASK_DEAD 0x0080
#define TASK_WAKEKILL 0x0100
#define TASK_RTLOCK_WAIT 0x1000 /* on PREEMPT_RT, since v5.15; no state before */

static __always_inline __u64 group_start_ns(struct task_struct *task)
{
	return BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline __u32 task_state(struct task_struct *task)
{
	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state);
	return (__u32)BPF_CORE_READ((struct task_struct___state *)task, state);
}

static __always_inline bool sigkill_pending(struct task_struct *task)
{
	unsigned long own = BPF_CORE_READ(task, pending.signal.sig[0]);
	unsigned long shared = BPF_CORE_READ(task, signal, shared_pending.signal.sig[0]);

	return (own | shared) & (1UL << (SIGKILL - 1));
}

/* The number of pid in the namespace that is *level* deep, 0 if pid does not
 * live there. numbers[] is a flexible array since v6.9: CO-RE finds where it
 * starts and how long an element is. */
static __always_inline __s32 pid_number(struct pid *pid, __u32 level, struct pid_namespace *ns)
{
	struct upid *upid;

	if (!pid || BPF_CORE_READ(pid, level) < level)
		return 0;
	upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
	       level * bpf_core_type_size(struct upid);
	if (BPF_CORE_READ(upid, ns) != ns)
		return 0;
	return BPF_CORE_READ(upid, nr);
}

/* The pid namespace of pid itself, which is what its owner's getpid() shows. */
static __always_inline struct pid_namespace *pid_own_ns(struct pid *pid)
{
	struct upid *upid;

	upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
	       BPF_CORE_READ(pid, level) * bpf_core_type_size(struct upid);
	return BPF_CORE_READ(upid, ns);
}

/* Whether pid is 1 in its own namespace: killing it would end the namespace. */
static __always_inline bool pid_is_init(struct pid *pid)
{
	struct upid *own;

	own = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
	      BPF_CORE_READ(pid, level) * bpf_core_type_size(struct upid);
	return BPF_CORE_READ(own, nr) == 1;
}

#endif
