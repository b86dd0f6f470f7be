#include "textflag.h"

// SHA-256 (FIPS 180-4) of sixteen pages at once: lane k of every register belongs
// to page k. A state word is a register of sixteen words, and so is a word of the
// message, which a transposition makes of sixteen rows.
//
// Z0 to Z15 hold the message schedule, Z16 to Z23 the state a to h, Z24 to Z27 are
// free.

DATA swap<>+0(SB)/8, $0x0405060700010203
DATA swap<>+8(SB)/8, $0x0c0d0e0f08090a0b
DATA swap<>+16(SB)/8, $0x0405060700010203
DATA swap<>+24(SB)/8, $0x0c0d0e0f08090a0b
DATA swap<>+32(SB)/8, $0x0405060700010203
DATA swap<>+40(SB)/8, $0x0c0d0e0f08090a0b
DATA swap<>+48(SB)/8, $0x0405060700010203
DATA swap<>+56(SB)/8, $0x0c0d0e0f08090a0b
GLOBL swap<>(SB), RODATA|NOPTR, $64

// LOAD reads 64 bytes at BX of page n.
#define LOAD(n, z) \
	MOVQ      (8*n)(DI), R8; \
	VMOVDQU32 (R8)(BX*1), z

// UNPACK32 and UNPACK64 interleave a and b by words and by pairs of words: a gets
// the low halves of each 128 bits, b the high ones.
#define UNPACK32(a, b) \
	VPUNPCKLDQ b, a, Z24; \
	VPUNPCKHDQ b, a, b;   \
	VMOVDQA32  Z24, a

#define UNPACK64(a, b) \
	VPUNPCKLQDQ b, a, Z24; \
	VPUNPCKHQDQ b, a, b;   \
	VMOVDQA32   Z24, a

// GATHER collects the 128-bit parts of one column from four groups of rows, and
// turns the bytes of words about.
#define GATHER(a, b, c, d) \
	VSHUFI32X4 $0x88, b, a, Z24;   \
	VSHUFI32X4 $0xdd, b, a, Z25;   \
	VSHUFI32X4 $0x88, d, c, Z26;   \
	VSHUFI32X4 $0xdd, d, c, Z27;   \
	VSHUFI32X4 $0x88, Z26, Z24, a; \
	VSHUFI32X4 $0x88, Z27, Z25, b; \
	VSHUFI32X4 $0xdd, Z26, Z24, c; \
	VSHUFI32X4 $0xdd, Z27, Z25, d; \
	VPSHUFB    swap<>(SB), a, a;   \
	VPSHUFB    swap<>(SB), b, b;   \
	VPSHUFB    swap<>(SB), c, c;   \
	VPSHUFB    swap<>(SB), d, d

// SCHEDULE makes the word sixteen ahead of w0.
#define SCHEDULE(w0, w1, w9, w14) \
	VPRORD     $7, w1, Z24;          \
	VPRORD     $18, w1, Z25;         \
	VPSRLD     $3, w1, Z26;          \
	VPTERNLOGD $0x96, Z25, Z26, Z24; \
	VPADDD     w9, w0, w0;           \
	VPADDD     Z24, w0, w0;          \
	VPRORD     $17, w14, Z24;        \
	VPRORD     $19, w14, Z25;        \
	VPSRLD     $10, w14, Z26;        \
	VPTERNLOGD $0x96, Z25, Z26, Z24; \
	VPADDD     Z24, w0, w0

// MIX is a round with the sum of constant and word in Z27. Its h is the next a.
#define MIX(a, b, c, d, e, f, g, h) \
	VPRORD     $6, e, Z24;           \
	VPRORD     $11, e, Z25;          \
	VPRORD     $25, e, Z26;          \
	VPTERNLOGD $0x96, Z25, Z26, Z24; \
	VPADDD     Z27, h, h;            \
	VMOVDQA32  e, Z25;               \
	VPTERNLOGD $0xca, g, f, Z25;     \
	VPADDD     Z24, h, h;            \
	VPADDD     Z25, h, h;            \
	VPADDD     h, d, d;              \
	VPRORD     $2, a, Z24;           \
	VPRORD     $13, a, Z25;          \
	VPRORD     $22, a, Z26;          \
	VPTERNLOGD $0x96, Z25, Z26, Z24; \
	VMOVDQA32  a, Z25;               \
	VPTERNLOGD $0xe8, c, b, Z25;     \
	VPADDD     Z24, h, h;            \
	VPADDD     Z25, h, h

