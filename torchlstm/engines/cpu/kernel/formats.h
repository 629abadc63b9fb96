/* The forward kernels for weights that are packed in fewer bits: the included text once more, for each such format.
 *
 *   KIND        the format's name
 *   PER_SLOT    weights in 32 bits of a panel
 *   LEFT_SLOT   elements of the left operand in the place of these, LEFT_HEAD before all slots of a row, whose number is rounded
 *               up to a multiple of LEFT_BLOCK
 *   WIDEN(p, i) the weights beside element i of a slot's left operand, as floats; or INTEGERS with what integers.h names
 */
#include "vector.h"
#include "slot.h"
#include "product.h"
#include "cell.h"
#include "forward.h"

static const kernels_t FN(kernels) = { .lanes = LANES, .width = COLS * LANES, .forward = FN(forward) };

#include "end.h"
