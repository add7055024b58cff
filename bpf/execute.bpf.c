// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The kill: fork tracker and inheritance, tripwire, batch delivery.
 *
 * The tripwire asks armed() first: armed until a deadline, and by a process that
 * holds the programs' only references. When it dies, they are gone. Delivery runs
 * when that process calls it.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "task.h"

#define EPERM 1
#define ESRCH 3

#define PF_IO_WORKER 0x00000010
#define PF_USER_WORKER 0x00004000 /* since v6.4 */
#define VM_SHARED_MAYWRITE 0x28
#define S_IFMT 00170000
#define S_IFREG 0100000

/* How many generations may live and die between the tracker's attachment and
 * the plan. */
#define ANCESTORS_MAX 256
#define DOOMED (-1)

/* Off only in a build that tests whether the tests notice. */
const volatile bool tripwire_enabled = true;

/* The killer's credentials: what kill(2) refuses by hand, BPF refuses. */
const volatile __u32 killer_uid = 0;
const volatile __u32 killer_euid = 0;
const volatile bool killer_cap_kill = false;

/* Of the machine: bytes that hold a bit for each CPU, a multiple of 8. */
const volatile __u32 cpu_bytes = 8;

/* The window: one store to opened_ns opens it. delivered_ns is when the last
 * signal was sent, released_ns when the targets may run again. All are
 * bpf_ktime_get_ns(). */
__u64 opened_ns = 0;
__u64 deadline_ns = 0;
__u64 delivered_ns = 0;
__u64 released_ns = 0;

/* Threads and children that the doomed have started: whoever lists their threads
 * and finds no more births afterwards has all of them. */
__u64 births = 0;

/* Context switches to the doomed from the opening to the last signal, and from
 * there to the release. */
__u64 window_switches = 0;
__u64 reap_switches = 0;

/* Set once the forks of processes that the snapshot shows are out of the map:
 * from then on it leads from the others to their doomed ancestors. */
__u64 hunting = 0;

/* Whether the tracker runs at all: a compiler may have put attach_pid into its caller. */
__u64 tracked = 0;

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

static __always_inline struct doomed *find_doomed(struct task_struct *task)
{
	__s32 tgid = BPF_CORE_READ(task, tgid);
	struct doomed *d = bpf_map_lookup_elem(&doomed, &tgid);

	return d && d->start_ns == group_start_ns(task) ? d : 0;
}

/* What kill(2) would say (kernel/signal.c, kill_ok_by_cred), asked again at the
 * moment of the signal: an exec may have changed the credentials. */
static __always_inline bool permitted(struct task_struct *task)
{
	__u32 uid, suid;

	if (killer_cap_kill)
		return true;
	uid = BPF_CORE_READ(task, cred, uid.val);
	suid = BPF_CORE_READ(task, cred, suid.val);
	return killer_euid == suid || killer_euid == uid || killer_uid == suid || killer_uid == uid;
}

/* Who forked a process, where that is to be known and recorded: else 0, and DOOMED
 * where the process is doomed itself. This and the next are global functions, which
 * the verifier checks once, not once for each ancestor. */
__attribute__((noinline)) __s32 forked_by(__s32 tgid, __u64 start_ns)
{
	struct doomed *d = bpf_map_lookup_elem(&doomed, &tgid);
	struct forked *f = bpf_map_lookup_elem(&forks, &tgid);

	if (d && d->start_ns == start_ns)
		return DOOMED;
	return hunting && f && f->start_ns == start_ns ? f->parent : 0;
}

__attribute__((noinline)) __u64 parent_start_ns(__s32 tgid)
{
	struct forked *f = bpf_map_lookup_elem(&forks, &tgid);

	return f ? f->parent_start_ns : 0;
}

/* Whether task descends from a doomed process through recorded forks alone: its
 * parent, say, was forked by a target and exited before the target was doomed.
 * Forks of processes that the snapshot shows are not in the map (see the
 * loader): the plan has judged those. */
static __always_inline bool descends_from_doomed(__s32 tgid, __u64 start_ns)
{
	__s32 parent;
	int i;

	for (i = 0; i < ANCESTORS_MAX; i++) {
		parent = forked_by(tgid, start_ns);
		if (parent == DOOMED)
			return true;
		if (!parent)
			return false;
		start_ns = parent_start_ns(tgid);
		tgid = parent;
	}
	return false;
}

/*
 * Records every fork from the moment it is attached, so that a process is
 * either in a snapshot taken later or in the map. The fork is recorded before
 * its ancestors' doom is looked up, and the loader dooms them before it reads
 * the map: whichever comes second sees the other. The child does not run yet.
 */
