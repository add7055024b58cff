/* SPDX-License-Identifier: MIT OR GPL-2.0 */
#pragma once

/*
 * Since v7.0 (a46023d5616e) a tracepoint's program can be preempted, and whoever
 * reaches that tracepoint on the same CPU meanwhile is passed over. With preemption
 * off from the first instruction to the last the time in which that may happen is
 * a few instructions of the kernel's. The kfuncs are older (v6.10), and are not
 * called where tracepoints have preemption off by themselves.
 */
const volatile bool preemptible = false; /* set by the loader */

void bpf_preempt_disable(void) __weak __ksym;
void bpf_preempt_enable(void) __weak __ksym;

static __always_inline void hold_cpu(void)
{
	if (preemptible)
		bpf_preempt_disable();
}

static __always_inline void leave_cpu(void)
{
	if (preemptible)
		bpf_preempt_enable();
}
