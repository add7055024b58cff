/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Signals, and what a process does about them. */
#ifndef BPFKILL_SIGNAL_H
#define BPFKILL_SIGNAL_H

#define SIGHUP 1
#define SIGPIPE 13
#define SIGCHLD 17
#define SIGCONT 18
#define SIGURG 23
#define SIGWINCH 28
#define SIGNALS_MAX 64

#define CAP_KILL 5

#define SIG_DFL ((void *)0)
#define SIG_IGN ((void *)1)

static __always_inline struct k_sigaction *signal_slot(struct sighand_struct *sighand, __u32 sig)
{
	return (void *)sighand + bpf_core_field_offset(struct sighand_struct, action) +
	       (sig - 1) * bpf_core_type_size(struct k_sigaction);
}

#endif
