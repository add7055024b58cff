/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * inotify and fanotify: the last close of a file tells who watches it, its directory, or
 * with fanotify its mount or file system (fsnotify_close). Marks say what each group
 * wants to be told; who reads from a group sleeps on a queue of the group's.
 */
#ifndef BPFKILL_NOTIFY_H
#define BPFKILL_NOTIFY_H

#define S_IFMT 00170000
#define S_IFDIR 0040000
#define FMODE_READ 1
#define FMODE_WRITE 2
#define FS_CLOSE_WRITE 0x00000008
#define FS_CLOSE_NOWRITE 0x00000010
#define FS_EVENT_ON_CHILD 0x08000000
#define FS_ISDIR 0x40000000
#define FMODE_PATH (1 << 14) /* says nothing: since v6.10, and in stable releases of older ones */

static __always_inline __u64 push_marks(struct fsnotify_mark_connector *connector)
{
	if (connector)
		push_list((void *)connector +
				  bpf_core_field_offset(struct fsnotify_mark_connector, list.first),
			  (__u64)connector, LIST_MARKS);
	return (__u64)connector;
}

static __always_inline void emit_mark(void *at)
{
	struct fsnotify_mark *mark;
	struct fsnotify_group *group;
	__u32 mask;

	if (!bpf_core_type_exists(struct fsnotify_mark)) /* CONFIG_FSNOTIFY */
		return;
	mark = at - bpf_core_field_offset(struct fsnotify_mark, obj_list);
	group = BPF_CORE_READ(mark, group);
	mask = BPF_CORE_READ(mark, mask);
	if (!group || !(mask & (FS_CLOSE_WRITE | FS_CLOSE_NOWRITE)))
		return;
	begin_link(LINK_MARK, walk.queue.owner,
		   push_queue((void *)group +
			      bpf_core_field_offset(struct fsnotify_group, notification_waitq)));
	link.wanted = mask;
	write_link();
}

static __always_inline __u64 directory_marks(struct file *file, __u32 event)
{
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
	struct inode *directory;

	if (parent == dentry)
		return 0;
	directory = BPF_CORE_READ(parent, d_inode);
	event |= FS_EVENT_ON_CHILD;
	if ((BPF_CORE_READ(directory, i_fsnotify_mask) & event) != event)
		return 0;
	return push_marks(BPF_CORE_READ(directory, i_fsnotify_marks));
}

static __always_inline __u64 mount_marks(struct file *file, __u32 event)
{
	struct mount *mount =
		(void *)BPF_CORE_READ(file, f_path.mnt) - bpf_core_field_offset(struct mount, mnt);

	if (!(BPF_CORE_READ(mount, mnt_fsnotify_mask) & event))
		return 0;
	return push_marks(BPF_CORE_READ(mount, mnt_fsnotify_marks));
}

static __always_inline __u64 filesystem_marks(struct inode *inode, __u32 event)
{
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);

	if (!(BPF_CORE_READ(sb, s_fsnotify_mask) & event))
		return 0;
	if (bpf_core_field_exists(sb->s_fsnotify_info))
		return push_marks(BPF_CORE_READ(sb, s_fsnotify_info, sb_marks));
	return push_marks(BPF_CORE_READ((struct super_block___marks *)sb, s_fsnotify_marks));
}

/* Whether somebody is told when file is closed. */
static __always_inline bool fill_watched(struct descriptor_record *r, struct file *file,
					 struct inode *inode)
{
	__u32 event = file->f_mode & FMODE_WRITE ? FS_CLOSE_WRITE : FS_CLOSE_NOWRITE;

	if (!bpf_core_field_exists(inode->i_fsnotify_mask) || file->f_mode & FMODE_PATH)
		return false;
	if (inode->i_fsnotify_mask & event)
		r->own[0] = push_marks(BPF_CORE_READ(inode, i_fsnotify_marks));
	r->own[1] = directory_marks(file, event);
	r->wakes[0] = mount_marks(file, event);
	r->wakes[1] = filesystem_marks(inode, event);
	if (!(r->own[0] | r->own[1] | r->wakes[0] | r->wakes[1]))
		return false;
	r->kind = OBJECT_WATCHED;
	r->object_id = (__u64)file;
	r->inode = inode->i_ino;
	r->end = END_OPEN;
	r->wanted = event;
	if ((inode->i_mode & S_IFMT) == S_IFDIR)
		r->wanted |= FS_ISDIR;
	r->writers = 1;
	push_mappings(file);
	return true;
}

#endif
