/* All kernels of one instruction set: the template for each kind that the set has, and the tables that dispatch.c reads.
 *
 * The including file defines
 *
 *   ISA             its name
 *   TARGET          the attribute of every function
 *   BYTES           of a vector register: 16, 32 or 64
 *   COLS            vectors of columns of a tile of 6 rows: 4 with 32 registers, 2 with 16
 *   DOTS            rows of a tile of dot products: 6 with 32 registers, 3 with 16
 *   MIN_float, MAX_float, MIN_double, MAX_double (a, b)
 *                   of vectors; b where either is NaN
 *
 * and, where the set has an instruction for it,
 *
 *   LOAD_float, STORE_float, LOAD_double, STORE_double (p, [v,] n)
 *                   the first n lanes, reading and writing no others; LOAD for each type of the set or for none,
 *                   STORE likewise
 *   WIDEN_HALVES(p) the float16 numbers from p on, as many as a vector has lanes, as a vector of float
 *   ADD_TERMS, SUMS, MOST_SLOTS, OFFSET, WORDS, NEAREST, AS_FLOATS
 *                   products of int8 weights: integers.h
 *   TILE_PRODUCTS, RELEASE_TILES
 *                   products by tile registers, and the end of their use: of more than three rows of int8 weights (amx.c), or of pairs
 *                   (amx_bfloat16.c)
 *
 * A set for one purpose defines
 *
 *   MULTIPLY_ADD_PAIRS(sum, a, b)
 *                   of a vector, a pair and a vector of pairs.  Operands are then rounded to bfloat16, and lie in pairs: a slot
 *                   holds TWO_BFLOATS, float is the only type, and there are no packed weights in fewer bits.  Pairs are made by
 *                   PAIR_NEIGHBOURS(a, b), of two quads a0 a1, a2 a3, b0 b1, b2 b3, and by
 *                   PAIR_QUADS(a, b) and PAIR_VECS(a, b): a0 b0, a1 b1, .., and by
 *                   PAIR_TERMS(a, b), of two vectors: a0 a1, a2 a3, .., then b
 *   ONLY_INTEGERS   nothing but the kernel for int8 weights
 */
#include "plan.h"
#include "dispatch.h"
#include "macros.h"

#if !defined TILE_PRODUCTS
#define RELEASE_TILES() (void)0
#endif

/* Tables of kernels, as dispatch.h declares them. */
#define KERNELS(kind) &JOIN3(kernels, kind, ISA)
#define TABLE const kernels_t *const JOIN2(torchlstm, ISA)
#define PACKED_TABLE const kernels_t *const JOIN3(torchlstm, packed, ISA)

#if defined ONLY_INTEGERS
#define KIND integers
#define REAL float
#define SLOT_HOLDS FOUR_BYTES
#include "template.h"
PACKED_TABLE[3] = { NULL, NULL, KERNELS(integers) };

#elif defined MULTIPLY_ADD_PAIRS
#define KIND float
#define REAL float
#define SLOT_HOLDS TWO_BFLOATS
#include "template.h"
TABLE[1] = { KERNELS(float) };

#else
#define KIND float
#define REAL float
#define SLOT_HOLDS ONE_TERM
#include "template.h"

/* Weight i of the two in each slot of a vector, as floats. */
#define WIDEN_bfloats(p, i) (vec)(*(const ivec *)(p) << 16 * !(i) & -65536)
#define KIND bfloats
#define REAL float
#define SLOT_HOLDS TWO_SHORTS
#include "template.h"

#if !defined WIDEN_HALVES
#define WIDEN_HALVES(p) FN(widen_halves)(p)
#define WIDENS_BY_INTEGERS
#endif
#define WIDEN_halves(p, i) WIDEN_HALVES((const uint16_t *)(p) + (i) * LANES)
#define KIND halves
#define REAL float
#define SLOT_HOLDS TWO_SHORTS
#include "template.h"

#if defined ADD_TERMS
#define KIND integers
#define REAL float
#define SLOT_HOLDS FOUR_BYTES
#include "template.h"
PACKED_TABLE[3] = { KERNELS(bfloats), KERNELS(halves), KERNELS(integers) };
#else
PACKED_TABLE[3] = { KERNELS(bfloats), KERNELS(halves), NULL };
#endif

#define KIND double
#define REAL double
#define SLOT_HOLDS ONE_TERM
#include "template.h"
TABLE[2] = { KERNELS(float), KERNELS(double) };
#endif
