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
enum {
	false = 0,
	true = 1
};

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
enum pid_type {
	PIDTYPE_PID,
	PIDTYPE_TGID,
	PIDTYPE_PGID,
	PIDTYPE_SID,
	PIDTYPE_MAX
};

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

typedef struct {
	atomic_t refs;
} refcount_t;

typedef struct { /* v6.13, 90ee6ed776c0: replaces file.f_count */
	atomic_long_t refcnt;
} file_ref_t;

typedef struct {
	unsigned int val;
} kuid_t;

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct fsnotify_mark_connector { /* the marks on an inode, a mount or a file system */
	struct hlist_head list;
};

struct fsnotify_group { /* an inotify or fanotify instance */
	wait_queue_head_t notification_waitq;
};

struct fsnotify_mark {
	__u32 mask;
	struct fsnotify_group *group;
	struct hlist_node obj_list;
};

struct fsnotify_sb_info { /* since v6.10, 07a3b8d0bf72 */
	struct fsnotify_mark_connector *sb_marks;
};

struct super_block { /* pipefs or a FIFO's file system */
	unsigned long s_magic;
	__u32 s_fsnotify_mask;
	struct fsnotify_sb_info *s_fsnotify_info;
};

struct super_block___marks { /* until v6.9 */
	struct fsnotify_mark_connector *s_fsnotify_marks;
};

struct vfsmount {
};

struct mount {
	struct vfsmount mnt;
	struct fsnotify_mark_connector *mnt_fsnotify_marks;
	__u32 mnt_fsnotify_mask;
};

struct file_lock_context { /* only where a lock is or was held */
	struct list_head flc_flock, flc_posix;
};

struct inode { /* objects are told by their mode, terminals by their device */
	unsigned short i_mode;
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned int i_rdev;
	struct file_lock_context *i_flctx;
	__u32 i_fsnotify_mask;
	struct fsnotify_mark_connector *i_fsnotify_marks;
	struct pipe_inode_info *i_pipe; /* typed, unlike the file's private_data */
};

struct file_lock_core { /* since v6.9, a69ce85ec9af: split off file_lock */
	struct list_head flc_list, flc_blocked_requests, flc_blocked_member;
	void *flc_owner;
	unsigned int flc_flags;
	wait_queue_head_t flc_wait;
};

struct file_lock {
	struct list_head fl_list, fl_blocked_requests, fl_blocked_member;
	void *fl_owner;
	unsigned int fl_flags;
	wait_queue_head_t fl_wait;
};

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right, *rb_left;
};

struct rb_root_cached {
	struct rb_node *rb_leftmost;
};

struct address_space {
	atomic_t i_mmap_writable; /* shared writable mappings, or negative: denied */
	struct rb_root_cached i_mmap; /* all mappings */
};

struct qstr {
	const unsigned char *name;
};

struct dentry { /* the name says what an anonymous inode is */
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	unsigned int f_mode;
	struct path f_path;
	void *private_data; /* pipe_inode_info, socket or tty_file_private */
	struct inode *f_inode;
	struct address_space *f_mapping;
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
	bool poll_usage; /* since v5.14, 3b844826b6c6 */
};

struct poll_wqueues { /* poll and select: leads from the entry to the task */
	struct task_struct *polling_task;
};

struct poll_table_entry {
	struct file *filp; /* the wait holds a reference */
	unsigned int key; /* events that end the wait */
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
	wait_queue_head_t poll_wait; /* who polls the instance itself */
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
	wait_queue_head_t wait_pidfd;
	struct upid numbers[1];
};

struct wait_opts { /* a sleeper in wait4 or waitid, and what for */
	enum pid_type wo_type;
	int wo_flags;
	struct pid *wo_pid;
	wait_queue_entry_t child_wait;
};

struct net;

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
};

struct sk_buff {
	struct sk_buff *next;
	unsigned int truesize;
	struct sock *sk; /* the sender; in a backlog the socket that nobody accepted yet */
};

struct sk_buff_head {
	struct sk_buff *next;
};

struct socket_wq {
	wait_queue_head_t wait;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	refcount_t sk_wmem_alloc; /* bytes sent and not yet read by the other side */
	int sk_sndbuf;
	unsigned int sk_lingertime; /* its low half, where it is long */
	__u16 sk_protocol;
	struct socket_wq *sk_wq; /* in the socket, none until accepted */
};

