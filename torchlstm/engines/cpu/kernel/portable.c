/* The kernels in plain C vectors of 16 bytes: SSE2, NEON, or whatever the compiler makes of them. */
#define ISA portable
#define TARGET
#define BYTES 16
#if defined __aarch64__
#define COLS 4
#define DOTS 6
#if !defined __clang__
/* A tile is 24 sums, 4 vectors of columns and one element in 32 registers: GCC would load elements early, and spill sums. */
#pragma GCC optimize "no-schedule-insns"
#endif
#else
#define COLS 2
#define DOTS 3
#endif
#define MIN_float(a, b) FN(pick)((a) < (b), a, b)
#define MAX_float(a, b) FN(pick)((a) > (b), a, b)
#define MIN_double(a, b) FN(pick)((a) < (b), a, b)
#define MAX_double(a, b) FN(pick)((a) > (b), a, b)
#define PER_SLOT 1
#include "isa.h"
