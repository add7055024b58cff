// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * The snapshot: processes, the descriptors that can wake somebody, and who
 * really sleeps on the wait queues behind them. Read-only: nothing here can
 * signal.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "signal.h"
#include "task.h"
#include "waitqueue.h"
#include "sockets.h"
#include "tty.h"
#include "locks.h"
#include "notify.h"
#include "sem.h"
#include "futex.h"
#include "perf.h"
#include "walk.h"

#define SA_NOCLDSTOP 1
#define SA_NOCLDWAIT 2
#define PT_EXITKILL (1 << 23) /* PTRACE_O_EXITKILL, shifted by PT_OPT_FLAG_SHIFT */
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFCHR 0020000
#define S_IFIFO 0010000
#define PIPEFS_MAGIC 0x50495045
#define ANON_INODE_FS_MAGIC 0x09041934
#define RING_NAME 0x6e6972755f6f695bULL /* "[io_urin", little-endian */
#define MAX_CPUS 1024
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SWAPENTS 2
#define MM_SHMEMPAGES 3

const volatile __u32 cpus = 1; /* possible CPUs */

/* Whether processes are only listed, without those who wait for their exits. */
__u64 listing = 0;

/* Only there to learn where each CPU keeps its variables. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} per_cpu SEC(".maps");

/* Types that only cross as bytes: naming them here puts them into BTF, from
 * which bpf2go makes the Go types. */
const struct process_record *process_record_type __attribute__((unused));
const struct descriptor_record *descriptor_record_type __attribute__((unused));
const struct sleeper_record *sleeper_record_type __attribute__((unused));
const struct link_record *link_record_type __attribute__((unused));

/* The records in progress: they and the walk together are more than a stack
 * holds. One iterator runs at a time, from one reader. */
static struct process_record process, relative;
static struct descriptor_record descriptor;

/* What the verifier takes for a pointer, as a number. */
#define as_number(pointer)                                      \
	({                                                      \
		void *__p = (pointer);                          \
		__u64 __n = 0;                                  \
		bpf_probe_read_kernel(&__n, sizeof(__n), &__p); \
		__n;                                            \
	})

/* Sums a counter over all CPUs. The offset of a CPU's variables is the distance
 * between the two addresses of a map's value: the CPU's own, and the one that
 * stands for all. __per_cpu_offset says the same, but not every kernel lists it
 * (CONFIG_KALLSYMS_ALL). */
static __always_inline __s64 percpu_sum(struct percpu_counter *counter)
{
	struct bpf_array *array = (void *)as_number(&per_cpu);
	__s64 sum = BPF_CORE_READ(counter, count);
	__u64 counters = (__u64)BPF_CORE_READ(counter, counters);
	__u64 common = (__u64)BPF_CORE_READ(array, pptrs[0]);
	__u32 zero = 0, i;

	for (i = 0; i < MAX_CPUS; i++) {
		__s32 part = 0;
		void *own;

		if (i >= cpus)
			break;
		own = bpf_map_lookup_percpu_elem(&per_cpu, &zero, i);
		if (own && !bpf_probe_read_kernel(&part, sizeof(part),
						  (void *)(counters + as_number(own) - common)))
			sum += part;
	}
	return sum < 0 ? 0 : sum;
}

static __always_inline __s64 mm_counter(struct mm_struct *mm, int member)
{
	__s64 pages;

	if (!bpf_core_type_exists(struct mm_rss_stat))
		return percpu_sum((void *)mm + bpf_core_field_offset(struct mm_struct, rss_stat) +
				  member * bpf_core_type_size(struct percpu_counter));
	pages = 0;
	bpf_probe_read_kernel(&pages, sizeof(pages),
			      (void *)mm +
				      bpf_core_field_offset(struct mm_struct___plain, rss_stat) +
				      member * sizeof(pages));
	return pages < 0 ? 0 : pages;
}

static __always_inline void walk_queues(void)
{
	if (!walk_pending()) {
		counts.truncated++;
		walk.cursor = 0;
	}
}

