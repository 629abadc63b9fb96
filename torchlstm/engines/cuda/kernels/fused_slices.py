"""Fused, many units: each program owns a slice of hidden units; all exchange h, or the gates' gradients, each step.

A slice's part of W_hh stays in registers for all steps.  What the programs exchange validates itself: y (forward) and
dgates (backward) are filled with a pattern of bits beforehand that no result has, every element is written once, and
who needs one reads it until the pattern is gone.  So there is no barrier between programs and no order to rely on
among memory accesses; but all programs must be on the GPU at once, which a cooperative launch guarantees.  Who reads in
vain for too long ends the call with an error (`trap`): no launch waits for ever, and none goes on with a wrong number.

grid: D * tiles * slices programs.  Names and shapes as in `fused_rows.py`, and

    y_bits, dgates_bits  the same memory as y and dgates, as integers
    c, dc                (D, B, H) float32: c_0 in, c_n out; dc_n in, dc_0 out
    LIMIT                how often to read in vain
    OFFSET               added to the program's index; tests run every program in a process of its own
    HS, SLICES           units of a slice, slices of a direction
    CHUNKS, KS, KC       a product's inner axis is cut into CHUNKS, one after another, of KS parts of KC: a part is a
                         warp's, since Triton puts all warps of a small product on its rows
    BB, TILE             sequences of a product, and of a program: multiples of BB, one after another
"""

import triton
import triton.language as tl

from .common import barrier, cell_backward, cell_forward, load_like, product, row_of, split_gates, store_like

# All ones: as a float a NaN with a payload that arithmetic does not make.  A NaN of that kind is stored as another one.
EMPTY = tl.constexpr(-1)

CHANGING = ["T", "B", "P", "TILES", "LIMIT", "OFFSET"]


@triton.jit
def _publish(p, p_bits, value, mask, ASM: tl.constexpr):
    """Store a float32 where other programs wait for it, in the element type of p, and never as `EMPTY`."""
    value = value.to(p.dtype.element_ty)
    m = mask.to(tl.int32)
    if p.dtype.element_ty.primitive_bitwidth == 16:
        bits = value.to(tl.int16, bitcast=True)
        bits = tl.where(bits == -1, 0x7FFF, bits).to(tl.int16)
        if ASM:
            tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.b16 [$1], $2; mov.b16 $0, 0; }",
                "=h,l,h,r", [p, bits, m], dtype=tl.int16, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            tl.store(p_bits, bits, mask=mask)
    else:
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(bits == -1, 0x7FFFFFFF, bits).to(tl.int32)
        if ASM:
            tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.b32 [$1], $2; mov.b32 $0, 0; }",
                "=r,l,r,r", [p, bits, m], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            tl.store(p_bits, bits, mask=mask)


@triton.jit
def _await(p_bits, mask, awaited, LIMIT, SIZE: tl.constexpr, ASM: tl.constexpr):
    """Read bits until none that is awaited is `EMPTY`."""
    bits = tl.load(p_bits, mask=mask, other=0, volatile=True)
    missing = tl.max(((bits == EMPTY) & awaited).to(tl.int32).reshape(SIZE), 0)
    tries = 0
    while missing > 0:
        tries += 1
        if tries > LIMIT:
            if ASM:
                tl.inline_asm_elementwise(
                    "trap; mov.b32 $0, $1;", "=r,r", [tries], dtype=tl.int32, is_pure=False, pack=1
                )
            else:
                assert tries <= LIMIT, "a program has waited in vain for the results of another"
        bits = tl.load(p_bits, mask=mask, other=0, volatile=True)
        missing = tl.max(((bits == EMPTY) & awaited).to(tl.int32).reshape(SIZE), 0)
    barrier(ASM)  # gates and states of this step have been read, results of the step before it written
    return bits