struct socket {
	short type;
	struct sock *sk;
};

struct unix_sock {
	struct sock sk;
	struct sock *peer;
	struct socket_wq peer_wq; /* who waits until this one has read */
	wait_queue_entry_t peer_wake; /* a poller's place in its peer's peer_wq */
};

struct request_sock { /* a connection in a listener's accept queue */
	struct request_sock *dl_next;
	struct sock *sk;
};

struct request_sock_queue {
	struct request_sock *rskq_accept_head;
};

struct inet_connection_sock {
	struct request_sock_queue icsk_accept_queue;
};

struct tcp_sock { /* unread data turns a close into a reset */
	__u32 rcv_nxt, copied_seq;
	__u32 write_seq, snd_una, snd_wnd; /* what it wrote, and what the other side has room for */
	int linger2; /* how long it waits for the other's FIN */
};

struct mptcp_sock { /* a listener's first subflow has the accept queue */
	struct sock *first;
};

struct tty_struct {
	int index, count;
	struct tty_struct *link; /* a pty's other end */
	wait_queue_head_t write_wait, read_wait;
};

struct tty_struct___ctrl { /* since v5.13, 64d608db38ff */
	struct {
		struct pid *pgrp, *session;
	} ctrl;
};

struct tty_struct___plain { /* until v5.12 */
	struct pid *pgrp, *session;
};

struct tty_file_private {
	struct tty_struct *tty;
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

struct mm_struct { /* rss_stat: since v6.2, f1a7941243c1 */
	struct percpu_counter rss_stat[4];
	struct task_struct *owner;
};

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_flags;
	struct mm_struct *vm_mm;
	struct file *vm_file;
	struct {
		struct rb_node rb;
	} shared; /* its place among the mappings of the file */
};

struct mm_rss_stat {
	atomic_long_t count[4];
};

struct mm_struct___plain { /* until v6.1 */
	struct mm_rss_stat rss_stat;
};

struct kernel_cap {
	__u32 low;
};

struct cred {
	kuid_t uid, suid, euid;
	struct kernel_cap cap_effective; /* see has_cap_kill() */
};

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct swait_queue_head {
	struct list_head task_list;
};

struct swait_queue {
	struct task_struct *task;
	struct list_head task_list;
};

struct completion { /* since v5.7 of such queues, a5c6234e1028 */
	struct swait_queue_head wait;
};

struct sigaction {
	void *sa_handler;
	unsigned long sa_flags;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
	wait_queue_head_t signalfd_wqh;
};

struct sigpending {
	sigset_t signal;
};

struct signal_struct {
	atomic_t live; /* threads that have not reached do_exit */
	int nr_threads;
	struct pid *pids[PIDTYPE_MAX];
	wait_queue_head_t wait_chldexit; /* who waits for a child */
	struct sigpending shared_pending;
	unsigned int flags; /* whether all of it is stopped */
	int group_exit_code; /* the signal that ends or stops the process */
	struct tty_struct *tty;
	struct pid *tty_old_pgrp; /* once the terminal has hung up */
	int leader; /* of its session */
	unsigned int is_child_subreaper : 1;
};

struct sched_dl_entity {
	__u64 dl_runtime, dl_period, deadline;
	unsigned int dl_defer_running : 1; /* it runs what waited for most of a period */
};

struct rt_rq { /* with CONFIG_RT_GROUP_SCHED only, since v6.12, 5f6bd380c7bd */
	__u64 rt_time, rt_runtime;
};

struct rq { /* a CPU's run queues */
	__u64 clock;
	struct rt_rq rt;
	struct sched_dl_entity fair_server; /* since v6.12, 557a6bfc662c */
};

struct cfs_rq { /* what points to it exists with CONFIG_FAIR_GROUP_SCHED only */
	struct rq *rq;
};

struct sched_entity {
	__u64 sum_exec_runtime;
	struct cfs_rq *cfs_rq;
};

struct cpumask { /* its size is the kernel's NR_CPUS in bits */
	unsigned long bits[1];
};

struct affinity_context { /* v6.2, 713a2e21a513 */
	unsigned int flags;
};

struct xarray {
	void *xa_head;
};

struct xa_node {
	unsigned char shift;
	void *slots[64]; /* 16 with CONFIG_BASE_SMALL */
};

struct idr {
	struct xarray idr_rt;
};

struct ipc_ids {
	struct idr ipcs_idr;
};