static __always_inline __s32 task_tgid(struct task_struct *task)
{
	return BPF_CORE_READ(task, tgid);
}

/*
 * Ten thousand processes and a hundred thousand descriptors are read one by one.
 * The verifier knows the types of what ctx->task and ctx->file lead to, so plain loads
 * do, at a tenth of what bpf_probe_read_kernel() costs; they read 0 where that would
 * fail. But from v6.4 to v6.19 the verifier searches the kernel's types from the first
 * to the last, several times over, for each pointer that is loaded so from a trusted
 * one: a millisecond each, as much as a thousand processes save. Pointers are loaded
 * once, or by BPF_CORE_READ().
 */

static __always_inline void fill_ids(struct process_record *r, struct task_struct *task)
{
	struct task_struct *reader = (void *)bpf_get_current_task();
	struct task_struct *parent = BPF_CORE_READ(task, real_parent, group_leader);
	struct pid *self = BPF_CORE_READ(reader, thread_pid);
	__u32 level = BPF_CORE_READ(self, level);
	struct pid_namespace *ns = pid_own_ns(self);
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct pid *pgrp = BPF_CORE_READ(signal, pids[PIDTYPE_PGID]);

	r->tgid = task->tgid;
	r->parent = task_tgid(parent);
	r->parent_start_ns = BPF_CORE_READ(parent, start_boottime);
	r->pid = pid_number(pid, level, ns);
	r->ppid = pid_number(BPF_CORE_READ(parent, thread_pid), level, ns);
	r->pgid = pid_number(pgrp, level, ns);
	r->sid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_SID]), level, ns);
	r->pid_id = (__u64)pid;
	r->pgrp_id = (__u64)pgrp;
	if (r->tgid == task_tgid(reader))
		r->flags |= PROCESS_READER;
	if (!pid)
		return;
	r->namespace_id = (__u64)pid_own_ns(pid);
	if (pid_is_init(pid))
		r->flags |= PROCESS_NS_INIT;
}

static __always_inline __u8 signal_action(struct sighand_struct *sighand, __u32 sig)
{
	void *handler = BPF_CORE_READ(signal_slot(sighand, sig), sa.sa_handler);

	if (!handler)
		return 0;
	return handler == SIG_IGN ? SIGNAL_IGNORED : SIGNAL_CAUGHT;
}

/* What the task does with the signals that a death can send. */
static __always_inline void fill_signals(struct process_record *r, struct task_struct *task)
{
	struct sighand_struct *sighand = BPF_CORE_READ(task, sighand);
	unsigned long flags = BPF_CORE_READ(signal_slot(sighand, SIGCHLD), sa.sa_flags);

	r->blocked = task->blocked.sig[0];
	r->real_blocked = task->real_blocked.sig[0];
	if (task->flags & PF_EXITING)
		r->flags |= PROCESS_EXITING;
	r->sighup = signal_action(sighand, SIGHUP);
	r->sigpipe = signal_action(sighand, SIGPIPE);
	r->sigchld = signal_action(sighand, SIGCHLD);
	r->sigcont = signal_action(sighand, SIGCONT);
	if (flags & SA_NOCLDWAIT)
		r->sigchld |= SIGNAL_NOCLDWAIT;
	if (flags & SA_NOCLDSTOP)
		r->sigchld |= SIGNAL_NOCLDSTOP;
	r->pdeath_signal = task->pdeath_signal;
	if (r->pdeath_signal > 0 && r->pdeath_signal <= SIGNALS_MAX)
		r->sigpdeath = signal_action(sighand, r->pdeath_signal);
}

/* Who is told of the thread's exit because it traces it. */
static __always_inline void fill_tracer(struct process_record *r, struct task_struct *task)
{
	struct task_struct *tracer;
	__u32 ptrace = task->ptrace;

	if (!ptrace)
		return;
	tracer = BPF_CORE_READ(task, parent, group_leader);
	r->tracer = task_tgid(tracer);
	r->tracer_start_ns = group_start_ns(tracer);
	if (ptrace & PT_EXITKILL)
		r->flags |= PROCESS_EXITKILL;
}

