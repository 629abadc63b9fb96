"""The step loop's kernel: the arithmetic of the cell for one step, between two products by cuBLAS.

Names as in `fused_rows.py`.  grid: (blocks, D).  Direction 0 is at the rows from row_0, of which count_0 are live,
direction 1 at those from row_1.

    h, c, dh, dc  (D, B, H) the states and their gradients, updated in place; c and dc in the type of the arithmetic
    before_0, before_1, begun_0, begun_1
                  the first row of the step before, and how many sequences have that step; the others take c_0
"""

import triton
import triton.language as tl

from .common import cell_backward, cell_forward

_CHANGING = ["row_0", "row_1", "count_0", "count_1", "B", "P"]


@triton.jit(do_not_specialize=_CHANGING)
def forward(
    p_gates, p_y, p_cells, p_h, p_c, row_0, row_1, count_0, count_1, B, P,
    H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, SAVE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """One step forward; gates (D, P, 4H) are complete, and are activated in place if SAVE."""
    i_d = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b, j = element // H, element % H
    mask = b < tl.where(i_d == 0, count_0, count_1)
    row = tl.where(i_d == 0, row_0, row_1).to(tl.int64) + b
    o_state = (i_d * B + b) * H + j
    p = p_gates + (i_d * P.to(tl.int64) + row) * 4 * H + j
    c = tl.load(p_c + o_state, mask=mask, other=0.0)
    i = tl.load(p, mask=mask, other=0.0).to(c.dtype)
    f = tl.load(p + H, mask=mask, other=0.0).to(c.dtype)
    g = tl.load(p + 2 * H, mask=mask, other=0.0).to(c.dtype)
    o = tl.load(p + 3 * H, mask=mask, other=0.0).to(c.dtype)
    i, f, g, o, c, h = cell_forward(i, f, g, o, c, FAST)
    to = p_y.dtype.element_ty
    tl.store(p_y + row * D * H + i_d * H + j, h.to(to), mask=mask)
    tl.store(p_h + o_state, h.to(to), mask=mask)
    tl.store(p_c + o_state, c, mask=mask)
    if SAVE:
        tl.store(p_cells + (i_d * P.to(tl.int64) + row) * H + j, c.to(to), mask=mask)
        tl.store(p, i.to(to), mask=mask)
        tl.store(p + H, f.to(to), mask=mask)
        tl.store(p + 2 * H, g.to(to), mask=mask)
        tl.store(p + 3 * H, o.to(to), mask=mask)


@triton.jit(do_not_specialize=[*_CHANGING, "before_0", "before_1", "begun_0", "begun_1"])
def backward(
    p_acts, p_cells, p_c_0, p_dy, p_dh, p_dc, p_dacts, p_dcells, p_dgates,
    row_0, row_1, count_0, count_1, before_0, before_1, begun_0, begun_1, B, P,
    H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, TRACE: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """One step backward: dgates from dh (D, B, H), the gradient that later steps have left at h, and dy or None."""
    i_d = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b, j = element // H, element % H
    mask = b < tl.where(i_d == 0, count_0, count_1)
    row = tl.where(i_d == 0, row_0, row_1).to(tl.int64) + b
    row_before = tl.where(i_d == 0, before_0, before_1).to(tl.int64) + b
    begun = b < tl.where(i_d == 0, begun_0, begun_1)
    o_state = (i_d * B + b) * H + j
    o_gates = (i_d * P.to(tl.int64) + row) * 4 * H + j
    o_cells = (i_d * P.to(tl.int64) + row) * H + j
    dc = tl.load(p_dc + o_state, mask=mask, other=0.0)
    wide = dc.dtype
    i = tl.load(p_acts + o_gates, mask=mask, other=0.0).to(wide)
    f = tl.load(p_acts + o_gates + H, mask=mask, other=0.0).to(wide)
    g = tl.load(p_acts + o_gates + 2 * H, mask=mask, other=0.0).to(wide)
    o = tl.load(p_acts + o_gates + 3 * H, mask=mask, other=0.0).to(wide)
    c = tl.load(p_cells + o_cells, mask=mask, other=0.0).to(wide)
    before = tl.load(
        p_cells + (i_d * P.to(tl.int64) + row_before) * H + j, mask=mask & begun, other=0.0
    ).to(wide)  # fmt: skip
    before += tl.load(p_c_0 + o_state, mask=mask & (begun == 0), other=0.0).to(wide)
    dh = tl.load(p_dh + o_state, mask=mask, other=0.0).to(wide)
    if p_dy is not None:
        dh += tl.load(p_dy + row * D * H + i_d * H + j, mask=mask, other=0.0).to(wide)
    di, df, dg, do = 0.0, 0.0, 0.0, 0.0
    if TRACE:
        di = tl.load(p_dacts + o_gates, mask=mask, other=0.0).to(wide)
        df = tl.load(p_dacts + o_gates + H, mask=mask, other=0.0).to(wide)
        dg = tl.load(p_dacts + o_gates + 2 * H, mask=mask, other=0.0).to(wide)
        do = tl.load(p_dacts + o_gates + 3 * H, mask=mask, other=0.0).to(wide)
        dc += tl.load(p_dcells + o_cells, mask=mask, other=0.0).to(wide)
    di, df, dg, do, dc = cell_backward(dh, dc, di, df, dg, do, i, f, g, o, c, before, FAST)
    to = p_dgates.dtype.element_ty
    tl.store(p_dgates + o_gates, di.to(to), mask=mask)
    tl.store(p_dgates + o_gates + H, df.to(to), mask=mask)
    tl.store(p_dgates + o_gates + 2 * H, dg.to(to), mask=mask)
    tl.store(p_dgates + o_gates + 3 * H, do.to(to), mask=mask)
    tl.store(p_dc + o_state, dc, mask=mask)
