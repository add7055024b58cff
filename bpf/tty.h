/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Pseudo-terminals: the end of one side hangs up the other. */
#ifndef BPFKILL_TTY_H
#define BPFKILL_TTY_H

#define MKDEV(major, minor) ((major) << 20 | (minor))
#define DEV_TTY MKDEV(5, 0)
#define DEV_PTMX MKDEV(5, 2)
#define PTY_SLAVE_MAJOR 136
#define PTY_SLAVE_MAJORS 8

static __always_inline struct pid *tty_pgrp(struct tty_struct *tty)
{
	if (bpf_core_field_exists(struct tty_struct___ctrl, ctrl))
		return BPF_CORE_READ((struct tty_struct___ctrl *)tty, ctrl.pgrp);
	return BPF_CORE_READ((struct tty_struct___plain *)tty, pgrp);
}

static __always_inline struct pid *tty_session(struct tty_struct *tty)
{
	if (bpf_core_field_exists(struct tty_struct___ctrl, ctrl))
		return BPF_CORE_READ((struct tty_struct___ctrl *)tty, ctrl.session);
	return BPF_CORE_READ((struct tty_struct___plain *)tty, session);
}

static __always_inline __u64 push_read_queue(struct tty_struct *tty)
{
	return push_queue((void *)tty + bpf_core_field_offset(struct tty_struct, read_wait));
}

static __always_inline __u64 push_write_queue(struct tty_struct *tty)
{
	return push_queue((void *)tty + bpf_core_field_offset(struct tty_struct, write_wait));
}

/* The device number of the inode says whether file can be a terminal. A pty's
 * last close wakes both queues of the other side; the master's hangs up the
 * session on the slave as well (pty_close). */
static __always_inline bool fill_tty(struct descriptor_record *r, struct file *file,
				     struct inode *inode)
{
	__u32 device = BPF_CORE_READ(inode, i_rdev);
	struct tty_file_private *private;
	struct tty_struct *tty, *link;

	if (device != DEV_PTMX && device != DEV_TTY &&
	    (device >> 20) - PTY_SLAVE_MAJOR >= PTY_SLAVE_MAJORS)
		return false;
	private = BPF_CORE_READ(file, private_data);
	tty = BPF_CORE_READ(private, tty);
	link = BPF_CORE_READ(tty, link);
	if (!link)
		return false;
	if (device == DEV_PTMX) {
		r->kind = OBJECT_PTY_MASTER;
		r->writers = 1;
		r->readers = BPF_CORE_READ(link, count) - 1; /* one is the master's */
		r->scope_id = (__u64)tty_session(link);
	} else {
		r->kind = OBJECT_PTY_SLAVE;
		r->writers = BPF_CORE_READ(tty, count) - 1;
		r->readers = BPF_CORE_READ(link, count);
	}
	r->object_id = (__u64)tty;
	r->inode = BPF_CORE_READ(tty, index);
	r->end = END_OPEN;
	r->own[0] = push_read_queue(tty);
	r->own[1] = push_write_queue(tty);
	r->wakes[0] = push_read_queue(link);
	r->wakes[1] = push_write_queue(link);
	return true;
}

#endif
