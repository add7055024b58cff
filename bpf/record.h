/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What crosses between the kernel side and Go. Every struct is free of
 * implicit padding, so that records compare and copy as bytes. Fields named
 * *_id are kernel addresses used as opaque names: they are never shown.
 */
#ifndef BPFKILL_RECORD_H
#define BPFKILL_RECORD_H

#define COMM_LEN 16

/* What a process does with one signal. */
#define SIGNAL_CAUGHT 1
#define SIGNAL_IGNORED 2
#define SIGNAL_NOCLDWAIT 4 /* SIGCHLD with SA_NOCLDWAIT */
#define SIGNAL_NOCLDSTOP 8 /* SIGCHLD with SA_NOCLDSTOP */

/* iter/task: one for each thread group, and one for each further thread that may
 * get what its leader does not: see write_thread(). Times are nanoseconds since
 * boot. */
struct process_record {
	__u64 start_ns;
	__u64 parent_start_ns, tracer_start_ns, vfork_caller_start_ns;
	__u64 cgroup_id;
	__u64 pid_id, pgrp_id; /* struct pid of the process and of its group */
	__u64 namespace_id; /* its own pid namespace */
	__u64 child_queue, signal_queue, exit_queue; /* wait4, signalfd, pidfd */
	__u64 tty_pgrp_id; /* a session leader's: the foreground group it would hang up */
	__u64 blocked; /* signals */
	__u64 real_blocked; /* and those of sigtimedwait in progress, which are not */
	__s64 rss_pages;
	__s64 swap_pages;
	__s32 tgid, parent, tracer; /* in the initial pid namespace */
	__s32 vfork_caller; /* who waits in vfork, 0: nobody */
	__s32 pid, ppid, pgid, sid; /* in the reader's pid namespace, 0: not there */
	__u32 uid, euid, suid;
	__u32 state; /* task_struct.__state */
	__u32 exit_state;
	__s32 threads;
	__s32 exit_signal;
	__s32 pdeath_signal;
	__u16 flags; /* PROCESS_* */
	__u8 sighup, sigchld, sigcont, sigpdeath; /* SIGNAL_* */
	__u8 sigexit; /* what the parent does with exit_signal */
	__u8 sigpipe;
	char comm[COMM_LEN];
};

#define PROCESS_KTHREAD 1
#define PROCESS_NS_INIT 2
#define PROCESS_READER 4 /* the process that runs the iterator */
#define PROCESS_THREAD 8 /* not the leader */
#define PROCESS_SUBREAPER 16
#define PROCESS_EXITKILL 64 /* its tracer's death kills it */
#define PROCESS_OUTSIDE 128 /* not in the reader's namespace: somebody's parent */
#define PROCESS_STOPPED 256 /* all of it, by a signal */
#define PROCESS_EXITING 512 /* this thread takes no signals any more */
#define PROCESS_OF_THREAD 1024 /* its parent is a thread, and not the leader */
#define PROCESS_CAP_KILL 2048

/* iter/task: one for each thread of the doomed that has not exited. Masks have
 * a bit for each CPU. */
#define CPU_WORDS 16 /* 1024 CPUs */

struct thread_record {
	__u64 start_ns; /* of the thread group leader */
	__u64 allowed[CPU_WORDS]; /* where it may run now */
	__u64 wanted[CPU_WORDS]; /* what to set to undo a change */
	__s32 tgid; /* in the initial pid namespace */
	__s32 tid, pid, pgid, sid; /* in the reader's pid namespace, 0: not there */
	__u32 policy; /* SCHED_* */
	__u32 rt_priority;
	__u32 state; /* task_struct.__state */
};

/* iter/task_vma: one for each mapping through which a doomed process could hold a
 * robust mutex that others see: shared and writable, of a file or of shmem. */
struct mapping_record {
	__u64 start_ns; /* of the thread group leader */
	__u64 object_id; /* what is mapped */
	__u64 address; /* in the process: tells its mappings apart */
	__s32 tgid;
	__s32 count; /* the kernel's, of such mappings of the object */
};

