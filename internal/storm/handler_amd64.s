#include "go_asm.h"
#include "textflag.h"

// A signal handler of a staged process: it marks the process woken. There is no
// Go runtime below it and no g.
TEXT handler<>(SB),NOSPLIT|NOFRAME,$0
	MOVQ	·handlerSlot(SB), AX
	MOVL	$1, const_slotWoken(AX)
	MOVL	DI, const_slotCatch(AX)
	RET

// The kernel has no trampoline of its own on this architecture.
TEXT restorer<>(SB),NOSPLIT|NOFRAME,$0
	MOVL	$15, AX // rt_sigreturn
	SYSCALL
	INT	$3

DATA	·handlerAddress(SB)/8, $handler<>(SB)
GLOBL	·handlerAddress(SB), RODATA, $8
DATA	·restorerAddress(SB)/8, $restorer<>(SB)
GLOBL	·restorerAddress(SB), RODATA, $8
