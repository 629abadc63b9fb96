/* All kernels of one instruction set, for float and, unless terms come in pairs, for double.
 *
 * The including file defines
 *
 *   ISA             its name
 *   TARGET          the attribute of every function
 *   BYTES           of a vector register
 *   COLS            vectors of columns of a tile of 6 rows: 4 with 32 registers, 2 with 16
 *   DOTS            rows of a tile of dot products: 6 with 32 registers, 3 with 16
 *   PER_SLOT        terms of a product in the place of one: 1, or 2 for bfloat16 in the place of a float.  For 2 also
 *                   PAIR_NEIGHBOURS(a, b): of two quads, a0 a1, a2 a3, b0 b1, b2 b3; PAIR_QUADS(a, b), PAIR_VECS(a, b):
 *                   a0 b0, a1 b1, ..; MULTIPLY_ADD_PAIRS(sum, a, b) of a vector, one pair and a vector of pairs
 *   LOAD_float, STORE_float, LOAD_double, STORE_double (p, [v,] n)
 *                   the first n lanes, by an instruction that reads and writes no others; not where there is none
 *   WIDEN_HALVES(p)      a vector of float of as many float16 from p on; not where the generic one below will do
 *   SUMS, BESIDE, OFFSET, ADD_TERMS, AS_FLOATS, WORDS, NEAREST, MOST_SLOTS
 *                   products of int8 weights: integers.h; ONLY_INTEGERS if nothing else is wanted of this set
 *   TILE_PRODUCTS, RELEASE_TILES
 *                   products of more than three rows of int8 weights by tile registers, and the end of their use: amx.c
 *   MIN_float, MAX_float, MIN_double, MAX_double (a, b) on vectors, b where either is NaN
 */
#include "plan.h"
#include "dispatch.h"

#if defined __clang__ || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE_VECS(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (iquad){ __VA_ARGS__ })
#define SHUFFLE_VECS(type, a, b, ...) __builtin_shuffle(a, b, (type){ __VA_ARGS__ })
#endif

/* Of the loop that follows every turn is written out, no more than n; or none is.  Clang before 19 takes no word of GCC's. */
#if defined __clang__
#define UNROLL(n) _Pragma("clang loop unroll(full)")
#define ROLL _Pragma("clang loop unroll(disable)")
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#define ROLL PRAGMA(GCC unroll 1)
#define PRAGMA(text) _Pragma(#text)
#endif

/* float16 as float, by integers: also denormals, which an instruction of floats may flush. */
#if !defined WIDEN_HALVES && !defined ONLY_INTEGERS
#define WIDEN_HALVES(p) FN(widen_halves)(p)
#define WIDENS_BY_INTEGERS
#endif

#define REAL float
#if defined LOAD_float
#define LOAD_FIRST LOAD_float
#endif
#if defined STORE_float
#define STORE_FIRST STORE_float
#endif
#define INTEGER int32_t
#define QUAD 4
#define LANES (BYTES / 4)
#define VECTOR_MIN MIN_float
#define VECTOR_MAX MAX_float
#define EXP_TOP 88.f
#define EXP_SHARED 29.f
#define EXP_ROUND 0x1.8p23f
#define EXP_SHIFT 23
#define EXP_ONE 0x3f800000
#define EXP_TERMS 0.000154035122f, 0.00133907353f, 0.00961823761f, 0.0555035733f, 0.240226492f, 0.693147182f
#if !defined ONLY_INTEGERS
#include "kernels.h"
#endif

/* Packed weights in fewer bits; sums are float. */
#if PER_SLOT == 1
#undef PER_SLOT
#if !defined ONLY_INTEGERS
#define KIND bfloats
#define PER_SLOT 2
#define LEFT_SLOT 2
#define LEFT_HEAD 0
#define LEFT_BLOCK 1
#define WIDEN(p, i) (vec)(*(const ivec *)(p) << 16 * !(i) & -65536)
#include "formats.h"
#undef WIDEN
#define KIND halves
#define WIDEN(p, i) WIDEN_HALVES((const uint16_t *)(p) + (i) * LANES)
#include "formats.h"
#undef WIDEN
#undef PER_SLOT
#undef LEFT_SLOT
#undef LEFT_HEAD
#undef LEFT_BLOCK
#define FLOATS_(isa) &kernels_bfloats_##isa, &kernels_halves_##isa
#define FLOATS(isa) FLOATS_(isa)
#else
#define FLOATS(isa) NULL, NULL
#endif
#if defined ADD_TERMS
#define KIND integers
#define INTEGERS
#define PER_SLOT 4
#define LEFT_SLOT 2
#if defined TILE_PRODUCTS
#define LEFT_HEAD 8
#define LEFT_BLOCK TILE_SLOTS
#else
#define LEFT_HEAD 1
#define LEFT_BLOCK 1
#endif
#include "formats.h"
#undef INTEGERS
#undef PER_SLOT
#undef LEFT_SLOT
#undef LEFT_HEAD
#undef LEFT_BLOCK
#define BYTES_(isa) &kernels_integers_##isa
#define BYTES_OF(isa) BYTES_(isa)
#else
#define BYTES_OF(isa) NULL
#endif
#define PACKED_(isa) const kernels_t *const torchlstm_packed_##isa[3] = { FLOATS(isa), BYTES_OF(isa) }
#define PACKED(isa) PACKED_(isa)
PACKED(ISA);
#define PER_SLOT 1
#endif

#undef REAL
#undef INTEGER
#undef QUAD
#undef LANES
#undef LOAD_FIRST
#undef STORE_FIRST
#undef VECTOR_MIN
#undef VECTOR_MAX
#undef EXP_TOP
#undef EXP_SHARED
#undef EXP_ROUND
#undef EXP_SHIFT
#undef EXP_ONE
#undef EXP_TERMS

#if !defined ONLY_INTEGERS
#if PER_SLOT == 1
#define REAL double
#if defined LOAD_double
#define LOAD_FIRST LOAD_double
#endif
#if defined STORE_double
#define STORE_FIRST STORE_double
#endif
#define INTEGER int64_t
#define QUAD 2
#define LANES (BYTES / 8)
#define VECTOR_MIN MIN_double
#define VECTOR_MAX MAX_double
#define EXP_TOP 709.
#define EXP_SHARED 230.
#define EXP_ROUND 0x1.8p52
#define EXP_SHIFT 52
#define EXP_ONE 0x3ff0000000000000
/* ln(2)^n / n! */
#define EXP_TERMS 1.3691488853904128e-12, 2.5678435993488206e-11, 4.4455382718708116e-10, 7.0549116208011234e-09, \
    1.01780860092397e-07, 1.321548679014431e-06, 1.5252733804059841e-05, 0.00015403530393381609, 0.0013333558146428443, \
    0.0096181291076284769, 0.055504108664821583, 0.24022650695910072, 0.69314718055994529
#include "kernels.h"
#define TABLE_(isa) const kernels_t *const torchlstm_##isa[2] = { &kernels_float_##isa, &kernels_double_##isa }
#else
#define TABLE_(isa) const kernels_t *const torchlstm_##isa[1] = { &kernels_float_##isa }
#endif
#define TABLE(isa) TABLE_(isa)
TABLE(ISA);
#endif