#define ROUND(a, b, c, d, e, f, g, h, w, n) \
	VPADDD.BCST (4*n)(SI), w, Z27; \
	MIX(a, b, c, d, e, f, g, h)

#define LASTROUND(a, b, c, d, e, f, g, h, n) \
	VPBROADCASTD (4*n)(SI), Z27; \
	MIX(a, b, c, d, e, f, g, h)

// func sumPages16(state *[8][16]uint32, pages *[16]*byte, k, last *[64]uint32)
//
// state is the initial one and becomes that of each page. k are the constants of
// the rounds; last are those with the schedule of the last block added, which is
// padding alone and the same for every page.
TEXT ·sumPages16(SB), NOSPLIT, $512-32
	MOVQ state+0(FP), AX
	MOVQ pages+8(FP), DI
	XORQ BX, BX
	VMOVDQU32 0(AX), Z16
	VMOVDQU32 64(AX), Z17
	VMOVDQU32 128(AX), Z18
	VMOVDQU32 192(AX), Z19
	VMOVDQU32 256(AX), Z20
	VMOVDQU32 320(AX), Z21
	VMOVDQU32 384(AX), Z22
	VMOVDQU32 448(AX), Z23

block:
	MOVQ k+16(FP), SI
	VMOVDQU32 Z16, s0-512(SP)
	VMOVDQU32 Z17, s1-448(SP)
	VMOVDQU32 Z18, s2-384(SP)
	VMOVDQU32 Z19, s3-320(SP)
	VMOVDQU32 Z20, s4-256(SP)
	VMOVDQU32 Z21, s5-192(SP)
	VMOVDQU32 Z22, s6-128(SP)
	VMOVDQU32 Z23, s7-64(SP)
	LOAD(0, Z0)
	LOAD(1, Z1)
	LOAD(2, Z2)
	LOAD(3, Z3)
	LOAD(4, Z4)
	LOAD(5, Z5)
	LOAD(6, Z6)
	LOAD(7, Z7)
	LOAD(8, Z8)
	LOAD(9, Z9)
	LOAD(10, Z10)
	LOAD(11, Z11)
	LOAD(12, Z12)
	LOAD(13, Z13)
	LOAD(14, Z14)
	LOAD(15, Z15)
	UNPACK32(Z0, Z1)
	UNPACK32(Z2, Z3)
	UNPACK32(Z4, Z5)
	UNPACK32(Z6, Z7)
	UNPACK32(Z8, Z9)
	UNPACK32(Z10, Z11)
	UNPACK32(Z12, Z13)
	UNPACK32(Z14, Z15)
	UNPACK64(Z0, Z2)
	UNPACK64(Z1, Z3)
	UNPACK64(Z4, Z6)
	UNPACK64(Z5, Z7)
	UNPACK64(Z8, Z10)
	UNPACK64(Z9, Z11)
	UNPACK64(Z12, Z14)
	UNPACK64(Z13, Z15)
	GATHER(Z0, Z4, Z8, Z12)
	GATHER(Z2, Z6, Z10, Z14)
	GATHER(Z1, Z5, Z9, Z13)
	GATHER(Z3, Z7, Z11, Z15)

	ROUND(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z0, 0)
	ROUND(Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z2, 1)
	ROUND(Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z1, 2)
	ROUND(Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z3, 3)
	ROUND(Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z4, 4)
	ROUND(Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z6, 5)
	ROUND(Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z5, 6)
	ROUND(Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z7, 7)
	ROUND(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z8, 8)
	ROUND(Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z10, 9)
	ROUND(Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z9, 10)
	ROUND(Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z11, 11)
	ROUND(Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z12, 12)
	ROUND(Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z14, 13)
	ROUND(Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z13, 14)
	ROUND(Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z15, 15)
	MOVQ $3, CX

