#include "textflag.h"

// func cloneOnto(flags, stackTop, birth, tls uintptr) uintptr
TEXT ·cloneOnto(SB),NOSPLIT|NOFRAME,$0-40
	MOVQ	flags+0(FP), DI
	MOVQ	stackTop+8(FP), SI
	MOVQ	birth+16(FP), R12
	MOVQ	tls+24(FP), R8
	XORL	DX, DX
	XORL	R10, R10
	MOVL	$56, AX // clone
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, ret+32(FP)
	RET
child:
	// On the new stack, with nothing to return to.
	ANDQ	$~15, SP
	SUBQ	$16, SP
	MOVQ	R12, 0(SP)
	// By its address: the linker would take it for a recursion.
	LEAQ	·begin(SB), AX
	CALL	AX
	INT	$3
