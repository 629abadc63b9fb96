"""The fused loop of many units: each program owns a slice of units; all exchange h, or dgates, at every step.

A slice's part of W_hh stays in registers for all steps.  What the programs exchange is described in `exchange.py`:
h forward, the gradients of the gates backward.  All programs must be on the GPU at once, which a cooperative launch
guarantees.

grid: D * tiles * slices programs.  Names and shapes as in `fused_rows.py`, and

    words         the exchange as int32: of elements (P, D, PAD) forward, (D, P, 4, PAD) backward; where PAD is H, the
                  same memory as y and dgates
    h_0_words     h_0 (D, B, PAD) as int32
    c_0, dc_n     (D, B, H) the first states, read where a program holds them; dh_n and dc_n may be None, for zero
    c, dc         (D, B, H) c_n and dc_0; where a program has several products a step, float32, c_0 and dc_n before
    LIMIT         how often a program may read the sentinel before it aborts
    OFFSET        added to the program's index; tests run every program in a process of its own
    HS, SLICES    units of a slice, slices of a direction
    CHUNKS, KS, KC
                  a product's inner axis is cut into CHUNKS, one after another, of KS parts of KC: a part is a warp's,
                  since Triton puts all warps of a small product on its rows
    BB, TILE      sequences of a product, and of a program: multiples of BB, one after another
"""

import triton
import triton.language as tl

from .common import (
    barrier,
    cell_backward,
    cell_forward,
    load_like,
    load_weight,
    product,
    rounded,
    row_of,
    store_like,
)
from .exchange import await_all, await_one_each, elements, fold, publish, read

CHANGING = ["T", "B", "P", "TILES", "LIMIT", "OFFSET"]


