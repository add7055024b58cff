/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Who hung up on a TCP connection within this machine. The peer wakes when the
 * segment arrives: in a software interrupt, on whichever process's stack, or in
 * ksoftirqd. Its socket's change of state comes just before, on the same CPU.
 */
#ifndef BPFKILL_HANGUP_H
#define BPFKILL_HANGUP_H

#define AF_INET 2
#define AF_INET6 10

/* include/net/tcp_states.h; the numbers are those of /proc/net/tcp. */
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9

struct address { /* IPv6, or IPv4 in its mapped form */
	__u8 bytes[16];
};

/* Of a connection, as one of its two sockets sees it. The network namespace is
 * not looked at: the two sockets may be in different ones. */
struct endpoints {
	struct address local, remote;
	__be16 local_port, remote_port;
	__u32 pad;
};

struct closer {
	__u64 start_ns;
	__s32 tgid;
	__u32 pad;
};

struct hangup {
	struct closer by; /* tgid 0: nobody */

	/* Which change of state this CPU took note of last: the copies of the program
	 * that come after the one that did need not do it again. */
	__u64 sk, task;
	__u32 state;
	__u32 pad;
};

/* Connections closed by the dying, as their peers see them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384); /* set by the loader */
	__type(key, struct endpoints);
	__type(value, struct closer);
} closed SEC(".maps");

/* The last change of state of a TCP socket on each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct hangup);
} hangups SEC(".maps");

__u64 any_hangup = 0;

static __always_inline struct address mapped(__be32 ipv4)
{
	struct address a = {.bytes = {[10] = 0xff, [11] = 0xff}};

	__builtin_memcpy(&a.bytes[12], &ipv4, sizeof(ipv4));
	return a;
}

static __always_inline bool read_endpoints(struct sock *sk, struct endpoints *e)
{
	switch (BPF_CORE_READ(sk, __sk_common.skc_family)) {
	case AF_INET:
		e->local = mapped(BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		e->remote = mapped(BPF_CORE_READ(sk, __sk_common.skc_daddr));
		break;
	case AF_INET6:
		BPF_CORE_READ_INTO(&e->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&e->remote, sk, __sk_common.skc_v6_daddr);
		break;
	default:
		return false;
	}
	e->local_port = BPF_CORE_READ((struct inet_sock *)sk, inet_sport);
	e->remote_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	return e->remote_port != 0;
}

/* Returns false when there is no space to remember that a process closed sk. */
static __always_inline bool record_close(struct endpoints *own, struct closer *by)
{
	struct endpoints peer = {
		.local = own->remote,
		.remote = own->local,
		.local_port = own->remote_port,
		.remote_port = own->local_port,
	};

	return !bpf_map_update_elem(&closed, &peer, by, BPF_ANY);
}

/* This CPU's. */
static __always_inline struct hangup *last_hangup(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&hangups, &zero);
}

static __always_inline void record_hangup(struct closer *by)
{
	struct hangup *h = last_hangup();

	if (!h)
		return;
	h->by.tgid = 0;
	if (!by)
		return;
	h->by = *by;
	any_hangup = 1;
}

static __always_inline bool noted(struct sock *sk, struct task_struct *task, __u32 state)
{
	struct hangup *h = last_hangup();

	return h && h->sk == (__u64)sk && h->task == (__u64)task && h->state == state;
}

static __always_inline void note(struct sock *sk, struct task_struct *task, __u32 state)
{
	struct hangup *h = last_hangup();

	if (!h)
		return;
	h->sk = (__u64)sk;
	h->task = (__u64)task;
	h->state = state;
}

/* This CPU begins to work on a packet. What another did to a socket is over: not every
 * packet that wakes somebody changes a state. */
static __always_inline void forget_hangup(void)
{
	struct hangup *h;

	if (!any_hangup)
		return;
	h = last_hangup();
	if (h)
		h->by.tgid = 0;
}

/* Who closed the connection whose segment this CPU is working on, NULL for
 * nobody that is dying. */
static __always_inline struct closer *hung_up_by(void)
{
	struct hangup *h;

	if (!any_hangup)
		return 0;
	h = last_hangup();
	return h && h->by.tgid ? &h->by : 0;
}

#endif
