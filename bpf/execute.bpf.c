// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The kill: fork tracker and inheritance, tripwire, batch delivery.
 *
 * Every handler that can signal asks armed() first: armed until a deadline,
 * and by a process that holds the programs' only references. When it dies,
 * they are gone.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "task.h"

#define EPERM 1
#define ESRCH 3

/* How many generations may live and die between the tracker's attachment and
 * the plan. */
#define ANCESTORS_MAX 256

/* Off only in a build that tests whether the tests notice. */
const volatile bool tripwire_enabled = true;

/* The killer's credentials: what kill(2) refuses by hand, BPF refuses. */
const volatile __u32 killer_uid = 0;
const volatile __u32 killer_euid = 0;
const volatile bool killer_cap_kill = false;

/* The window: one store to opened_ns opens it. Both are bpf_ktime_get_ns(). */
__u64 opened_ns = 0;
__u64 deadline_ns = 0;

/* Set once the forks of processes that the snapshot shows are out of the map:
 * from then on it leads from the others to their doomed ancestors. */
__u64 hunting = 0;

/* Children that could not be recorded: the caller must look again. */
__u64 lost_forks = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* set by the loader */
	__type(key, __s32);
	__type(value, struct doomed);
} doomed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192); /* set by the loader */
	__type(key, __s32);
	__type(value, struct forked);
} forks SEC(".maps");

/* In the order of the plan. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* set by the loader */
	__type(key, __u32);
	__type(value, struct victim);
} victims SEC(".maps");

static __always_inline bool armed(void)
{
	return opened_ns && bpf_ktime_get_ns() < deadline_ns;
}

/* What kill(2) would say (kernel/signal.c, kill_ok_by_cred), asked again at the
 * moment of the signal: an exec may have changed the credentials. */
static __always_inline bool permitted(struct task_struct *task)
{
	__u32 uid = BPF_CORE_READ(task, cred, uid.val);
	__u32 suid = BPF_CORE_READ(task, cred, suid.val);

	return killer_cap_kill || killer_euid == suid || killer_euid == uid || killer_uid == suid ||
	       killer_uid == uid;
}

/* Whether task descends from a doomed process through recorded forks alone: its
 * parent, say, was forked by a target and exited before the target was doomed.
 * Forks of processes that the snapshot shows are not in the map (see the
 * loader): the plan has judged those. */
static __always_inline bool descends_from_doomed(__s32 tgid, __u64 start_ns)
{
	struct doomed *d;
	struct forked *f;
	int i;

	for (i = 0; i < ANCESTORS_MAX; i++) {
		d = bpf_map_lookup_elem(&doomed, &tgid);
		if (d && d->start_ns == start_ns)
			return true;
		f = bpf_map_lookup_elem(&forks, &tgid);
		if (!hunting || !f || f->start_ns != start_ns)
			return false;
		tgid = f->parent;
		start_ns = f->parent_start_ns;
	}
	return false;
}

/*
 * Records every fork from the moment it is attached, so that a process is
 * either in a snapshot taken later or in the map. The fork is recorded before
 * its ancestors' doom is looked up, and the loader dooms them before it reads
 * the map: whichever comes second sees the other. The child does not run yet.
 */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(track_fork, struct task_struct *parent, struct task_struct *child)
{
	__s32 tgid = child->tgid, parent_tgid = parent->tgid;
	struct forked f = {
		.start_ns = child->start_boottime,
		.parent_start_ns = group_start_ns(parent),
		.parent = parent_tgid,
	};
	struct doomed inherited = {
		.start_ns = child->start_boottime,
		.inherited = true,
	};
	struct forked *own;

	if (tgid == parent_tgid)
		return 0;
	if (bpf_map_update_elem(&forks, &tgid, &f, BPF_ANY))
		__sync_fetch_and_add(&lost_forks, 1);
	own = bpf_map_lookup_elem(&forks, &parent_tgid);
	if (own)
		own->has_children = true;
	if (!descends_from_doomed(parent_tgid, f.parent_start_ns))
		return 0;
	if (bpf_map_update_elem(&doomed, &tgid, &inherited, BPF_ANY))
		__sync_fetch_and_add(&lost_forks, 1);
	return 0;
}

/* Forgets a process that dies childless: a busy machine's short-lived commands
 * would fill the map. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(forget_fork, struct task_struct *task)
{
	__s32 tgid = task->tgid;
	struct forked *f = bpf_map_lookup_elem(&forks, &tgid);

	if (f && !f->has_children && !BPF_CORE_READ(task, signal, live.counter))
		bpf_map_delete_elem(&forks, &tgid);
	return 0;
}

/*
 * The tripwire: a doomed process that reaches the end of a system call dies
 * there, before user mode. Where its SIGKILL is pending already there is
 * nothing to do.
 */
SEC("tp_btf/sys_exit")
int tripwire(void *ctx)
{
	struct task_struct *task;
	struct doomed *d;
	__s32 tgid;

	if (!armed())
		return 0;
	tgid = bpf_get_current_pid_tgid() >> 32;
	d = bpf_map_lookup_elem(&doomed, &tgid);
	if (!d)
		return 0;
	task = (void *)bpf_get_current_task();
	if (d->start_ns != group_start_ns(task) || sigkill_pending(task) || !permitted(task) ||
	    pid_is_init(BPF_CORE_READ(task, thread_pid)))
		return 0;
	if (tripwire_enabled && !bpf_send_signal(SIGKILL))
		d->tripped = true;
	if (d->woken && !sigkill_pending(task))
		d->returned = true;
	return 0;
}

struct task_struct *bpf_task_from_pid(__s32 pid) __weak __ksym;
void bpf_task_release(struct task_struct *p) __weak __ksym;
int bpf_send_signal_task(struct task_struct *task, int sig, enum pid_type type,
			 __u64 value) __weak __ksym;

static __always_inline bool visible(struct task_struct *killer, struct task_struct *task)
{
	struct pid *self = BPF_CORE_READ(killer, thread_pid);

	return pid_number(BPF_CORE_READ(task, thread_pid), BPF_CORE_READ(self, level),
			  pid_own_ns(self)) != 0;
}

static __always_inline __s32 signal_victim(struct victim *v)
{
	struct task_struct *killer = (void *)bpf_get_current_task();
	struct task_struct *task = bpf_task_from_pid(v->tgid);
	__s32 status = VICTIM_SIGNALLED;
	int err;

	if (!task)
		return -ESRCH;
	if (task->start_boottime != v->start_ns || !visible(killer, task)) {
		status = -ESRCH;
	} else if (task->flags & PF_KTHREAD || pid_is_init(task->thread_pid) || !permitted(task)) {
		status = -EPERM;
	} else {
		err = bpf_send_signal_task(task, SIGKILL, PIDTYPE_TGID, 0);
		if (err)
			status = err;
	}
	bpf_task_release(task);
	return status;
}

static long deliver_one(__u32 i, void *ctx)
{
	struct victim *v = bpf_map_lookup_elem(&victims, &i);

	if (!v)
		return 1;
	v->status = signal_victim(v);
	return 0;
}

struct deliver_args {
	__u32 victims;
	__u32 pad;
};

/* The batch engine: opens the window and walks the whole plan, in order, in one
 * system call (v6.13, 6280cf718db0: bpf_send_signal_task). */
SEC("syscall")
int deliver(struct deliver_args *args)
{
	opened_ns = bpf_ktime_get_ns();
	bpf_loop(args->victims, deliver_one, 0, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
