/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What crosses between the kernel side and Go. Every struct is free of
 * implicit padding, so that records compare and copy as bytes. Fields named
 * *_id are kernel addresses used as opaque names: they are never shown.
 */
#ifndef BPFKILL_RECORD_H
#define BPFKILL_RECORD_H

#define COMM_LEN 16

/* iter/task: one for each thread group. Times are nanoseconds since boot. */
struct process_record {
	__u64 start_ns;
	__u64 cgroup_id;
	__s64 rss_pages;
	__s64 swap_pages;
	__s32 tgid; /* in the initial pid namespace */
	__s32 pid, ppid, pgid, sid; /* in the reader's pid namespace, 0: not there */
	__u32 uid, euid, suid;
	__u32 state; /* task_struct.__state */
	__u32 exit_state;
	__s32 threads;
	__s32 pdeath_signal;
	__u8 sigchld; /* 0 default, 1 ignored, 2 caught */
	__u8 flags; /* PROCESS_* */
	__u8 pad[6];
	char comm[COMM_LEN];
};

#define PROCESS_KTHREAD 1
#define PROCESS_NS_INIT 2
#define PROCESS_READER 4 /* the process that runs the iterator */

/* iter/task_file: one for each descriptor that can wake somebody. */
struct descriptor_record {
	__u64 start_ns; /* of the thread group leader */
	__u64 file_id;
	__u64 table_id;
	__u64 object_id;
	__u64 inode;
	__s64 file_refs; /* without the iterator's own */
	__s32 tgid;
	__s32 fd;
	__u32 table_users; /* tasks that share the descriptor table */
	__u32 readers, writers; /* the kernel's counts of files */
	__u8 kind; /* OBJECT_* */
	__u8 end; /* END_* */
	__u8 pad[2];
};

#define OBJECT_PIPE 1
#define OBJECT_FIFO 2

#define END_READ 1
#define END_WRITE 2

/* Ring buffer: one for each entry of a wait queue. An epoll entry names the
 * instance in link_id; the instance's own sleepers follow with that as
 * object_id. */
struct sleeper_record {
	__u64 entry_id; /* tells an entry that was read twice */
	__u64 object_id;
	__u64 link_id; /* VIA_EPOLL: epoll instance; VIA_POLL: file_id */
	__u64 start_ns;
	__s32 tgid;
	__u8 via;
	__u8 exclusive;
	__u8 pad[2];
	char comm[COMM_LEN]; /* for those outside the reader's namespace */
};

#define VIA_PLAIN 0
#define VIA_POLL 1
#define VIA_EPOLL 2
#define VIA_OTHER 3

/* What a walk could not read. */
struct walk_counts {
	__u64 truncated; /* queues with more sleepers than the limit */
	__u64 raced; /* queues that changed under the walk until it gave up */
	__u64 dropped; /* records or queues lost for want of space */
};

/* The doomed: one for each member of the kill set, by tgid. Times are
 * bpf_ktime_get_ns(), 0 for not yet. Several CPUs write to one: each field has
 * a byte or word of its own and is only ever set. */
struct doomed {
	__u64 start_ns;
	__u64 generated_ns; /* SIGKILL generated */
	__u64 delivered_ns; /* SIGKILL delivered */
	__u64 early_ns; /* first woken by another's death, before its signal */
	__u64 exit_ns; /* the last thread is exiting */
	__s32 waker; /* tgid of the dying process that woke it early */
	__u8 inherited; /* a child forked in the race */
	__u8 woken; /* slept at the opening, then woken by anybody before its signal */
	__u8 tripped; /* killed by the tripwire */
	__u8 returned; /* woken, and left for user mode */
};

/* A fork seen by the tracker, by the child's tgid. */
struct forked {
	__u64 start_ns;
	__u64 parent_start_ns;
	__s32 parent;
	__u8 has_children;
	__u8 pad[3];
};

/* The plan as the batch engine walks it. */
struct victim {
	__u64 start_ns;
	__s32 tgid;
	__s32 status; /* VICTIM_*, or a negative errno */
};

#define VICTIM_PENDING 0
#define VICTIM_SIGNALLED 1

/* Wakes, counted in the kernel by who caused them, who woke, and where. */
struct wake_key {
	__s32 cause;
	__s32 wakee;
	__s32 stack; /* index into the stack map, negative: none */
	__u32 pad;
};

struct wake {
	__u64 count;
	__u64 wakee_start_ns;
	char comm[COMM_LEN];
};

#endif