/* iter/task_file: one for each descriptor whose end can wake somebody. */
struct descriptor_record {
	__u64 start_ns; /* of the thread group leader */
	__u64 file_id;
	__u64 table_id;
	__u64 object_id;
	__u64 inode;
	__s64 file_refs; /* without the iterator's own */
	/* OBJECT_WATCHED: marks on the file and its directory, its mount and file system. */
	__u64 own[2]; /* wait queues of the object itself */
	__u64 wakes[2]; /* further ones that its end wakes */
	__u64 self_key, peer_key; /* TCP: a connection as each of its ends names it */
	/* Master of a terminal: struct pid of the session on it. TCP: network namespace. */
	__u64 scope_id;
	__s32 tgid;
	__s32 fd;
	__u32 table_users; /* tasks that share the descriptor table */
	__u32 wanted; /* OBJECT_WATCHED: what marks must ask for, FS_CLOSE_* */
	/* The kernel's counts of files on each side of a pipe. Others: writers are those of
	 * the object, readers those of the other end where only its end wakes who sleeps here. */
	__u32 readers, writers;
	__u8 kind; /* OBJECT_* */
	__u8 end; /* END_* */
	__u8 flags; /* DESCRIPTOR_* */
	__u8 pad[5];
};

#define DESCRIPTOR_HIDES 1 /* may hold files that are in no descriptor table */
#define DESCRIPTOR_SILENT 2 /* TCP: its end tells the other side nothing */
#define DESCRIPTOR_EAGER 4 /* pipes: a write that is interrupted tells who polls for data */

#define OBJECT_PIPE 1
#define OBJECT_FIFO 2
#define OBJECT_UNIX 3
#define OBJECT_TCP 4
#define OBJECT_PTY_MASTER 5
#define OBJECT_PTY_SLAVE 6
#define OBJECT_LOCKED 7 /* a file on which somebody waits for a lock */
#define OBJECT_RING 8 /* an io_uring */
#define OBJECT_WATCHED 9 /* a file of whose close somebody is told */

#define END_READ 1
#define END_WRITE 2
#define END_OPEN 4 /* all there is to the others */

/* Ring buffer: one for each entry of a wait queue. Queues go by the address of
 * their list head. */
struct sleeper_record {
	__u64 entry_id; /* tells an entry that was read twice */
	__u64 queue_id;
	__u64 link_id; /* see VIA_* */
	__u64 start_ns;
	__s32 tgid;
	__u32 events; /* EPOLL* that end the wait; plain: 0 */
	__u8 via;
	__u8 exclusive;
	__u8 keeps; /* VIA_CHILD*: does not reap whom it waits for */
	__u8 holds_sigpipe; /* the thread has it blocked */
	__u8 writes; /* VIA_OTHER: a request of an io_uring that writes to a file */
	__u8 pad[3];
	char comm[COMM_LEN]; /* for those outside the reader's namespace */
};

#define VIA_PLAIN 0
#define VIA_POLL 1 /* link_id: file_id */
#define VIA_EPOLL 2 /* no sleeper: whoever sleeps on queue link_id wakes, too */
#define VIA_OTHER 3
#define VIA_RELAY 4 /* like VIA_EPOLL, without an epoll instance in between */
#define VIA_CHILD 5 /* wait4, waitid: for any child */
#define VIA_CHILD_PID 6 /* link_id: pid_id of the child */
#define VIA_CHILD_PGRP 7 /* link_id: pgrp_id of the child */

/* Ring buffer: the end of from wakes the sleepers of to. */
struct link_record {
	__u64 from;
	__u64 to;
	__u64 inode;
	__u32 kind; /* LINK_* */
	__s32 tgid; /* of who maps a file, owns a mutex, or is measured */
	__u32 freed; /* LINK_ROOM: bytes that go with one datagram; LINK_SEM_*: which one */
	__u32 wanted; /* LINK_ROOM: bytes that must go; LINK_MARK: FS_*; LINK_SEM_*: a value */
};

