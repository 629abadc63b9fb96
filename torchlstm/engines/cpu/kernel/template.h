/* The template: the kernels of one instruction set for one kind, which is an element type and what a slot of weights holds.
 *
 * isa.h includes it once for each kind, with three parameters.  They are undefined at the end, so that the next inclusion
 * can define them anew; no other macro has another text from one inclusion to the next.
 *
 *   KIND          the kind's name: float, double, or of packed weights bfloats, halves, integers
 *   REAL          the type of operands on the left, of sums and of results: float or double
 *   SLOT_HOLDS    what four bytes of packed weights are (eight of double).  It is the unit in which the microkernel reads them:
 *     ONE_TERM      one weight, of type REAL
 *     TWO_BFLOATS   two weights, rounded to bfloat16; a pair of the left operand is rounded as well (bfloat16.c)
 *     TWO_SHORTS    two weights of 16 bits, widened to float when they are read: WIDEN_<KIND> of isa.h
 *     FOUR_BYTES    four weights of int8, for products of integers: integers.h
 *
 * From the instruction set's file it has ISA, TARGET, BYTES, COLS, DOTS and the operations that isa.h lists.
 *
 * It defines FN(kernels), a table of functions (dispatch.h): all of them where a slot holds one term or a pair of both operands;
 * of packed weights in fewer bits the forward alone.  Everything in it is static, and named by FN.
 *
 * What the functions call their arguments: s sizes, p this thread's part (plan.h), l the layer, d a direction, t a step, r a row, u a
 * block of LANES hidden units, o a block of LANES outputs, g a gate, k a slot along K, v a vector of columns.
 */
#include "vector.h"
#include "slot.h"
#include "product.h"
#if SLOT_HOLDS < TWO_SHORTS
#include "packing.h"
#endif
#include "cell.h"
#include "forward.h"
#if SLOT_HOLDS < TWO_SHORTS
#include "backward.h"
#include "in_lanes.h"
#include "in_place.h"
#include "gemm.h"
#include "peak.h"
#endif

static const kernels_t FN(kernels) = {
    .lanes = LANES, .width = COLS * LANES,
#if SLOT_HOLDS < TWO_SHORTS
    .pack_forward = FN(pack_forward), .forward = FN(forward), .forward_in_place = FN(forward_in_place),
    .pack_backward = FN(pack_backward), .backward = FN(backward), .sum_biases = FN(sum_biases), .gemm = FN(gemm),
#if SLOT_HOLDS == ONE_TERM
    .gemm_thin = FN(gemm_thin),
#endif
    .peak = FN(peak),
#else
    .forward = FN(forward),
#endif
};

#undef KIND
#undef REAL
#undef SLOT_HOLDS
