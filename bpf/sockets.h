/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * Sockets: whom the end of one wakes. AF_UNIX sockets know their peer; the two
 * ends of a TCP connection on this machine name each other by addresses and
 * ports.
 */
#ifndef BPFKILL_SOCKETS_H
#define BPFKILL_SOCKETS_H

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_SEQPACKET 5
#define SOCK_LINGER 4 /* a bit of skc_flags */
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262
#define LOOPBACK 127 /* 127.0.0.0/8, in network order on a little-endian machine */
#define LOOPBACK_NET 255
#define V4_MAPPED 0xffff0000 /* the third word of ::ffff:0:0/96 */
#define TCP_ESTABLISHED 1
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_CLOSE_WAIT 8
#define TCP_LISTEN 10

/* The queue on which the users of a socket sleep, 0 until it is accepted. */
static __always_inline __u64 push_socket_queue(struct sock *sk)
{
	struct socket_wq *wq = BPF_CORE_READ(sk, sk_wq);

	return wq ? push_queue((void *)wq + bpf_core_field_offset(struct socket_wq, wait)) : 0;
}

/* unix_release_sock() wakes who waits for room in the socket, the users of its
 * peer where it is connected, and with the datagrams that it drops those who
 * wait until these were read. */
static __always_inline void fill_unix(struct descriptor_record *r, struct sock *sk, short type)
{
	struct unix_sock *u = (void *)sk;
	struct sock *peer = BPF_CORE_READ(u, peer);
	void *received = (void *)sk + bpf_core_field_offset(struct sock, sk_receive_queue);

	r->kind = OBJECT_UNIX;
	if (peer && (type == SOCK_STREAM || type == SOCK_SEQPACKET)) {
		r->wakes[0] = push_socket_queue(peer);
		/* unix_release_sock() leaves it closed */
		r->readers = BPF_CORE_READ(peer, __sk_common.skc_state) == TCP_ESTABLISHED;
	}
	if (BPF_CORE_READ((struct sk_buff_head *)received, next) != received)
		r->flags |= DESCRIPTOR_HIDES; /* messages may carry files */
	r->wakes[1] = push_queue((void *)u + bpf_core_field_offset(struct unix_sock, peer_wq.wait));
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		push_list(received, r->object_id, LIST_UNIX_BACKLOG);
	else if (type == SOCK_DGRAM)
		push_list(received, r->object_id, LIST_DATAGRAMS);
}

/* A listener takes the connections that it has not accepted with it. */
static __always_inline void emit_unix_backlog(void *at)
{
	struct sk_buff *skb = at - bpf_core_field_offset(struct sk_buff, next);
	struct unix_sock *embryo = (void *)BPF_CORE_READ(skb, sk);
	__u64 queue = push_socket_queue(BPF_CORE_READ(embryo, peer));

	if (queue)
		emit_link(LINK_QUEUE, walk.queue.owner, queue, 0);
}

static __always_inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 29;
}

/* A datagram that was not read counts as its sender's. Who waits to send is woken
 * when a quarter of the send buffer or less is full (unix_writable). */
static __always_inline void emit_datagram(void *at)
{
	struct sk_buff *skb = at - bpf_core_field_offset(struct sk_buff, next);
	struct sock *sender = BPF_CORE_READ(skb, sk);
	__u32 sent = BPF_CORE_READ(sender, sk_wmem_alloc.refs.counter);
	__u32 quarter = (__u32)BPF_CORE_READ(sender, sk_sndbuf) / 4;
	__u64 queue;

	if (BPF_CORE_READ(sender, __sk_common.skc_family) != AF_UNIX || sent <= quarter)
		return;
	queue = push_socket_queue(sender);
	if (!queue)
		return;
	begin_link(LINK_ROOM, walk.queue.owner, queue);
	link.freed = BPF_CORE_READ(skb, truesize);
	link.wanted = sent - quarter;
	write_link();
}

/* One end of a connection; IPv4 addresses are mapped to IPv6. */
static __always_inline __u64 mix_end(__u64 hash, struct sock *sk, struct in6_addr *v6, __u32 v4,
				     __u16 port)
{
	__u32 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u64 high = 0, low = (__u64)v4 << 32 | 0xffff0000;

	if (family == AF_INET6) {
		high = (__u64)v6->in6_u.u6_addr32[1] << 32 | v6->in6_u.u6_addr32[0];
		low = (__u64)v6->in6_u.u6_addr32[3] << 32 | v6->in6_u.u6_addr32[2];
	}
	return mix(mix(mix(hash, high), low), port);
}

static __always_inline bool same_address(struct in6_addr *a, struct in6_addr *b)
{
	return a->in6_u.u6_addr32[0] == b->in6_u.u6_addr32[0] &&
	       a->in6_u.u6_addr32[1] == b->in6_u.u6_addr32[1] &&
	       a->in6_u.u6_addr32[2] == b->in6_u.u6_addr32[2] &&
	       a->in6_u.u6_addr32[3] == b->in6_u.u6_addr32[3];
}

static __always_inline bool is_loopback4(__u32 address)
{
	return (address & LOOPBACK_NET) == LOOPBACK;
}

/* Whether the other end is in the same network namespace for certain: who connects to an
 * address of its own has that at both ends, unless it asks for another. Both ends get
 * the same answer. */
static __always_inline bool tcp_stays(struct sock *sk)
{
	__u32 local4 = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	__u32 remote4 = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	struct in6_addr local, remote;

	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET)
		return remote4 == local4 || is_loopback4(local4) || is_loopback4(remote4);
	local = BPF_CORE_READ(sk, __sk_common.skc_v6_rcv_saddr);
	remote = BPF_CORE_READ(sk, __sk_common.skc_v6_daddr);
	return same_address(&local, &remote) || (remote.in6_u.u6_addr32[2] == V4_MAPPED &&
						 (is_loopback4(local.in6_u.u6_addr32[3]) ||
						  is_loopback4(remote.in6_u.u6_addr32[3])));
}

