#include "textflag.h"

// func cloneThread(flags, stackTop, birth uintptr) uintptr
TEXT ·cloneThread(SB),NOSPLIT|NOFRAME,$0-32
	MOVQ	flags+0(FP), DI
	MOVQ	stackTop+8(FP), SI
	MOVQ	birth+16(FP), R12
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$56, AX // clone
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, ret+24(FP)
	RET
child:
	// On the new stack, with nothing to return to.
	ANDQ	$~15, SP
	SUBQ	$16, SP
	MOVQ	R12, 0(SP)
	// By its address: the linker would take it for a recursion.
	LEAQ	·threadMain(SB), AX
	CALL	AX
	INT	$3

// func enter(birth uintptr)
TEXT ·enter(SB),NOSPLIT|NOFRAME,$0-8
	MOVQ	birth+0(FP), R12
	MOVQ	R12, SP
	SUBQ	$16, SP
	MOVQ	R12, 0(SP)
	LEAQ	·childMain(SB), AX
	CALL	AX
	INT	$3