@triton.jit
def _carried(p_state, b, u, i_d, B, H: tl.constexpr, HELD: tl.constexpr):
    """The state of sequences b and units u if a program holds it from step to step, else a tensor of its shape.

    A program that has several products a step leaves the states in memory between two steps.
    """
    mask = (b < B)[:, None] & (u < H)[None, :]
    if HELD and p_state is not None:
        return tl.load(p_state + (i_d * B + b)[:, None] * H + u[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.zeros(mask.shape, tl.float32)


@triton.jit
def _readable(first, count, BB: tl.constexpr):
    """For each row of a product the sequence to read: its own of the first `count`, the last of these for the others.

    So all addresses are valid and no mask is needed.  Nothing is computed from what the other rows read.
    """
    return tl.where(count > 0, first + tl.minimum(tl.arange(0, BB), count - 1), 0)


@triton.jit
def _keep(p_state, state, b, u, i_d, B, H: tl.constexpr, ASM: tl.constexpr):
    """Write the state that a program has held (`_carried`) back to memory."""
    store_like(p_state + (i_d * B + b)[:, None] * H + u[None, :], state, (b < B)[:, None] & (u < H)[None, :], ASM)


@triton.jit(do_not_specialize=CHANGING, do_not_specialize_on_alignment=["p_starts", "p_lengths"])
def forward(
    p_gates, p_w_hh, p_words, p_y, p_cells, p_h_0_words, p_c_0, p_h_n, p_c, p_starts, p_lengths,
    T, B, P, TILES, LIMIT, OFFSET,
    H: tl.constexpr, PAD: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, SLICES: tl.constexpr, KS: tl.constexpr,
    KC: tl.constexpr, CHUNKS: tl.constexpr, BB: tl.constexpr, TILE: tl.constexpr, RAGGED: tl.constexpr,
    REVERSE: tl.constexpr, SAVE: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr, ASM: tl.constexpr,
    SLICES_UP: tl.constexpr, PEEK: tl.constexpr,
):  # fmt: skip
    """The time loop forward."""
    i_program = tl.program_id(0) + OFFSET
    i_slice = i_program % SLICES
    i_tile = i_program // SLICES % TILES
    i_d = i_program // SLICES // TILES
    onwards = i_d + REVERSE == 0
    u = i_slice * HS + tl.arange(0, HS)
    k = tl.arange(0, KS)[:, None] * KC + tl.arange(0, KC)[None, :]
    # Each gate is a product of its own, as in `fused_rows.py`.
    w = ()
    for chunk in tl.static_range(CHUNKS):
        for gate in tl.static_range(4):
            from_unit = (k + chunk * KS * KC)[:, :, None]
            p_w = p_w_hh + ((i_d * 4 + gate) * H + u)[None, None, :] * H + from_unit
            mask_w = (from_unit < H) & (u < H)[None, None, :]
            w = w + (load_weight(p_w, mask_w, PRECISION, ASM),)  # noqa: RUF005
    ROUND: tl.constexpr = PRECISION == "tf32" and p_y.dtype.element_ty == tl.float32
    APART: tl.constexpr = ROUND or H < PAD
    WORD: tl.constexpr = 32 // p_y.dtype.element_ty.primitive_bitwidth  # elements of a word
    KW: tl.constexpr = KC // WORD
    k_words = tl.arange(0, KS)[:, None] * KW + tl.arange(0, KW)[None, :]
    p_gates += i_d * P.to(tl.int64) * 4 * H
    p_cells += i_d * P.to(tl.int64) * H
    b = i_tile * TILE + tl.arange(0, BB)
    c = _carried(p_c_0, b, u, i_d, B, H, TILE == BB)
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
        # Loaded while this program waits for the others.
        i_x = load_like(p, mask, c, ASM)
        f_x = load_like(p + H, mask, c, ASM)
        g_x = load_like(p + 2 * H, mask, c, ASM)
        o_x = load_like(p + 3 * H, mask, c, ASM)
        before = c
        if TILE > BB:
            before = load_like(p_c + o_state, mask, c, ASM)
        first = i_tile * TILE + sub * BB
        count = tl.minimum(B - first, BB)
        if RAGGED:
            count = tl.sum(live.to(tl.int32), 0)  # lengths fall: they are the first ones
        b_read = _readable(first, count, BB)
        if PEEK:
            late = (row_earlier * D + (first + count - 1) * D + i_d) * PAD
            slices = tl.arange(0, SLICES_UP)
            known = tl.sum((begun & live & (tl.arange(0, BB) == count - 1)).to(tl.int32), 0)
            p_late = p_words + (late + slices * HS) // WORD
            await_one_each(p_late, (slices < SLICES) & (slices * 0 + known > 0), LIMIT, ASM)
        p_y_words = p_words + (row_earlier * D * PAD + b_read[None, :, None] * (D * PAD) + i_d * PAD) // WORD
        p_h_0 = p_h_0_words + (i_d * B + b_read)[None, :, None] * (PAD // WORD)
        i = tl.zeros([KS, BB, HS], tl.float32)
        f = i
        g = i
        o = i
        for chunk in tl.static_range(CHUNKS):
            at = chunk * KS * KW + k_words[:, None, :]
            inside = None if CHUNKS * KS * KC == PAD else at < PAD // WORD
            # A choice between addresses would hide from Triton 3.9 that four words are adjacent: dense batches take a
            # branch instead.
            if RAGGED:
                p_h = tl.where(begun[None, :, None], p_y_words + at, p_h_0 + at)
                words = await_all(p_h, inside, (begun & live)[None, :, None], True, LIMIT, KS * BB * KW, ASM)
                h = rounded(elements(words, w[0].dtype, KS, BB, KC), PRECISION, ASM)
            elif s == 0:
                h = rounded(elements(read(p_h_0 + at, inside), w[0].dtype, KS, BB, KC), PRECISION, ASM)
            else:
                words = await_all(p_y_words + at, inside, True, False, LIMIT, KS * BB * KW, ASM)
                h = elements(words, w[0].dtype, KS, BB, KC)
            i = product(h, w[4 * chunk], i, PRECISION, ASM)
            f = product(h, w[4 * chunk + 1], f, PRECISION, ASM)
            g = product(h, w[4 * chunk + 2], g, PRECISION, ASM)
            o = product(h, w[4 * chunk + 3], o, PRECISION, ASM)
        gates = tl.permute(tl.join(tl.join(i, g), tl.join(f, o)), (1, 2, 3, 4, 0))
        gates = fold(tl.reshape(gates, (BB, 4 * HS, KS)), KS, BB, 4 * HS)
        i_g, f_o = tl.split(tl.reshape(gates, (BB, HS, 2, 2)))
        i, g = tl.split(i_g)
        f, o = tl.split(f_o)
        i, f, g, o, c, h = cell_forward(i + i_x, f + f_x, g + g_x, o + o_x, before, FAST)
        o_y = row * D * PAD + b * (D * PAD) + i_d * PAD
        published = rounded(h.to(p_y.dtype.element_ty), PRECISION, ASM)
        publish(p_words, o_y, u, published, live, HS, H, PAD, ASM)
        barrier(ASM)  # gates and states of this step have been read by all threads
        if APART:
            store_like(p_y + row * D * H + b[:, None] * (D * H) + i_d * H + u[None, :], h, mask, ASM)
        if TILE > BB:
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
    if TILE == BB:
        _keep(p_c, c, i_tile * TILE + tl.arange(0, BB), u, i_d, B, H, ASM)


@triton.jit(do_not_specialize=CHANGING, do_not_specialize_on_alignment=["p_starts", "p_lengths"])
def backward(
    p_acts, p_w_hh, p_words, p_cells, p_c_0, p_dy, p_dh_n, p_dc_n, p_dc, p_dacts, p_dcells, p_dgates,
    p_starts, p_lengths, T, B, P, TILES, LIMIT, OFFSET,
    H: tl.constexpr, PAD: tl.constexpr, D: tl.constexpr, HS: tl.constexpr, SLICES: tl.constexpr,
    KS: tl.constexpr, KC: tl.constexpr, CHUNKS: tl.constexpr, BB: tl.constexpr, TILE: tl.constexpr,
    RAGGED: tl.constexpr, REVERSE: tl.constexpr,
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
    w = ()
    for chunk in tl.static_range(CHUNKS):
        at = k + chunk * KS * KC
        gate, to_unit = at // PAD, at % PAD
        mask_w = (at < 4 * PAD)[:, :, None] & (to_unit < H)[:, :, None] & (u < H)[None, None, :]
        p_w = p_w_hh + ((i_d * 4 + gate) * H + to_unit)[:, :, None] * H + u[None, None, :]
        w = w + (load_weight(p_w, mask_w, PRECISION, ASM),)  # noqa: RUF005
    p_acts += i_d * P.to(tl.int64) * 4 * H
    p_dgates += i_d * P.to(tl.int64) * 4 * H
    p_cells += i_d * P.to(tl.int64) * H
    ROUND: tl.constexpr = PRECISION == "tf32" and p_dgates.dtype.element_ty == tl.float32
    APART: tl.constexpr = ROUND or H < PAD
    WORD: tl.constexpr = 32 // p_dgates.dtype.element_ty.primitive_bitwidth  # elements of a word
    KW: tl.constexpr = KC // WORD
    k_words = tl.arange(0, KS)[:, None] * KW + tl.arange(0, KW)[None, :]
    if TRACE:
        p_dacts += i_d * P.to(tl.int64) * 4 * H
        p_dcells += i_d * P.to(tl.int64) * H
    b = i_tile * TILE + tl.arange(0, BB)
    dc = _carried(p_dc_n, b, u, i_d, B, H, TILE == BB)
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
        if p_dh_n is not None:
            dh += load_like(p_dh_n + o_state, mask & (goes_on == 0)[:, None], dc, ASM)
        dc_later = dc
        if TILE > BB:
            dc_later = load_like(p_dc + o_state, mask, dc, ASM)
        going_on = tl.sum(goes_on.to(tl.int32), 0)  # lengths fall: they are the first ones
        b_read = _readable(i_tile * TILE + sub * BB, going_on, BB)
        p = p_words + (i_d * P.to(tl.int64) + row_later + b_read[None, :, None]) * (4 * PAD // WORD)
        parts = tl.zeros([KS, BB, HS], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            words = chunk * KS * KW + k_words[:, None, :]
            inside = None if CHUNKS * KS * KC == 4 * PAD else words < 4 * PAD // WORD
            words = await_all(p + words, inside, going_on > 0, False, LIMIT, KS * BB * KW, ASM)
            dgates = elements(words, w[chunk].dtype, KS, BB, KC)
            parts = product(dgates, w[chunk], parts, PRECISION, ASM)
        dh += tl.where(goes_on[:, None], fold(tl.permute(parts, (1, 2, 0)), KS, BB, HS), 0.0)
        dc_t = dc_later
        di, df, dg, do = 0.0, 0.0, 0.0, 0.0
        if TRACE:
            di = load_like(p_dacts + o_gates, mask, dc, ASM)
            df = load_like(p_dacts + o_gates + H, mask, dc, ASM)
            dg = load_like(p_dacts + o_gates + 2 * H, mask, dc, ASM)
            do = load_like(p_dacts + o_gates + 3 * H, mask, dc, ASM)
            dc_t += load_like(p_dcells + o_cells, mask, dc, ASM)
        di, df, dg, do, dc_t = cell_backward(dh, dc_t, di, df, dg, do, i, f, g, o, c, before, FAST)
        o_published = (i_d * P.to(tl.int64) + row + b) * (4 * PAD)
        to: tl.constexpr = p_dgates.dtype.element_ty
        publish(p_words, o_published, u, rounded(di.to(to), PRECISION, ASM), live, HS, H, PAD, ASM)
        publish(p_words, o_published + PAD, u, rounded(df.to(to), PRECISION, ASM), live, HS, H, PAD, ASM)
        publish(p_words, o_published + 2 * PAD, u, rounded(dg.to(to), PRECISION, ASM), live, HS, H, PAD, ASM)
        publish(p_words, o_published + 3 * PAD, u, rounded(do.to(to), PRECISION, ASM), live, HS, H, PAD, ASM)
        barrier(ASM)  # states of this step have been read by all threads
        if APART:
            store_like(p_dgates + o_gates, di, mask, ASM)
            store_like(p_dgates + o_gates + H, df, mask, ASM)
            store_like(p_dgates + o_gates + 2 * H, dg, mask, ASM)
            store_like(p_dgates + o_gates + 3 * H, do, mask, ASM)
        if TILE > BB:
            store_like(p_dc + o_state, dc_t, mask, ASM)
        dc = dc_t
        if RAGGED and TILE == BB:
            dc = tl.where(mask, dc_t, dc_later)
        sub += 1
        if sub * BB >= TILE:
            sub = 0
            s += 1
    if TILE == BB:
        _keep(p_dc, dc, i_tile * TILE + tl.arange(0, BB), u, i_d, B, H, ASM)