/* The names of a connection at this end and at the other: one's self is the
 * other's peer. */
static __always_inline void tcp_keys(struct sock *sk, __u64 *self, __u64 *peer, __u64 *scope)
{
	__u64 ns = (__u64)BPF_CORE_READ(sk, __sk_common.skc_net.net);
	struct in6_addr local = BPF_CORE_READ(sk, __sk_common.skc_v6_rcv_saddr);
	struct in6_addr remote = BPF_CORE_READ(sk, __sk_common.skc_v6_daddr);
	__u32 local4 = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	__u32 remote4 = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	__u16 local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	__u16 remote_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	__u64 within = tcp_stays(sk) ? ns : 0;

	*scope = ns;
	remote_port = remote_port >> 8 | remote_port << 8;
	*self = mix_end(mix_end(within, sk, &local, local4, local_port), sk, &remote, remote4,
			remote_port);
	*peer = mix_end(mix_end(within, sk, &remote, remote4, remote_port), sk, &local, local4,
			local_port);
}

/* Whether a close sends RST at once: data was not read, or the owner asked for it
 * (SO_LINGER with no time; TCP_LINGER2, where only the other's FIN is to come). */
static __always_inline bool tcp_close_resets(struct sock *sk, __u32 state)
{
	struct tcp_sock *tp = (void *)sk;
	__u32 unread = BPF_CORE_READ(tp, rcv_nxt) - BPF_CORE_READ(tp, copied_seq);

	if (state == TCP_CLOSE_WAIT && unread)
		unread--; /* the FIN, which has a number as a byte has */
	if (unread || (state == TCP_FIN_WAIT2 && BPF_CORE_READ(tp, linger2) < 0))
		return true;
	return BPF_CORE_READ(sk, __sk_common.skc_flags) & (1UL << SOCK_LINGER) &&
	       !BPF_CORE_READ(sk, sk_lingertime);
}

/* Whether a close sends something that wakes the other end: RST, or FIN where none was
 * sent yet, which waits behind what the other end has no room for
 * (tcp_snd_wnd_test). */
static __always_inline bool tcp_close_tells(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;
	__u32 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	__u32 unacknowledged = BPF_CORE_READ(tp, write_seq) - BPF_CORE_READ(tp, snd_una);
	bool resets = tcp_close_resets(sk, state);

	if (state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2)
		return resets;
	if (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT)
		return false;
	return resets || unacknowledged < BPF_CORE_READ(tp, snd_wnd);
}

/* Whether the other end is on this machine for certain, and tells of its own end. */
static __always_inline bool tcp_peer_is_here(struct sock *sk)
{
	__u32 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return (state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2) &&
	       tcp_stays(sk);
}

static __always_inline void push_tcp_backlog(struct sock *sk, __u64 owner)
{
	push_list((void *)sk + bpf_core_field_offset(struct inet_connection_sock,
						     icsk_accept_queue.rskq_accept_head),
		  owner, LIST_TCP_BACKLOG);
}

static __always_inline void fill_tcp(struct descriptor_record *r, struct sock *sk)
{
	r->kind = OBJECT_TCP;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
		push_tcp_backlog(sk, r->object_id);
		return;
	}
	tcp_keys(sk, &r->self_key, &r->peer_key, &r->scope_id);
	r->readers = tcp_peer_is_here(sk);
	if (!tcp_close_tells(sk))
		r->flags |= DESCRIPTOR_SILENT;
}

/* Who connects to a listener for MPTCP by TCP alone is in the accept queue of its
 * subflow, and MPTCP's own connections are there, too. */
static __always_inline bool fill_mptcp(struct descriptor_record *r, struct sock *sk)
{
	struct mptcp_sock *msk = (void *)sk;

	if (!bpf_core_field_exists(msk->first) ||
	    BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return false;
	r->kind = OBJECT_TCP;
	push_tcp_backlog(BPF_CORE_READ(msk, first), r->object_id);
	return true;
}

static __always_inline void emit_tcp_backlog(void *at)
{
	struct request_sock *req = at - bpf_core_field_offset(struct request_sock, dl_next);
	struct sock *embryo = BPF_CORE_READ(req, sk);
	__u64 self, peer, scope;

	if (!embryo || !tcp_close_tells(embryo))
		return;
	tcp_keys(embryo, &self, &peer, &scope);
	emit_link(LINK_KEY, walk.queue.owner, peer, scope);
}

/* Whether the end of the socket behind file can wake somebody. */
static __always_inline bool fill_socket(struct descriptor_record *r, struct file *file)
{
	struct socket *sock = BPF_CORE_READ(file, private_data);
	struct sock *sk = BPF_CORE_READ(sock, sk);
	__u32 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	short type = BPF_CORE_READ(sock, type);
	__u16 protocol;

	if (!sk)
		return false;
	protocol = BPF_CORE_READ(sk, sk_protocol);
	r->object_id = (__u64)sk;
	if (family == AF_UNIX && bpf_core_type_exists(struct unix_sock))
		fill_unix(r, sk, type);
	else if ((family != AF_INET && family != AF_INET6) || type != SOCK_STREAM)
		return false;
	else if (protocol == IPPROTO_TCP)
		fill_tcp(r, sk);
	else if (protocol != IPPROTO_MPTCP || !fill_mptcp(r, sk))
		return false;
	r->own[0] = push_socket_queue(sk);
	r->end = END_OPEN;
	r->writers = 1;
	return true;
}

#endif