/* Who waits in vfork for the exec or exit: the task that forked, which is no parent
 * with CLONE_PARENT. */
static __always_inline void fill_vfork_caller(struct process_record *r, struct task_struct *task)
{
	struct completion *done = BPF_CORE_READ(task, vfork_done);
	struct list_head *head, *first;
	struct swait_queue *entry;
	struct task_struct *caller;

	if (!done)
		return;
	head = (void *)done + bpf_core_field_offset(struct completion, wait.task_list);
	first = BPF_CORE_READ(head, next);
	if (!first || first == head)
		return;
	entry = (void *)first - bpf_core_field_offset(struct swait_queue, task_list);
	caller = BPF_CORE_READ(entry, task);
	r->vfork_caller = BPF_CORE_READ(caller, tgid);
	r->vfork_caller_start_ns = group_start_ns(caller);
}

/* The signal that the parent gets: see do_notify_parent(). */
static __always_inline void fill_exit_signal(struct process_record *r, struct task_struct *task)
{
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	__s32 sig = task->exit_signal;

	if (parent != BPF_CORE_READ(parent, group_leader))
		r->flags |= PROCESS_OF_THREAD;
	if (sig >= 0 && sig != SIGCHLD &&
	    task->parent_exec_id != BPF_CORE_READ(parent, self_exec_id))
		sig = SIGCHLD;
	r->exit_signal = sig;
	if (sig > 0 && sig != SIGCHLD && sig <= SIGNALS_MAX)
		r->sigexit = signal_action(BPF_CORE_READ(parent, sighand), sig);
}

/* Who is told of the exit, and who waits to be told of others'. */
static __always_inline void fill_kin(struct process_record *r, struct task_struct *task)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct sighand_struct *sighand = BPF_CORE_READ(task, sighand);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	struct tty_struct *tty;

	fill_exit_signal(r, task);
	fill_tracer(r, task);
	if (BPF_CORE_READ(signal, flags) & SIGNAL_STOP_STOPPED)
		r->flags |= PROCESS_STOPPED;
	fill_vfork_caller(r, task);
	if (BPF_CORE_READ_BITFIELD_PROBED(signal, is_child_subreaper))
		r->flags |= PROCESS_SUBREAPER;
	if (BPF_CORE_READ(signal, leader)) {
		tty = BPF_CORE_READ(signal, tty);
		r->tty_pgrp_id = (__u64)(tty ? tty_pgrp(tty) : BPF_CORE_READ(signal, tty_old_pgrp));
	}
	r->child_queue = queue_id((void *)signal +
				  bpf_core_field_offset(struct signal_struct, wait_chldexit));
	push_list((void *)r->child_queue, 0, LIST_CHILD_WAITERS);
	if (sighand)
		r->signal_queue =
			push_queue((void *)sighand +
				   bpf_core_field_offset(struct sighand_struct, signalfd_wqh));
	if (pid)
		r->exit_queue =
			push_queue((void *)pid + bpf_core_field_offset(struct pid, wait_pidfd));
}

static __always_inline void fill_memory(struct process_record *r, struct task_struct *task)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);

	if (!mm || r->flags & PROCESS_KTHREAD)
		return;
	r->rss_pages = mm_counter(mm, MM_FILEPAGES) + mm_counter(mm, MM_ANONPAGES) +
		       mm_counter(mm, MM_SHMEMPAGES);
	r->swap_pages = mm_counter(mm, MM_SWAPENTS);
}

/* Two __u32 until v6.3, a __u64 since, and little endian both: the first are there. */
static __always_inline bool has_cap_kill(const struct cred *cred)
{
	__u32 low = 0;

	bpf_probe_read_kernel(&low, sizeof(low),
			      (void *)cred + bpf_core_field_offset(struct cred, cap_effective));
	return low & 1 << CAP_KILL;
}

