"""The fused loop of few units: one program owns a tile of sequences and all units of a direction, for all steps.

W_hh stays in registers, h and c never leave the program, and no program waits for another.  grid: (tiles, D).

    gates     (D, P, 4H)  in: the part from x, with both biases; out, if SAVE: activated
    acts      (D, P, 4H)  the activated gates of a forward
    cells     (D, P, H)   c of every row
    w_hh      (D, 4H, H)
    y, dy     (P, D*H)
    h_0, ...  (D, B, H); dh_n and dc_n may be None, for zero
    dgates    (D, P, 4H)  gradient of the gates before activation; dacts (D, P, 4H), dcells (D, P, H) as in `kernel.py`
    REVERSE   1 if the only direction runs the rows backwards, else 0
    starts    (T + 1,) int64, the first row of every step; lengths (B,) int64; of a ragged batch only

Two things keep the weights in registers (seen in the code that Triton 3.6 and 3.9 generate for sm_90): the time loop
is a `while`, since a `for` moves the conversion of a product's operand back into the loop; and the loop carries only
scalars and results of products.
"""

import triton
import triton.language as tl

from .common import barrier, cell_backward, cell_forward, load_like, load_weight, product, rounded, row_of, store_like


@triton.jit
def _weights(p, to_unit, from_unit, H: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr):
    """W_hh of the four gates as operands.  Each gate is a product of its own: a single one would need four times the
    shared memory to load the weights, more than consumer cards have."""
    p += to_unit * H + from_unit
    mask = (to_unit < H) & (from_unit < H)
    w_i = load_weight(p, mask, PRECISION, ASM)
    w_f = load_weight(p + H * H, mask, PRECISION, ASM)
    w_g = load_weight(p + 2 * H * H, mask, PRECISION, ASM)
    w_o = load_weight(p + 3 * H * H, mask, PRECISION, ASM)
    return w_i, w_f, w_g, w_o


