#include "go_asm.h"
#include "textflag.h"

// A signal handler of a staged process: it marks the process woken. There is no
// Go runtime below it and no g. It returns to the kernel's own trampoline.
TEXT handler<>(SB),NOSPLIT|NOFRAME,$0
	MOVD	·handlerSlot(SB), R1
	MOVW	$1, R2
	MOVW	R2, const_slotWoken(R1)
	MOVW	R0, const_slotCatch(R1)
	RET

DATA	·handlerAddress(SB)/8, $handler<>(SB)
GLOBL	·handlerAddress(SB), RODATA, $8
DATA	·restorerAddress(SB)/8, $0
GLOBL	·restorerAddress(SB), RODATA, $8