scheduled:
	ADDQ $64, SI
	SCHEDULE(Z0, Z2, Z10, Z13)
	ROUND(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z0, 0)
	SCHEDULE(Z2, Z1, Z9, Z15)
	ROUND(Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z2, 1)
	SCHEDULE(Z1, Z3, Z11, Z0)
	ROUND(Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z1, 2)
	SCHEDULE(Z3, Z4, Z12, Z2)
	ROUND(Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z3, 3)
	SCHEDULE(Z4, Z6, Z14, Z1)
	ROUND(Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z4, 4)
	SCHEDULE(Z6, Z5, Z13, Z3)
	ROUND(Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z6, 5)
	SCHEDULE(Z5, Z7, Z15, Z4)
	ROUND(Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z5, 6)
	SCHEDULE(Z7, Z8, Z0, Z6)
	ROUND(Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z7, 7)
	SCHEDULE(Z8, Z10, Z2, Z5)
	ROUND(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z8, 8)
	SCHEDULE(Z10, Z9, Z1, Z7)
	ROUND(Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z10, 9)
	SCHEDULE(Z9, Z11, Z3, Z8)
	ROUND(Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z9, 10)
	SCHEDULE(Z11, Z12, Z4, Z10)
	ROUND(Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z11, 11)
	SCHEDULE(Z12, Z14, Z6, Z9)
	ROUND(Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z12, 12)
	SCHEDULE(Z14, Z13, Z5, Z11)
	ROUND(Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z14, 13)
	SCHEDULE(Z13, Z15, Z7, Z12)
	ROUND(Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z13, 14)
	SCHEDULE(Z15, Z0, Z8, Z14)
	ROUND(Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z15, 15)
	DECQ CX
	JNZ  scheduled

	VPADDD s0-512(SP), Z16, Z16
	VPADDD s1-448(SP), Z17, Z17
	VPADDD s2-384(SP), Z18, Z18
	VPADDD s3-320(SP), Z19, Z19
	VPADDD s4-256(SP), Z20, Z20
	VPADDD s5-192(SP), Z21, Z21
	VPADDD s6-128(SP), Z22, Z22
	VPADDD s7-64(SP), Z23, Z23
	ADDQ $64, BX
	CMPQ BX, $4096
	JNE  block

	MOVQ last+24(FP), SI
	MOVQ $4, CX
	VMOVDQU32 Z16, s0-512(SP)
	VMOVDQU32 Z17, s1-448(SP)
	VMOVDQU32 Z18, s2-384(SP)
	VMOVDQU32 Z19, s3-320(SP)
	VMOVDQU32 Z20, s4-256(SP)
	VMOVDQU32 Z21, s5-192(SP)
	VMOVDQU32 Z22, s6-128(SP)
	VMOVDQU32 Z23, s7-64(SP)

padding:
	LASTROUND(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, 0)
	LASTROUND(Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z22, 1)
	LASTROUND(Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z21, 2)
	LASTROUND(Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z20, 3)
	LASTROUND(Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z19, 4)
	LASTROUND(Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z18, 5)
	LASTROUND(Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z17, 6)
	LASTROUND(Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z16, 7)
	LASTROUND(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, 8)
	LASTROUND(Z23, Z16, Z17, Z18, Z19, Z20, Z21, Z22, 9)
	LASTROUND(Z22, Z23, Z16, Z17, Z18, Z19, Z20, Z21, 10)
	LASTROUND(Z21, Z22, Z23, Z16, Z17, Z18, Z19, Z20, 11)
	LASTROUND(Z20, Z21, Z22, Z23, Z16, Z17, Z18, Z19, 12)
	LASTROUND(Z19, Z20, Z21, Z22, Z23, Z16, Z17, Z18, 13)
	LASTROUND(Z18, Z19, Z20, Z21, Z22, Z23, Z16, Z17, 14)
	LASTROUND(Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z16, 15)
	ADDQ $64, SI
	DECQ CX
	JNZ  padding

	VPADDD s0-512(SP), Z16, Z16
	VPADDD s1-448(SP), Z17, Z17
	VPADDD s2-384(SP), Z18, Z18
	VPADDD s3-320(SP), Z19, Z19
	VPADDD s4-256(SP), Z20, Z20
	VPADDD s5-192(SP), Z21, Z21
	VPADDD s6-128(SP), Z22, Z22
	VPADDD s7-64(SP), Z23, Z23
	VMOVDQU32 Z16, 0(AX)
	VMOVDQU32 Z17, 64(AX)
	VMOVDQU32 Z18, 128(AX)
	VMOVDQU32 Z19, 192(AX)
	VMOVDQU32 Z20, 256(AX)
	VMOVDQU32 Z21, 320(AX)
	VMOVDQU32 Z22, 384(AX)
	VMOVDQU32 Z23, 448(AX)
	VZEROUPPER
	RET