/* task leads its thread group. */
static __always_inline void fill_process(struct process_record *r, struct task_struct *task)
{
	const struct cred *cred = BPF_CORE_READ(task, cred);

	fill_ids(r, task);
	fill_signals(r, task);
	r->start_ns = task->start_boottime;
	r->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	r->uid = BPF_CORE_READ(cred, uid.val);
	r->euid = BPF_CORE_READ(cred, euid.val);
	r->suid = BPF_CORE_READ(cred, suid.val);
	if (has_cap_kill(cred))
		r->flags |= PROCESS_CAP_KILL;
	r->state = task_state(task);
	r->exit_state = task->exit_state;
	r->threads = BPF_CORE_READ(task, signal, nr_threads);
	if (task->flags & PF_KTHREAD)
		r->flags |= PROCESS_KTHREAD;
	BPF_CORE_READ_STR_INTO(&r->comm, task, comm);
}

/* Most queues are empty: 0, and nobody need remember them. */
static __always_inline __u64 push_occupied(struct wait_queue_head *queue)
{
	struct list_head *next = queue->head.next;

	return !next || next == &queue->head ? 0 : push_queue(queue);
}

/*
 * A thread that a signal to the process may wake instead of the leader, since
 * the leader blocks others or does not sleep; and one that has ties of its own:
 * a tracer, a signal at its parent's death, somebody who polls a pidfd of it
 * (PIDFD_THREAD, since v6.9).
 */
static __always_inline bool thread_counts(struct task_struct *task, __u64 exit_queue)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	return exit_queue || task->ptrace || task->pdeath_signal ||
	       task->blocked.sig[0] != BPF_CORE_READ(leader, blocked.sig[0]) ||
	       !(task_state(leader) & TASK_INTERRUPTIBLE);
}

static __always_inline void write_thread(struct seq_file *seq, struct task_struct *task)
{
	struct process_record *r = &process;
	__u64 exit_queue;

	if (listing || task->flags & PF_KTHREAD)
		return;
	exit_queue = push_occupied(&task->thread_pid->wait_pidfd);
	if (!thread_counts(task, exit_queue))
		return;
	__builtin_memset(r, 0, sizeof(*r));
	r->flags = PROCESS_THREAD;
	r->tgid = task->tgid;
	r->start_ns = group_start_ns(task);
	r->pid_id = (__u64)task->thread_pid;
	r->state = task_state(task);
	r->exit_queue = exit_queue;
	fill_signals(r, task);
	fill_tracer(r, task);
	bpf_seq_write(seq, r, sizeof(*r));
	walk_queues();
}

/* A parent that the reader's namespace does not show: it wakes like others. */
static __always_inline void write_outsider(struct seq_file *seq, struct task_struct *task)
{
	struct process_record *r = &relative;

	__builtin_memset(r, 0, sizeof(*r));
	r->flags = PROCESS_OUTSIDE;
	fill_process(r, task);
	fill_kin(r, task);
	bpf_seq_write(seq, r, sizeof(*r));
}

SEC("iter/task")
int processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct seq_file *seq = ctx->meta->seq;
	struct process_record *r = &process;

	if (!task)
		return 0;
	if (!listing) {
		fill_undo(task);
		push_owned(task);
		push_events(task);
	}
	if (task->pid != task->tgid) {
		write_thread(seq, task);
		return 0;
	}
	__builtin_memset(r, 0, sizeof(*r));
	fill_process(r, task);
	fill_memory(r, task);
	if (!listing)
		fill_kin(r, task);
	bpf_seq_write(seq, r, sizeof(*r));
	if (listing || r->flags & PROCESS_KTHREAD)
		return 0;
	if (!r->ppid && r->parent)
		write_outsider(seq, task->real_parent->group_leader);
	walk_queues();
	return 0;
}

