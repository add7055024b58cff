#include "textflag.h"

// func cloneOnto(flags, stackTop, birth, tls uintptr) uintptr
TEXT ·cloneOnto(SB),NOSPLIT|NOFRAME,$0-40
	MOVD	flags+0(FP), R0
	MOVD	stackTop+8(FP), R1
	MOVD	birth+16(FP), R19
	MOVD	tls+24(FP), R3
	MOVD	ZR, R2
	MOVD	ZR, R4
	MOVD	$220, R8 // clone
	SVC
	CBZ	R0, child
	MOVD	R0, ret+32(FP)
	RET
child:
	// On the new stack, with nothing to return to.
	SUB	$32, RSP
	MOVD	R19, 8(RSP)
	// By its address: the linker would take it for a recursion.
	MOVD	$·begin(SB), R0
	CALL	(R0)
	BRK	$0
