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
#define IPPROTO_TCP 6
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
	if (peer && (type == SOCK_STREAM || type == SOCK_SEQPACKET))
		r->wakes[0] = push_socket_queue(peer);
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
	__u64 pair = mix(mix(0, (__u64)sender), walk.queue.owner);
	__u64 queue;

	if (BPF_CORE_READ(sender, __sk_common.skc_family) != AF_UNIX ||
	    BPF_CORE_READ(sender, sk_wmem_alloc.refs.counter) * 4 <=
		    BPF_CORE_READ(sender, sk_sndbuf) ||
	    !first_visit(pair))
		return;
	queue = push_socket_queue(sender);
	if (queue)
		emit_link(LINK_ROOM, walk.queue.owner, queue, 0);
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

/* The names of a connection at this end and at the other: one's self is the
 * other's peer. */
static __always_inline void tcp_keys(struct sock *sk, __u64 *self, __u64 *peer)
{
	__u64 ns = (__u64)BPF_CORE_READ(sk, __sk_common.skc_net.net);
	struct in6_addr local = BPF_CORE_READ(sk, __sk_common.skc_v6_rcv_saddr);
	struct in6_addr remote = BPF_CORE_READ(sk, __sk_common.skc_v6_daddr);
	__u32 local4 = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	__u32 remote4 = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	__u16 local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	__u16 remote_port = BPF_CORE_READ(sk, __sk_common.skc_dport);

	remote_port = remote_port >> 8 | remote_port << 8;
	*self = mix_end(mix_end(ns, sk, &local, local4, local_port), sk, &remote, remote4,
			remote_port);
	*peer = mix_end(mix_end(ns, sk, &remote, remote4, remote_port), sk, &local, local4,
			local_port);
}

/* Whether a close sends something that wakes the other end: FIN where none was
 * sent yet, RST where data was not read. */
static __always_inline bool tcp_close_tells(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;
	__u32 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2)
		return BPF_CORE_READ(tp, rcv_nxt) != BPF_CORE_READ(tp, copied_seq);
	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

static __always_inline void fill_tcp(struct descriptor_record *r, struct sock *sk)
{
	r->kind = OBJECT_TCP;
	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
		push_list((void *)sk + bpf_core_field_offset(struct inet_connection_sock,
							     icsk_accept_queue.rskq_accept_head),
			  r->object_id, LIST_TCP_BACKLOG);
		return;
	}
	tcp_keys(sk, &r->self_key, &r->peer_key);
	if (!tcp_close_tells(sk))
		r->peer_key = 0;
}

static __always_inline void emit_tcp_backlog(void *at)
{
	struct request_sock *req = at - bpf_core_field_offset(struct request_sock, dl_next);
	struct sock *embryo = BPF_CORE_READ(req, sk);
	__u64 self, peer;

	if (!embryo || !tcp_close_tells(embryo))
		return;
	tcp_keys(embryo, &self, &peer);
	emit_link(LINK_KEY, walk.queue.owner, peer, 0);
}

/* Whether the end of the socket behind file can wake somebody. */
static __always_inline bool fill_socket(struct descriptor_record *r, struct file *file)
{
	struct socket *sock = BPF_CORE_READ(file, private_data);
	struct sock *sk = BPF_CORE_READ(sock, sk);
	__u32 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	short type = BPF_CORE_READ(sock, type);

	if (!sk)
		return false;
	r->object_id = (__u64)sk;
	if (family == AF_UNIX && bpf_core_type_exists(struct unix_sock))
		fill_unix(r, sk, type);
	else if ((family == AF_INET || family == AF_INET6) && type == SOCK_STREAM &&
		 BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP)
		fill_tcp(r, sk);
	else
		return false;
	r->own[0] = push_socket_queue(sk);
	r->end = END_OPEN;
	r->writers = 1;
	return true;
}

#endif
