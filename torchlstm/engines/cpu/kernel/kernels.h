/* The kernels of one instruction set and element type; see isa.h.  No guard: included once for each. */
#define KIND REAL
#define LEFT_SLOT 1
#define LEFT_HEAD 0
#define LEFT_BLOCK 1
#include "vector.h"
#include "slot.h"
#include "product.h"
#include "packing.h"
#include "cell.h"
#include "forward.h"
#include "backward.h"
#include "in_lanes.h"
#include "in_place.h"
#include "gemm.h"
#include "peak.h"

static const kernels_t FN(kernels) = {
    LANES, COLS * LANES, FN(pack_forward), FN(forward), FN(forward_in_place), FN(pack_backward), FN(backward), FN(sum_biases),
    FN(gemm), GEMM_THIN_KERNEL, FN(peak),
};

#include "end.h"
#undef LEFT_SLOT
#undef LEFT_HEAD
#undef LEFT_BLOCK