@triton.jit
def _carried(p_state, b, u, i_d, B, H: tl.constexpr, HELD: tl.constexpr):
    """The state of sequences b and units u if a program holds it from step to step, else a tensor of its shape.

    A program that has several products a step leaves the states in memory between two steps.
    """
    mask = (b < B)[:, None] & (u < H)[None, :]
    if HELD:
        return tl.load(p_state + (i_d * B + b)[:, None] * H + u[None, :], mask=mask, other=0.0)
    else:
        return tl.zeros(mask.shape, tl.float32)


@triton.jit(do_not_specialize=CHANGING, do_not_specialize_on_alignment=["p_starts", "p_lengths"])
def forward(
    p_gates, p_w_hh, p_y, p_y_bits, p_cells, p_h_0, p_h_0_bits, p_h_n, p_c, p_starts, p_lengths,
    T, B, P, TILES, LIMIT, OFFSET,
    H: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, SLICES: tl.constexpr, KS: tl.constexpr, KC: tl.constexpr,
    CHUNKS: tl.constexpr, BB: tl.constexpr, TILE: tl.constexpr, RAGGED: tl.constexpr, REVERSE: tl.constexpr,
    SAVE: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The time loop forward."""
    i_program = tl.program_id(0) + OFFSET
    i_slice = i_program % SLICES
    i_tile = i_program // SLICES % TILES
    i_d = i_program // SLICES // TILES
    onwards = i_d + REVERSE == 0
    u = i_slice * HS + tl.arange(0, HS)
    n = tl.arange(0, 4 * HS)
    unit = i_slice * HS + n % HS
    k = tl.arange(0, KS)[:, None] * KC + tl.arange(0, KC)[None, :]
    o_w = ((n // HS) * H + unit)[None, None, :] * H + k[:, :, None]
    w = ()
    for chunk in tl.static_range(CHUNKS):
        mask_w = (k + chunk * KS * KC < H)[:, :, None] & (unit < H)[None, None, :]
        w = w + (tl.load(p_w_hh + i_d * 4 * H * H + chunk * KS * KC + o_w, mask=mask_w, other=0.0),)  # noqa: RUF005
    p_gates += i_d * P.to(tl.int64) * 4 * H
    p_cells += i_d * P.to(tl.int64) * H
    b = i_tile * TILE + tl.arange(0, BB)
    c = _carried(p_c, b, u, i_d, B, H, TILE == BB)
    s = 0
    sub = 0
    while s < T:
        t = tl.where(onwards, s, T - 1 - s)
        earlier = tl.where(onwards, t - 1, t + 1)
        row = row_of(p_starts, t, B, RAGGED)
        row_earlier = row_of(p_starts, tl.maximum(tl.minimum(earlier, T - 1), 0), B, RAGGED)
        b = i_tile * TILE + sub * BB + tl.arange(0, BB)
        length = b * 0 + T
        if RAGGED:
            length = tl.load(p_lengths + b, mask=b < B, other=0).to(tl.int32)
        live = (b < B) & (t < length)
        begun = (b * 0 + earlier >= 0) & (earlier < length)
        last = live & (tl.where(onwards, length - 1, b * 0) == t)
        mask = live[:, None] & (u < H)[None, :]
        o_state = (i_d * B + b)[:, None] * H + u[None, :]
        p = p_gates + row * 4 * H + b[:, None] * (4 * H) + u[None, :]
        # On their way while this program waits for the others.
        i_x = load_like(p, mask, c, ASM)
        f_x = load_like(p + H, mask, c, ASM)
        g_x = load_like(p + 2 * H, mask, c, ASM)
        o_x = load_like(p + 3 * H, mask, c, ASM)
        before = c
        if TILE > BB:
            before = load_like(p_c + o_state, mask, c, ASM)
        p_h = tl.where(
            begun[None, :, None],
            p_y_bits + row_earlier * D * H + b[None, :, None] * (D * H) + i_d * H + k[:, None, :],
            p_h_0_bits + (i_d * B + b)[None, :, None] * H + k[:, None, :],
        )
        gates = tl.zeros([BB, 4 * HS], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            wanted = live[None, :, None] & (k + chunk * KS * KC < H)[:, None, :]
            bits = _await(p_h + chunk * KS * KC, wanted, begun[None, :, None], LIMIT, KS * BB * KC, ASM)
            gates += tl.sum(product(bits.to(w[chunk].dtype, bitcast=True), w[chunk], PRECISION, ASM), 0)
        i, f, g, o = split_gates(gates, BB, HS)
        i, f, g, o, c, h = cell_forward(i + i_x, f + f_x, g + g_x, o + o_x, before, FAST)
        o_y = row * D * H + b[:, None] * (D * H) + i_d * H + u[None, :]
        _publish(p_y + o_y, p_y_bits + o_y, h, mask, ASM)
        store_like(p_c + o_state, c, mask, ASM)
        store_like(p_h_n + o_state, h, mask & last[:, None], ASM)
        if SAVE:
            store_like(p_cells + row * H + b[:, None] * H + u[None, :], c, mask, ASM)
            store_like(p, i, mask, ASM)
            store_like(p + H, f, mask, ASM)
            store_like(p + 2 * H, g, mask, ASM)
            store_like(p + 3 * H, o, mask, ASM)
        if RAGGED and TILE == BB:
            c = tl.where(mask, c, before)
        sub += 1
        if sub * BB >= TILE:
            sub = 0
            s += 1


@triton.jit(do_not_specialize=CHANGING, do_not_specialize_on_alignment=["p_starts", "p_lengths"])
def backward(
    p_acts, p_w_hh, p_cells, p_c_0, p_dy, p_dh_n, p_dc, p_dacts, p_dcells, p_dgates, p_dgates_bits,
    p_starts, p_lengths, T, B, P, TILES, LIMIT, OFFSET,
    H: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, SLICES: tl.constexpr, KS: tl.constexpr, KC: tl.constexpr,
    CHUNKS: tl.constexpr, BB: tl.constexpr, TILE: tl.constexpr, RAGGED: tl.constexpr, REVERSE: tl.constexpr,
    TRACE: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The time loop backward; dh_0 is a product of dgates, made afterwards."""
    i_program = tl.program_id(0) + OFFSET
    i_slice = i_program % SLICES
    i_tile = i_program // SLICES % TILES
    i_d = i_program // SLICES // TILES
    onwards = i_d + REVERSE == 0
    u = i_slice * HS + tl.arange(0, HS)
    k = tl.arange(0, KS)[:, None] * KC + tl.arange(0, KC)[None, :]
    o_w = k[:, :, None] * H + u[None, None, :]
    w = ()
    for chunk in tl.static_range(CHUNKS):
        mask_w = (k + chunk * KS * KC < 4 * H)[:, :, None] & (u < H)[None, None, :]
        w = w + (tl.load(p_w_hh + i_d * 4 * H * H + chunk * KS * KC * H + o_w, mask=mask_w, other=0.0),)  # noqa: RUF005
    p_acts += i_d * P.to(tl.int64) * 4 * H
    p_dgates += i_d * P.to(tl.int64) * 4 * H
    p_dgates_bits += i_d * P.to(tl.int64) * 4 * H
    p_cells += i_d * P.to(tl.int64) * H
    if TRACE:
        p_dacts += i_d * P.to(tl.int64) * 4 * H
        p_dcells += i_d * P.to(tl.int64) * H
    b = i_tile * TILE + tl.arange(0, BB)
    dc = _carried(p_dc, b, u, i_d, B, H, TILE == BB)
    s = 0
    sub = 0
    while s < T:
        t = tl.where(onwards, T - 1 - s, s)
        earlier = tl.where(onwards, t - 1, t + 1)
        later = tl.where(onwards, t + 1, t - 1)
        row = row_of(p_starts, t, B, RAGGED)
        row_earlier = row_of(p_starts, tl.maximum(tl.minimum(earlier, T - 1), 0), B, RAGGED)
        row_later = row_of(p_starts, tl.maximum(tl.minimum(later, T - 1), 0), B, RAGGED)
        b = i_tile * TILE + sub * BB + tl.arange(0, BB)
        length = b * 0 + T
        if RAGGED:
            length = tl.load(p_lengths + b, mask=b < B, other=0).to(tl.int32)
        live = (b < B) & (t < length)
        begun = (b * 0 + earlier >= 0) & (earlier < length)
        goes_on = live & (b * 0 + later >= 0) & (later < length)
        mask = live[:, None] & (u < H)[None, :]
        o_state = (i_d * B + b)[:, None] * H + u[None, :]
        o_gates = row * 4 * H + b[:, None] * (4 * H) + u[None, :]
        o_cells = row * H + b[:, None] * H + u[None, :]
        i = load_like(p_acts + o_gates, mask, dc, ASM)
        f = load_like(p_acts + o_gates + H, mask, dc, ASM)
        g = load_like(p_acts + o_gates + 2 * H, mask, dc, ASM)
        o = load_like(p_acts + o_gates + 3 * H, mask, dc, ASM)
        c = load_like(p_cells + o_cells, mask, dc, ASM)
        p = tl.where(begun[:, None], p_cells + row_earlier * H + b[:, None] * H + u[None, :], p_c_0 + o_state)
        before = load_like(p, mask, dc, ASM)
        dh = load_like(p_dy + row * D * H + b[:, None] * (D * H) + i_d * H + u[None, :], mask, dc, ASM)
        dh += load_like(p_dh_n + o_state, mask & (goes_on == 0)[:, None], dc, ASM)
        dc_later = dc
        if TILE > BB:
            dc_later = load_like(p_dc + o_state, mask, dc, ASM)
        p = p_dgates_bits + row_later * 4 * H + b[None, :, None] * (4 * H) + k[:, None, :]
        for chunk in tl.static_range(CHUNKS):
            wanted = goes_on[None, :, None] & (k + chunk * KS * KC < 4 * H)[:, None, :]
            bits = _await(p + chunk * KS * KC, wanted, wanted, LIMIT, KS * BB * KC, ASM)
            dh += tl.sum(product(bits.to(w[chunk].dtype, bitcast=True), w[chunk], PRECISION, ASM), 0)
        dc_t = dc_later
        di, df, dg, do = 0.0, 0.0, 0.0, 0.0
        if TRACE:
            di = load_like(p_dacts + o_gates, mask, dc, ASM)
            df = load_like(p_dacts + o_gates + H, mask, dc, ASM)
            dg = load_like(p_dacts + o_gates + 2 * H, mask, dc, ASM)
            do = load_like(p_dacts + o_gates + 3 * H, mask, dc, ASM)
            dc_t += load_like(p_dcells + o_cells, mask, dc, ASM)
        di, df, dg, do, dc_t = cell_backward(dh, dc_t, di, df, dg, do, i, f, g, o, c, before, FAST)
        _publish(p_dgates + o_gates, p_dgates_bits + o_gates, di, mask, ASM)
        _publish(p_dgates + o_gates + H, p_dgates_bits + o_gates + H, df, mask, ASM)
        _publish(p_dgates + o_gates + 2 * H, p_dgates_bits + o_gates + 2 * H, dg, mask, ASM)
        _publish(p_dgates + o_gates + 3 * H, p_dgates_bits + o_gates + 3 * H, do, mask, ASM)
        store_like(p_dc + o_state, dc_t, mask, ASM)
        dc = dc_t
        if RAGGED and TILE == BB:
            dc = tl.where(mask, dc_t, dc_later)
        sub += 1
        if sub * BB >= TILE:
            sub = 0
            s += 1
