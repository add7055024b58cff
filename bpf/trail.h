/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * What a wake is about, told by the functions on the waker's kernel stack. The
 * loader writes down where those functions are that tell something.
 */
#ifndef BPFKILL_TRAIL_H
#define BPFKILL_TRAIL_H

#define TRAIL_DEPTH 64

/* Ascending by start; what is not used starts beyond every address. */
const volatile struct landmark landmarks[LANDMARKS_MAX] = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, TRAIL_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

/* The marks of the function that a call returns to. A call may be a function's
 * last instruction: what it returns to is then beyond the end. A global function,
 * which the verifier checks once, not once for each frame. */
__attribute__((noinline)) __u64 marks_of(__u64 return_address)
{
	__u64 ip = return_address - 1;
	__u32 step, at = 0;

	for (step = LANDMARKS_MAX / 2; step; step /= 2)
		if (landmarks[(at + step) % LANDMARKS_MAX].start <= ip)
			at += step;
	at %= LANDMARKS_MAX;
	return ip >= landmarks[at].start && ip < landmarks[at].end ? landmarks[at].marks : 0;
}

/*
 * Marks of the functions on the current stack, from the wake outwards as far as
 * the first that has one of the marks in *until*. Returns false when the stack
 * could not be read.
 */
static __always_inline bool read_trail(void *ctx, __u64 until, __u64 *trail)
{
	__u32 zero = 0;
	__u64 *ips = bpf_map_lookup_elem(&stacks, &zero);
	long size;
	int i;

	if (!ips)
		return false;
	size = bpf_get_stack(ctx, ips, TRAIL_DEPTH * sizeof(__u64), 0);
	if (size < 0)
		return false;
	*trail = 0;
	for (i = 0; i < TRAIL_DEPTH; i++) {
		if (i * (long)sizeof(__u64) >= size)
			break;
		*trail |= marks_of(ips[i]);
		if (*trail & until)
			break;
	}
	return true;
}

#endif
