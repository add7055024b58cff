/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * The kernel types that bpfkill reads, and only the fields that it reads.
 * Offsets are relocated at load time against the running kernel's BTF, so a
 * full vmlinux.h is not needed. Flavours (struct x___tag) stand for layouts of
 * other kernel versions; each names the commit or release that changed it.
 */
#ifndef BPFKILL_VMLINUX_H
#define BPFKILL_VMLINUX_H

typedef unsigned char __u8;
typedef short int __s16;
typedef short unsigned int __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long int __s64;
typedef long long unsigned int __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_QUEUE = 22,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum { /* map and update flags of the bpf(2) ABI */
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_F_MMAPABLE = 1024,
	BPF_RB_NO_WAKEUP = 1,
};

/* The prototype of bpf_send_signal_task is checked against kernel BTF, tag
 * included, even where the kfunc is weak. */
enum pid_type { PIDTYPE_PID, PIDTYPE_TGID, PIDTYPE_PGID, PIDTYPE_SID, PIDTYPE_MAX };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next, *prev;
};

struct wait_queue_head { /* every queue that is walked */
	struct list_head head;
};
typedef struct wait_queue_head wait_queue_head_t;

struct wait_queue_entry { /* one sleeper */
	unsigned int flags;
	void *private;
	struct list_head entry;
};
typedef struct wait_queue_entry wait_queue_entry_t;

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;
typedef atomic64_t atomic_long_t;

typedef struct { /* v6.13, 90ee6ed776c0: replaces file.f_count */
	atomic_long_t refcnt;
} file_ref_t;

typedef struct {
	unsigned int val;
} kuid_t;

struct super_block { /* pipefs or a FIFO's file system */
	unsigned long s_magic;
};

struct inode { /* pipes and FIFOs are told by their mode */
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
};

struct file {
	unsigned int f_mode;
	void *private_data; /* pipe_inode_info of an open pipe or FIFO */
	struct inode *f_inode;
	file_ref_t f_ref;
};

struct file___count { /* until v6.12 */
	atomic_long_t f_count;
};

struct files_struct { /* its count says whether fdget() takes references */
	atomic_t count;
};

struct pipe_inode_info {
	wait_queue_head_t rd_wait;
	wait_queue_head_t wr_wait;
	unsigned int readers;
	unsigned int writers;
};

struct poll_wqueues { /* poll and select: leads from the entry to the task */
	struct task_struct *polling_task;
};

struct poll_table_entry {
	struct file *filp; /* the wait holds a reference */
	wait_queue_entry_t wait;
	wait_queue_head_t *wait_address;
};

struct epoll_event {
	__u32 events;
};

struct epitem {
	struct eventpoll *ep;
	struct epoll_event event;
};

struct eventpoll {
	wait_queue_head_t wq; /* tasks in epoll_wait */
};

struct eppoll_entry { /* epoll: leads from the entry to the instance */
	struct epitem *base;
	wait_queue_entry_t wait;
	wait_queue_head_t *whead;
};

struct pid_namespace;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid { /* numbers[level] is the pid in the process's own namespace */
	unsigned int level;
	struct upid numbers[1];
};

struct kernfs_node { /* id is the inode number of the cgroup's directory */
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* the cgroup v2 one */
};

struct bpf_array { /* a per-CPU one: the address that stands for all CPUs' */
	void *pptrs[1];
};

struct percpu_counter {
	__s64 count;
	__s32 *counters; /* per CPU: not yet folded into count */
};

struct mm_struct { /* since v6.2, f1a7941243c1 */
	struct percpu_counter rss_stat[4];
};

struct mm_rss_stat {
	atomic_long_t count[4];
};

struct mm_struct___plain { /* until v6.1 */
	struct mm_rss_stat rss_stat;
};

struct cred {
	kuid_t uid, suid, euid;
};

struct sigaction {
	void *sa_handler;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct sigpending {
	sigset_t signal;
};

struct signal_struct {
	atomic_t live; /* threads that have not reached do_exit */
	int nr_threads;
	struct pid *pids[PIDTYPE_MAX];
	struct sigpending shared_pending;
};

struct task_struct {
	unsigned int __state; /* since v5.14, 2f064a59a11f */
	unsigned int flags;
	int exit_state;
	int pid, tgid;
	int pdeath_signal;
	__u64 start_boottime;
	struct task_struct *real_parent, *group_leader;
	struct mm_struct *mm;
	const struct cred *cred;
	struct files_struct *files;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	struct sigpending pending;
	struct pid *thread_pid;
	struct css_set *cgroups;
	char comm[16];
};

struct task_struct___state { /* until v5.13 */
	long state;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

#endif
