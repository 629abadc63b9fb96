/* The kernels of one instruction set and element type; see isa.h.  No guard: included once for each. */
#include "vector.h"
#include "slot.h"
#include "product.h"
#include "cell.h"
#include "forward.h"
#include "backward.h"
#include "in_place.h"
#include "gemm.h"
#include "peak.h"

static const kernels_t FN(kernels) = {
    LANES, COLS * LANES, FN(pack_forward), FN(forward), FN(forward_in_place), FN(pack_backward), FN(backward), FN(sum_biases),
    FN(gemm), GEMM_THIN_KERNEL, FN(peak),
};

#undef FN
#undef JOIN3
#undef JOIN3_
#undef vec
#undef ivec
#undef given
#undef igiven
#undef quad
#undef half
#undef QUADS
#undef IN_QUAD
#undef ONE_QUAD
#undef QUAD_OF
#undef EACH_QUAD
#undef SHUFFLE_EACH
#undef iquad
#undef QUAD
#undef INLINE
#undef NOINLINE
#undef TILE
#undef LOW_TILES
#undef HIGH_TILES
#undef LOW_NAMES
#undef HIGH_NAMES
#undef UNITS
#undef DOT_TILE
#undef SLOTS
#undef CHAINS
#undef PEAK_STEP
#undef GEMM_THIN_KERNEL
#undef REAL
#undef INTEGER
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