#define LINK_QUEUE 1 /* from an object to a queue */
#define LINK_KEY 2 /* from an object to a TCP connection's end, by its key; inode: scope_id */
#define LINK_LOCK_TABLE 3 /* from a lock to its owner, a descriptor table */
#define LINK_LOCK_FILE 4 /* from a lock to its owner, a file */
#define LINK_LOCK_WAITER 5 /* from a blocked request to the queue of who waits for it */
#define LINK_LOCK_BLOCKED 6 /* from a lock or a blocked request to the queue behind it */
#define LINK_ROOM 7 /* from an object to a queue, for those there who wait to send */
#define LINK_MAPPED 8 /* from a file to the start of the process that maps it */
#define LINK_MARK 9 /* from what is watched to the queue of who is told */
#define LINK_SEM_UNDOER 10 /* from an undo list to the start of one whose exit undoes it */
#define LINK_SEM_UNDO 11 /* from an undo list to a set; inode: the set's id */
#define LINK_SEM_VALUE 12 /* from a set: what one of its semaphores is */
#define LINK_SEM_OPERATION 13 /* from a set to who waits; inode: which operation, of tgid */
#define LINK_PI_OWNER 14 /* from a mutex, and the queue of who waits for it, to the owner's start */
#define LINK_EVENT_OWNER 15 /* from a buffer of perf events to the start of who is measured */
#define LINK_EVENT_QUEUE 16 /* from such a buffer to a queue of who polls there */

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
	__u64 early_ns; /* last woken by another's death before its signal */
	__u64 exit_ns; /* the last thread is exiting */
	__u64 gone_ns; /* the last thread left its CPU for good, memory and files released */
	__s32 waker; /* tgid of the dying process that woke it early */
	__u8 inherited; /* a child forked in the race */
	__u8 woken; /* slept when recording began, then woken by anybody before its signal */
	__u8 tripped; /* killed by the tripwire */
	__u8 returned; /* woken, and left for user mode */
};

/* A fork seen by the tracker, by the child's tgid. */
struct forked {
	__u64 start_ns;
	__u64 parent_start_ns;
	__s32 parent;
	__u8 has_children;
	__u8 exited;
	__u8 pad[2];
};

/* The plan as the batch engine walks it. */
struct victim {
	__u64 start_ns;
	__s32 tgid;
	__s32 status; /* VICTIM_*, or a negative errno */
};

#define VICTIM_PENDING 0
#define VICTIM_SIGNALLED 1

/* A function that says something when a wake comes from inside it. */
struct landmark {
	__u64 start, end; /* addresses, end excluded */
	__u64 marks; /* MARK_*, and the loader's own bits above them */
};

#define LANDMARKS_MAX 128 /* a power of two */

#define MARK_EXIT 1 /* where a process exits */
#define MARK_INTERRUPT 2 /* where interrupts and exceptions enter the kernel */
#define MARK_SOFTIRQ 4 /* where deferred interrupt work runs, on anybody's stack */
#define MARK_KERNEL 8 /* hands on a lock or a page of the kernel's own */
#define MARK_TCP_RECEIVE 16 /* takes a segment for a TCP socket */
#define MARK_NOTIFY_PARENT 32 /* tells a parent, and whoever polls a pidfd */
#define MARK_WAIT 64 /* no function's: the wakee waits for its children */
#define MARK_TCP 128 /* sends on a TCP socket, closes it, or reads from it */
#define MARK_QUEUE 256 /* wakes whoever is in a wait queue; never in a trail */
#define MARK_PIDFD 512 /* tells whoever polls a pidfd */

/* Wakes, counted in the kernel by who caused them, who woke, and through what. */
struct wake_key {
	__u64 cause_start_ns;
	__u64 wakee_start_ns;
	__s32 cause;
	__s32 wakee;
	__u64 trail; /* marks on the waker's stack */
};

/* How often, and what came of it until the woken threads slept again. */
struct wake {
	__u64 count;
	__u64 again; /* after an earlier one the thread had returned to user mode */
	__u64 ended; /* slept again, or exited */
	__u64 returned; /* went back to user mode meanwhile */
	__u64 major_faults;
	__u64 swap_ins; /* faults on swapped-out pages */
	__u64 cpu_ns;
	char comm[COMM_LEN]; /* the wakee's */
};

/* A woken thread that has not slept again, by its id. */
struct followed {
	struct wake_key key;
	__u64 cpu_ns; /* the thread's counters when it was woken */
	__u64 major_faults;
	__u64 swap_ins; /* since then */
	__u8 stopped; /* was in no system call */
	__u8 returned;
	__u8 pad[6];
};

/* A watched process, by tgid. */
struct watched {
	__u64 start_ns;
	__u64 exited_ns; /* bpf_ktime_get_ns(), 0 for not yet */
	__u8 selected; /* by the user */
	__u8 met; /* woken by one that is */
	__u8 pad[6];
};

/* A process that the benchmark looks at, by tgid. Times are bpf_ktime_get_ns(), 0
 * for not yet. */
struct timed {
	__u64 start_ns;
	__u64 signalled_ns; /* SIGKILL generated */
	__u64 ran_ns; /* first got a CPU after the first signal to any of them */
	__u64 gone_ns; /* its last thread left the CPU for good */
};

/* Who wakes whom, by wake_key. Names are those of the first time. */
struct contact {
	__u64 count;
	char waker[COMM_LEN];
	char wakee[COMM_LEN];
};

#endif