static __always_inline __s64 file_refs(struct file *file)
{
	if (bpf_core_field_exists(file->f_ref))
		return file->f_ref.refcnt.counter + 1; /* 0 is one reference */
	return ((struct file___count *)file)->f_count.counter;
}

static __always_inline bool fill_pipe(struct descriptor_record *r, struct file *file,
				      struct inode *inode)
{
	struct pipe_inode_info *pipe = inode->i_pipe;
	__u32 mode = file->f_mode;

	if (mode & FMODE_READ)
		r->end |= END_READ;
	if (mode & FMODE_WRITE)
		r->end |= END_WRITE;
	if (!r->end || !pipe) /* O_PATH */
		return false;
	r->kind = inode->i_sb->s_magic == PIPEFS_MAGIC ? OBJECT_PIPE : OBJECT_FIFO;
	r->object_id = (__u64)pipe;
	r->readers = pipe->readers;
	r->writers = pipe->writers;
	r->own[0] = push_occupied(&pipe->rd_wait);
	r->own[1] = push_occupied(&pipe->wr_wait);
	if (bpf_core_field_exists(pipe->poll_usage)) /* set where anybody polls */
		r->flags |= DESCRIPTOR_EAGER;
	return true;
}

/* Whether file is an io_uring: it may hold other files. */
static __always_inline bool fill_ring(struct descriptor_record *r, struct file *file,
				      struct inode *inode)
{
	char name[8] = {};

	if (inode->i_sb->s_magic != ANON_INODE_FS_MAGIC)
		return false;
	bpf_probe_read_kernel(name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (*(__u64 *)name != RING_NAME)
		return false;
	r->kind = OBJECT_RING;
	r->flags = DESCRIPTOR_HIDES;
	return true;
}

/* Whether the end of file can wake somebody, but for locks. */
static __always_inline bool fill_object(struct descriptor_record *r, struct file *file,
					struct inode *inode)
{
	r->inode = inode->i_ino;
	switch (inode->i_mode & S_IFMT) {
	case S_IFIFO:
		return fill_pipe(r, file, inode);
	case S_IFSOCK:
		return fill_socket(r, file);
	case S_IFCHR:
		return fill_tty(r, file, inode);
	case S_IFREG: /* anonymous inodes: 0 until v6.15 */
	case 0:
		return fill_ring(r, file, inode);
	}
	return false;
}

/* Whether the file can be watched: neither a socket nor a pipe(2). */
static __always_inline bool has_name(const struct descriptor_record *r, struct inode *inode)
{
	return (inode->i_mode & S_IFMT) != S_IFSOCK && r->kind != OBJECT_PIPE;
}

static __always_inline void write_descriptor(struct bpf_iter__task_file *ctx,
					     struct descriptor_record *r)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;

	if (!task || !file)
		return;
	r->tgid = task->tgid;
	r->start_ns = task->group_leader->start_boottime;
	r->fd = ctx->fd;
	r->file_id = (__u64)file;
	r->file_refs = file_refs(file) - 1;
	r->table_id = (__u64)task->files;
	r->table_users = task->files->count.counter;
	/* The iterator is one of them where it holds on to the table. */
	if (bpf_core_field_exists(struct bpf_iter_seq_task_file_info, files))
		r->table_users--;
	bpf_seq_write(ctx->meta->seq, r, sizeof(*r));
	walk_queues();
}

SEC("iter/task_file")
int descriptors(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct descriptor_record *r = &descriptor;
	struct inode *inode;

	if (!task || !file)
		return 0;
	inode = file->f_inode;
	__builtin_memset(r, 0, sizeof(*r));
	if (fill_object(r, file, inode))
		write_descriptor(ctx, r);
	if (has_name(r, inode)) {
		__builtin_memset(r, 0, sizeof(*r));
		if (fill_watched(r, file, inode))
			write_descriptor(ctx, r);
	}
	if (!inode->i_flctx)
		return 0;
	__builtin_memset(r, 0, sizeof(*r));
	if (fill_locked(r, inode))
		write_descriptor(ctx, r);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