static __always_inline void record_fork(struct task_struct *parent, struct task_struct *child)
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

	tracked = 1;
	if (tgid == parent_tgid) {
		if (find_doomed(parent))
			__sync_fetch_and_add(&births, 1);
		return;
	}
	if (bpf_map_update_elem(&forks, &tgid, &f, BPF_ANY))
		__sync_fetch_and_add(&lost_forks, 1);
	own = bpf_map_lookup_elem(&forks, &parent_tgid);
	if (own)
		own->has_children = true;
	if (!descends_from_doomed(parent_tgid, f.parent_start_ns))
		return;
	if (bpf_map_update_elem(&doomed, &tgid, &inherited, BPF_ANY))
		__sync_fetch_and_add(&lost_forks, 1);
	__sync_fetch_and_add(&births, 1);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(track_fork, struct task_struct *parent, struct task_struct *child)
{
	record_fork(parent, child);
	return 0;
}

/* The same where a tracepoint's programs can be preempted, and are skipped for whoever
 * forks meanwhile (v7.0). No fork fails after this, nobody sees the child before, and
 * interrupts are off (copy_process, under tasklist_lock), but with PREEMPT_RT. setsid(2)
 * and setpgid(2) call it, too, for another type. */
SEC("fexit/attach_pid")
int BPF_PROG(track_attach, struct task_struct *child, enum pid_type type)
{
	if (type == PIDTYPE_PID)
		record_fork(bpf_get_current_task_btf(), child);
	return 0;
}

/* Forgets a process that dies of its own: the short-lived commands of a busy
 * machine, and the children of a target that forks without end, would fill the maps.
 * The fork of one that had children itself stays: it leads from them to their
 * doomed ancestor. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(forget_fork, struct task_struct *task)
{
	__s32 tgid = task->tgid;
	struct forked *f = bpf_map_lookup_elem(&forks, &tgid);
	struct doomed *d;

	if (!f || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	f->exited = true;
	if (!f->has_children)
		bpf_map_delete_elem(&forks, &tgid);
	d = bpf_map_lookup_elem(&doomed, &tgid);
	if (d && d->inherited && !d->generated_ns && !d->tripped)
		bpf_map_delete_elem(&doomed, &tgid);
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
	    pid_is_init(BPF_CORE_READ(task, group_leader, thread_pid)))
		return 0;
	if (tripwire_enabled && !bpf_send_signal(SIGKILL))
		d->tripped = true;
	if (d->woken && !sigkill_pending(task))
		d->returned = true;
	return 0;
}

/* Types that only cross as bytes: naming them here puts them into BTF, from
 * which bpf2go makes the Go types. */
const struct thread_record *thread_record_type __attribute__((unused));

/* Which CPUs somebody asked for, 0 for nobody: such a mask is kept beside the effective
 * one since v6.2. Threads of io_uring and vhost have their creator's, and are put
 * elsewhere all the same (PF_USER_WORKER since v6.4). */
static __always_inline void read_wanted(struct thread_record *r, struct task_struct *task)
{
	struct cpumask *asked;

	if (!bpf_core_type_exists(struct affinity_context) ||
	    task->flags & (PF_IO_WORKER | PF_USER_WORKER)) {
		__builtin_memcpy(r->wanted, r->allowed, sizeof(r->wanted));
		return;
	}
	asked = BPF_CORE_READ(task, user_cpus_ptr);
	if (asked)
		bpf_probe_read_kernel(r->wanted, cpu_bytes, asked);
}

SEC("iter/task")
int threads(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *reader;
	struct thread_record r = {};
	struct pid_namespace *ns;
	struct signal_struct *signal;
	struct pid *self;
	__u32 level;

	if (!task || task->exit_state || cpu_bytes > sizeof(r.allowed) || !find_doomed(task))
		return 0;
	reader = (void *)bpf_get_current_task();
	self = BPF_CORE_READ(reader, thread_pid);
	level = BPF_CORE_READ(self, level);
	ns = pid_own_ns(self);
	signal = BPF_CORE_READ(task, signal);
	r.start_ns = group_start_ns(task);
	r.tgid = task->tgid;
	r.tid = pid_number(BPF_CORE_READ(task, thread_pid), level, ns);
	r.pid = pid_number(BPF_CORE_READ(task, group_leader, thread_pid), level, ns);
	r.pgid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_PGID]), level, ns);
	r.sid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_SID]), level, ns);
	r.policy = task->policy;
	r.rt_priority = task->rt_priority;
	r.state = task_state(task);
	bpf_probe_read_kernel(r.allowed, cpu_bytes,
			      (void *)task + bpf_core_field_offset(struct task_struct, cpus_mask));
	read_wanted(&r, task);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

const struct mapping_record *mapping_record_type __attribute__((unused));

SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *ctx)
{
	struct task_struct *task = ctx->task;
	struct vm_area_struct *vma = ctx->vma;
	struct mapping_record r = {};
	struct address_space *object;
	struct file *file;

	if (!task || !vma || (vma->vm_flags & VM_SHARED_MAYWRITE) != VM_SHARED_MAYWRITE)
		return 0;
	file = vma->vm_file;
	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFREG ||
	    !find_doomed(task))
		return 0;
	object = BPF_CORE_READ(file, f_mapping);
	r.start_ns = group_start_ns(task);
	r.object_id = (__u64)object;
	r.address = vma->vm_start;
	r.tgid = task->tgid;
	r.count = BPF_CORE_READ(object, i_mmap_writable.counter);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

/* Whether a target runs while the window is open. */
SEC("tp_btf/sched_switch")
int BPF_PROG(count_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct doomed *d;
	__s32 tgid;

	if (!opened_ns || released_ns)
		return 0;
	tgid = next->tgid;
	d = bpf_map_lookup_elem(&doomed, &tgid);
	if (!d || d->start_ns != next->group_leader->start_boottime)
		return 0;
	if (delivered_ns)
		__sync_fetch_and_add(&reap_switches, 1);
	else
		__sync_fetch_and_add(&window_switches, 1);
	return 0;
}

struct task_struct *bpf_task_from_pid(__s32 pid) __weak __ksym;
void bpf_task_release(struct task_struct *p) __weak __ksym;
int bpf_send_signal_task(struct task_struct *task, int sig, enum pid_type type,
			 __u64 value) __weak __ksym;

/* The killer's pid namespace, and how deep it is. */
struct killer {
	struct pid_namespace *ns;
	__u32 level;
};

/* Whether the killer's namespace shows pid, which is so many levels deep. */
static __always_inline bool visible(struct pid *pid, __u32 level, struct killer *killer)
{
	struct upid *upid = (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			    killer->level * bpf_core_type_size(struct upid);

	return level >= killer->level && BPF_CORE_READ(upid, ns) == killer->ns;
}

static __always_inline __s32 signal_victim(struct victim *v, struct killer *killer)
{
	struct task_struct *task = bpf_task_from_pid(v->tgid);
	__s32 status = VICTIM_SIGNALLED;
	struct pid *pid;
	int err;

	if (!task)
		return -ESRCH;
	pid = BPF_CORE_READ(task, thread_pid);
	if (task->start_boottime != v->start_ns || !pid ||
	    !visible(pid, task->thread_pid->level, killer)) {
		status = -ESRCH;
	} else if (task->flags & PF_KTHREAD || pid_is_init(pid) || !permitted(task)) {
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
	v->status = signal_victim(v, ctx);
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
	struct task_struct *current = (void *)bpf_get_current_task();
	struct pid *self = BPF_CORE_READ(current, thread_pid);
	struct killer killer = {.ns = pid_own_ns(self), .level = BPF_CORE_READ(self, level)};

	opened_ns = bpf_ktime_get_ns();
	bpf_loop(args->victims, deliver_one, &killer, 0);
	delivered_ns = bpf_ktime_get_ns();
	return 0;
}

#define MSEC 1000000ULL
#define LEFT_UNKNOWN (~0U)

/* How many milliseconds a real-time thread may have the CPU that the caller, an
 * ordinary one, is on, before the kernel takes it away: since v6.12 for ordinary ones,
 * when these have waited for most of a period that began when it last reckoned with
 * them (fair_server); before that for having used up what real-time threads may use
 * until the end of theirs (rt_rq). */
SEC("syscall")
int cpu_left(void *ctx)
{
	struct task_struct *current = (void *)bpf_get_current_task();
	__u64 left = LEFT_UNKNOWN * MSEC, used, may, period;
	struct sched_dl_entity *server;
	struct rq *rq;

	if (!bpf_core_field_exists(current->se.cfs_rq))
		return LEFT_UNKNOWN;
	rq = BPF_CORE_READ(current, se.cfs_rq, rq);
	if (bpf_core_field_exists(rq->fair_server)) {
		server = (void *)rq + bpf_core_field_offset(struct rq, fair_server);
		used = BPF_CORE_READ(rq, fair_server.dl_runtime);
		period = BPF_CORE_READ(rq, fair_server.dl_period);
		may = BPF_CORE_READ(rq, fair_server.deadline) - BPF_CORE_READ(rq, clock);
		/* It is switched off; or does not reckon with the caller, whom another class
		 * runs (sched_ext). */
		if (used && (__s64)may > -(__s64)period)
			left = (__s64)may > (__s64)used ? may - used : 0;
		if (BPF_CORE_READ_BITFIELD_PROBED(server, dl_defer_running))
			left = 0;
	} else if (bpf_core_field_exists(rq->rt.rt_time)) {
		used = BPF_CORE_READ(rq, rt.rt_time);
		may = BPF_CORE_READ(rq, rt.rt_runtime);
		may = may > used ? may - used : 0;
		if (may < left)
			left = may;
	}
	return left / MSEC;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
