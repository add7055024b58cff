#include "textflag.h"

// func cloneThread(flags, stackTop, birth uintptr) uintptr
TEXT ·cloneThread(SB),NOSPLIT|NOFRAME,$0-32
	MOVD	flags+0(FP), R0
	MOVD	stackTop+8(FP), R1
	MOVD	birth+16(FP), R19
	MOVD	ZR, R2
	MOVD	ZR, R3
	MOVD	ZR, R4
	MOVD	$220, R8 // clone
	SVC
	CBZ	R0, child
	MOVD	R0, ret+24(FP)
	RET
child:
	// On the new stack, with nothing to return to.
	SUB	$32, RSP
	MOVD	R19, 8(RSP)
	// By its address: the linker would take it for a recursion.
	MOVD	$·threadMain(SB), R0
	CALL	(R0)
	BRK	$0

// func enter(birth uintptr)
TEXT ·enter(SB),NOSPLIT|NOFRAME,$0-8
	MOVD	birth+0(FP), R19
	MOVD	R19, RSP
	SUB	$32, RSP
	MOVD	R19, 8(RSP)
	MOVD	$·childMain(SB), R0
	CALL	(R0)
	BRK	$0