struct ipc_namespace {
	struct ipc_ids ids[3]; /* semaphores, messages, shared memory */
};

struct nsproxy {
	struct ipc_namespace *ipc_ns;
};

struct kern_ipc_perm {
	int id;
};

struct sem {
	int semval;
	struct list_head pending_alter, pending_const;
};

struct sem_array {
	struct kern_ipc_perm sem_perm;
	struct list_head pending_alter, pending_const;
	int sem_nsems;
	struct sem sems[1]; /* of any length */
};

struct sem_queue {
	struct list_head list;
	struct task_struct *sleeper;
	void *sops;
	int nsops;
};

struct sem_undo_list {
	struct list_head list_proc;
};

struct sem_undo {
	struct list_head list_proc;
	int semid;
	short semadj[1]; /* of any length, since v6.5 */
};

struct sem_undo___apart { /* until v6.4 */
	short *semadj;
};

struct sysv_sem {
	struct sem_undo_list *undo_list;
};

struct rt_mutex_base { /* struct rt_mutex until v5.14, 830e6acc8a1c */
	struct rb_root_cached waiters;
};

struct rt_waiter_node {
	struct rb_node entry;
};

struct rt_mutex_waiter {
	struct rt_waiter_node tree; /* since v6.5, f7853c342418, and later releases of older ones */
	struct task_struct *task;
};

struct rt_mutex_waiter___plain {
	struct rb_node tree_entry;
};

struct futex_pi_state {
	struct list_head list;
	struct rt_mutex_base pi_mutex;
	struct task_struct *owner;
};

struct futex_sched_data {
	struct list_head pi_state_list;
};

struct io_uring_task {
	struct task_struct *task; /* since v6.13, b6f58a3f4aa8 */
};

struct io_kiocb {
	__u8 opcode;
	struct io_uring_task *tctx;
};

struct io_kiocb___task { /* until v6.12 */
	struct task_struct *task;
};

struct io_poll { /* struct io_poll_iocb until v5.19, 329061d3e2f9 */
	struct wait_queue_head *head;
	unsigned int events;
	struct wait_queue_entry wait;
};

struct io_poll_iocb {
	struct wait_queue_head *head;
	unsigned int events;
	struct wait_queue_entry wait;
};

struct perf_buffer {
	struct list_head event_list;
};

struct perf_event {
	struct list_head event_entry, rb_entry;
	struct perf_event *parent;
	struct perf_buffer *rb;
	struct wait_queue_head waitq;
};

struct perf_event_context {
	struct list_head event_list;
};

struct task_struct {
	unsigned int __state; /* since v5.14, 2f064a59a11f */
	int on_cpu; /* CONFIG_SMP */
	unsigned int flags;
	unsigned int policy, rt_priority;
	struct cpumask cpus_mask;
	struct cpumask *user_cpus_ptr; /* what the user asked for, since v6.2 8f9ea86fdf99 */
	int exit_state;
	int exit_signal;
	int pid, tgid;
	unsigned int ptrace;
	int pdeath_signal;
	__u64 parent_exec_id, self_exec_id; /* a parent that has since changed gets SIGCHLD */
	__u64 start_boottime;
	unsigned long maj_flt;
	struct sched_entity se;
	struct task_struct *real_parent, *parent, *group_leader; /* parent: the tracer */
	struct completion *vfork_done;
	sigset_t blocked, real_blocked;
	struct mm_struct *mm;
	const struct cred *cred;
	struct files_struct *files;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	struct sigpending pending;
	struct pid *thread_pid;
	struct css_set *cgroups;
	struct nsproxy *nsproxy;
	struct sysv_sem sysvsem;
	struct futex_sched_data futex;
	struct perf_event_context *perf_event_ctxp;
	char comm[16];
};

struct task_struct___futex { /* before v7.2, or v7.1 */
	struct list_head pi_state_list;
};

struct task_struct___contexts { /* until v6.1, bd2756811766 */
	struct perf_event_context *perf_event_ctxp[2]; /* of hardware, of software */
};

struct task_struct___state { /* until v5.13 */
	long state;
};

struct inet_sock {
	__be16 inet_sport; /* skc_num is 0 once the port is free */
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

struct bpf_iter_seq_task_file_info { /* until v5.10 */
	struct files_struct *files;
};

struct bpf_iter__task_vma { /* since v5.12, 3a7b35b899de */
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

#pragma clang attribute pop

#endif