# Arguments that change from call to call must not cause a compilation.
@triton.jit(do_not_specialize=["T", "B", "P"], do_not_specialize_on_alignment=["p_starts", "p_lengths"])
def forward(
    p_gates, p_w_hh, p_y, p_cells, p_h_0, p_c_0, p_h_n, p_c_n, p_starts, p_lengths, T, B, P,
    H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, BB: tl.constexpr, RAGGED: tl.constexpr, REVERSE: tl.constexpr,
    SAVE: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The time loop forward.  HP: H rounded up to a power of two; BB: sequences of a tile."""
    i_tile, i_d = tl.program_id(0), tl.program_id(1)
    b = i_tile * BB + tl.arange(0, BB)
    j = tl.arange(0, HP)
    mask = (b < B)[:, None] & (j < H)[None, :]
    to_unit, from_unit = j[None, :], j[:, None]
    w_i, w_f, w_g, w_o = _weights(p_w_hh + i_d * 4 * H * H, to_unit, from_unit, H, PRECISION, ASM)
    o_state = (i_d * B + b)[:, None] * H + j[None, :]
    o_gates = b[:, None] * (4 * H) + j[None, :]
    o_cells = b[:, None] * H + j[None, :]
    o_y = b[:, None] * (D * H) + i_d * H + j[None, :]
    p_gates += i_d * P.to(tl.int64) * 4 * H
    p_cells += i_d * P.to(tl.int64) * H
    if RAGGED:
        length = tl.load(p_lengths + b, mask=b < B, other=0)
        steps = tl.max(length, 0).to(tl.int32)
    else:
        steps = T
    h = tl.load(p_h_0 + o_state, mask=mask, other=0.0)
    c = tl.load(p_c_0 + o_state, mask=mask, other=0.0).to(tl.float32)
    onwards = i_d + REVERSE == 0
    t = tl.where(onwards, 0, tl.maximum(steps - 1, 0))  # a tile may have no steps at all
    row = row_of(p_starts, t, B, RAGGED)
    live = mask
    if RAGGED:
        live = mask & (t < length)[:, None]
    p = p_gates + row * 4 * H + o_gates
    i_x = load_like(p, live, c, ASM)
    f_x = load_like(p + H, live, c, ASM)
    g_x = load_like(p + 2 * H, live, c, ASM)
    o_x = load_like(p + 3 * H, live, c, ASM)
    s = 0
    while s < steps:
        # The gates of the next step are loaded during this one; in the last step, those of this step again.
        following = tl.where(s + 1 < steps, t + tl.where(onwards, 1, -1), t)
        row_following = row_of(p_starts, following, B, RAGGED)
        live = mask
        live_following = mask
        if RAGGED:
            live = mask & (t < length)[:, None]
            live_following = mask & (following < length)[:, None]
        p = p_gates + row_following * 4 * H + o_gates
        i_next = load_like(p, live_following, c, ASM)
        f_next = load_like(p + H, live_following, c, ASM)
        g_next = load_like(p + 2 * H, live_following, c, ASM)
        o_next = load_like(p + 3 * H, live_following, c, ASM)
        operand = rounded(h, PRECISION, ASM)
        i = product(operand, w_i, None, PRECISION, ASM)
        f = product(operand, w_f, None, PRECISION, ASM)
        g = product(operand, w_g, None, PRECISION, ASM)
        o = product(operand, w_o, None, PRECISION, ASM)
        i, f, g, o, c_new, h_new = cell_forward(i + i_x, f + f_x, g + g_x, o + o_x, c, FAST)
        h_new = h_new.to(h.dtype)
        if RAGGED:
            # A sequence that has ended, or in reverse has not yet begun, keeps its state.
            c = tl.where(live, c_new, c)
            h = tl.where(live, h_new, h)
        else:
            c = c_new
            h = h_new
        store_like(p_y + row * D * H + o_y, h.to(tl.float32), live, ASM)
        if SAVE:
            barrier(ASM)  # the gates of this step have been read, one step ago
            store_like(p_cells + row * H + o_cells, c, live, ASM)
            p = p_gates + row * 4 * H + o_gates
            store_like(p, i, live, ASM)
            store_like(p + H, f, live, ASM)
            store_like(p + 2 * H, g, live, ASM)
            store_like(p + 3 * H, o, live, ASM)
        i_x, f_x, g_x, o_x = i_next, f_next, g_next, o_next
        t = following
        row = row_following
        s += 1
    tl.store(p_h_n + o_state, h, mask=mask)
    tl.store(p_c_n + o_state, c.to(p_c_n.dtype.element_ty), mask=mask)


@triton.jit
def _saved(
    p_acts, p_cells, p_c_0, p_dy, p_starts, t, step, steps, b, length, mask, like, o_gates, o_cells, o_state, o_y, B,
    H: tl.constexpr, D: tl.constexpr, RAGGED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The saved tensors that the backward of step t reads: i, f, g, o, c, c of the step before (t + step), dy."""
    row = row_of(p_starts, t, B, RAGGED)
    earlier = t + step
    row_earlier = row_of(p_starts, tl.maximum(tl.minimum(earlier, steps - 1), 0), B, RAGGED)
    live = mask
    begun = (b * 0 + earlier >= 0) & (b * 0 + earlier < steps)
    if RAGGED:
        live = mask & (t < length)[:, None]
        begun = (b * 0 + earlier >= 0) & (earlier < length)
    p = p_acts + row * 4 * H + o_gates
    i = load_like(p, live, like, ASM)
    f = load_like(p + H, live, like, ASM)
    g = load_like(p + 2 * H, live, like, ASM)
    o = load_like(p + 3 * H, live, like, ASM)
    c = load_like(p_cells + row * H + o_cells, live, like, ASM)
    # c of the step before, which before the first is c_0.
    p = tl.where(begun[:, None], p_cells + row_earlier * H + o_cells, p_c_0 + o_state)
    before = load_like(p, live, like, ASM)
    return i, f, g, o, c, before, load_like(p_dy + row * D * H + o_y, live, like, ASM)


@triton.jit(do_not_specialize=["T", "B", "P"], do_not_specialize_on_alignment=["p_starts", "p_lengths"])
def backward(
    p_acts, p_w_hh, p_cells, p_c_0, p_dy, p_dh_n, p_dc_n, p_dacts, p_dcells, p_dgates, p_dh_0, p_dc_0,
    p_starts, p_lengths, T, B, P,
    H: tl.constexpr, D: tl.constexpr, HP: tl.constexpr, BB: tl.constexpr, RAGGED: tl.constexpr, REVERSE: tl.constexpr,
    TRACE: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The time loop backward.  TRACE: there are dacts and dcells."""
    i_tile, i_d = tl.program_id(0), tl.program_id(1)
    b = i_tile * BB + tl.arange(0, BB)
    j = tl.arange(0, HP)
    mask = (b < B)[:, None] & (j < H)[None, :]
    to_unit, from_unit = j[:, None], j[None, :]
    w_i, w_f, w_g, w_o = _weights(p_w_hh + i_d * 4 * H * H, to_unit, from_unit, H, PRECISION, ASM)
    o_state = (i_d * B + b)[:, None] * H + j[None, :]
    o_gates = b[:, None] * (4 * H) + j[None, :]
    o_cells = b[:, None] * H + j[None, :]
    o_y = b[:, None] * (D * H) + i_d * H + j[None, :]
    p_acts += i_d * P.to(tl.int64) * 4 * H
    p_dgates += i_d * P.to(tl.int64) * 4 * H
    p_cells += i_d * P.to(tl.int64) * H
    if TRACE:
        p_dacts += i_d * P.to(tl.int64) * 4 * H
        p_dcells += i_d * P.to(tl.int64) * H
    if RAGGED:
        length = tl.load(p_lengths + b, mask=b < B, other=0)
        steps = tl.max(length, 0).to(tl.int32)
    else:
        steps = T
    dh = tl.zeros(mask.shape, tl.float32)
    dc = dh
    if p_dh_n is not None:
        dh = tl.load(p_dh_n + o_state, mask=mask, other=0.0).to(tl.float32)
    if p_dc_n is not None:
        dc = tl.load(p_dc_n + o_state, mask=mask, other=0.0).to(tl.float32)
    if not RAGGED:
        length = b * 0 + T
    onwards = i_d + REVERSE == 0
    step = tl.where(onwards, -1, 1)  # from a step to the one before it, in the direction of the forward
    t = tl.where(onwards, tl.maximum(steps - 1, 0), 0)
    i, f, g, o, c, before, dy = _saved(
        p_acts, p_cells, p_c_0, p_dy, p_starts, t, step, steps, b, length, mask, dh, o_gates, o_cells, o_state, o_y, B,
        H, D, RAGGED, ASM,
    )  # fmt: skip
    s = 0
    while s < steps:
        row = row_of(p_starts, t, B, RAGGED)
        following = tl.where(s + 1 < steps, t + step, t)
        i_next, f_next, g_next, o_next, c_next, before_next, dy_next = _saved(
            p_acts, p_cells, p_c_0, p_dy, p_starts, following, step, steps, b, length, mask, dh, o_gates, o_cells,
            o_state, o_y, B, H, D, RAGGED, ASM,
        )  # fmt: skip
        live = mask
        if RAGGED:
            live = mask & (t < length)[:, None]
        dh_t = dh + dy
        dc_t = dc
        di_act, df_act, dg_act, do_act = 0.0, 0.0, 0.0, 0.0
        if TRACE:
            p = p_dacts + row * 4 * H + o_gates
            di_act = load_like(p, live, dh, ASM)
            df_act = load_like(p + H, live, dh, ASM)
            dg_act = load_like(p + 2 * H, live, dh, ASM)
            do_act = load_like(p + 3 * H, live, dh, ASM)
            dc_t = dc + load_like(p_dcells + row * H + o_cells, live, dh, ASM)
        di, df, dg, do, dc_t = cell_backward(dh_t, dc_t, di_act, df_act, dg_act, do_act, i, f, g, o, c, before, FAST)
        p = p_dgates + row * 4 * H + o_gates
        store_like(p, di, live, ASM)
        store_like(p + H, df, live, ASM)
        store_like(p + 2 * H, dg, live, ASM)
        store_like(p + 3 * H, do, live, ASM)
        dh_t = product(rounded(di.to(w_i.dtype), PRECISION, ASM), w_i, None, PRECISION, ASM)
        dh_t = product(rounded(df.to(w_i.dtype), PRECISION, ASM), w_f, dh_t, PRECISION, ASM)
        dh_t = product(rounded(dg.to(w_i.dtype), PRECISION, ASM), w_g, dh_t, PRECISION, ASM)
        dh_t = product(rounded(do.to(w_i.dtype), PRECISION, ASM), w_o, dh_t, PRECISION, ASM)
        if RAGGED:
            dc = tl.where(live, dc_t, dc)
            dh = tl.where(live, dh_t, dh)
        else:
            dc = dc_t
            dh = dh_t
        i, f, g, o, c, before, dy = i_next, f_next, g_next, o_next, c_next, before_next, dy_next
        t = following
        s += 1
    tl.store(p_dh_0 + o_state, dh.to(p_dh_0.dtype.element_ty), mask=mask)
    tl.store(p_dc_0 + o_state, dc.to(p_dc_0.dtype.element_ty), mask=mask)
