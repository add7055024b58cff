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
#include "task.h"
#include "waitqueue.h"

#define SIGCHLD 17
#define SIG_IGN ((void *)1)
#define S_IFMT 00170000
#define S_IFIFO 0010000
#define PIPEFS_MAGIC 0x50495045
#define FMODE_READ 1
#define FMODE_WRITE 2
#define MAX_CPUS 1024
#define MM_FILEPAGES 0
#define MM_ANONPAGES 1
#define MM_SWAPENTS 2
#define MM_SHMEMPAGES 3

const volatile __u32 cpus = 1; /* possible CPUs */

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

static __always_inline void fill_ids(struct process_record *r, struct task_struct *task)
{
	struct task_struct *reader = (void *)bpf_get_current_task();
	struct pid *self = BPF_CORE_READ(reader, thread_pid);
	__u32 level = BPF_CORE_READ(self, level);
	struct pid_namespace *ns = pid_own_ns(self);
	struct signal_struct *signal = BPF_CORE_READ(task, signal);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);

	r->tgid = BPF_CORE_READ(task, tgid);
	r->pid = pid_number(pid, level, ns);
	r->ppid = pid_number(BPF_CORE_READ(task, real_parent, group_leader, thread_pid), level, ns);
	r->pgid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_PGID]), level, ns);
	r->sid = pid_number(BPF_CORE_READ(signal, pids[PIDTYPE_SID]), level, ns);
	if (r->tgid == BPF_CORE_READ(reader, tgid))
		r->flags |= PROCESS_READER;
	if (pid && pid_is_init(pid))
		r->flags |= PROCESS_NS_INIT;
}

SEC("iter/task")
int processes(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct process_record r = {};
	struct mm_struct *mm;
	void *handler;

	if (!task || task->pid != task->tgid)
		return 0;
	fill_ids(&r, task);
	r.start_ns = task->start_boottime;
	r.cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	r.uid = BPF_CORE_READ(task, cred, uid.val);
	r.euid = BPF_CORE_READ(task, cred, euid.val);
	r.suid = BPF_CORE_READ(task, cred, suid.val);
	r.state = task_state(task);
	r.exit_state = task->exit_state;
	r.threads = BPF_CORE_READ(task, signal, nr_threads);
	r.pdeath_signal = task->pdeath_signal;
	handler = BPF_CORE_READ(task, sighand, action[SIGCHLD - 1].sa.sa_handler);
	r.sigchld = !handler ? 0 : handler == SIG_IGN ? 1 : 2;
	if (task->flags & PF_KTHREAD)
		r.flags |= PROCESS_KTHREAD;
	mm = BPF_CORE_READ(task, mm);
	if (mm && !(r.flags & PROCESS_KTHREAD)) {
		r.rss_pages = mm_counter(mm, MM_FILEPAGES) + mm_counter(mm, MM_ANONPAGES) +
			      mm_counter(mm, MM_SHMEMPAGES);
		r.swap_pages = mm_counter(mm, MM_SWAPENTS);
	}
	BPF_CORE_READ_STR_INTO(&r.comm, task, comm);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
	return 0;
}

static __always_inline __s64 file_refs(struct file *file)
{
	if (bpf_core_field_exists(file->f_ref))
		return BPF_CORE_READ(file, f_ref.refcnt.counter) + 1; /* 0 is one reference */
	return BPF_CORE_READ((struct file___count *)file, f_count.counter);
}

SEC("iter/task_file")
int descriptors(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct descriptor_record r = {};
	struct pipe_inode_info *pipe;
	struct inode *inode;

	if (!task || !file)
		return 0;
	inode = file->f_inode;
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFIFO)
		return 0;
	if (file->f_mode & FMODE_READ)
		r.end |= END_READ;
	if (file->f_mode & FMODE_WRITE)
		r.end |= END_WRITE;
	pipe = file->private_data;
	if (!r.end || !pipe) /* O_PATH */
		return 0;
	r.kind = BPF_CORE_READ(inode, i_sb, s_magic) == PIPEFS_MAGIC ? OBJECT_PIPE : OBJECT_FIFO;
	r.tgid = task->tgid;
	r.start_ns = group_start_ns(task);
	r.fd = ctx->fd;
	r.file_id = (__u64)file;
	r.file_refs = file_refs(file) - 1;
	r.table_id = (__u64)task->files;
	r.table_users = BPF_CORE_READ(task, files, count.counter);
	r.object_id = (__u64)pipe;
	r.inode = BPF_CORE_READ(inode, i_ino);
	r.readers = BPF_CORE_READ(pipe, readers);
	r.writers = BPF_CORE_READ(pipe, writers);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));

	push_queue((void *)pipe + bpf_core_field_offset(struct pipe_inode_info, rd_wait),
		   r.object_id);
	push_queue((void *)pipe + bpf_core_field_offset(struct pipe_inode_info, wr_wait),
		   r.object_id);
	if (!walk_pending()) {
		counts.truncated++;
		walk.cursor = 0;
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
