"""The exchange between programs that run at the same time: words that say themselves whether they are there.

The protocol is that of a sentinel.  Before the launch all words of the exchange are `EMPTY`, a pattern of bits that no
result has.  A producer writes each word once (`publish`), a consumer reads it until it is another than `EMPTY`
(`await_all`).  A word that is there is complete, and says nothing of any other word: so there is no flag, no fence, no
barrier between programs, and no order among memory accesses to rely on.

To PTX's memory model these are racing accesses, defined where both sides access the same 32-bit words by strong
operations (PTX ISA, "Memory Consistency Model").  So results are written by `st.relaxed.gpu` of 32 bits, two units of
16 bits in one, and read by `ld.volatile` of one, two or four words: a vector's elements are accesses of their own.
Triton's loads are that wide where rows begin at multiples of 16 bytes, so rows are `PAD` units long, H rounded up to a
multiple of 8; the units from H on are zeros, published like all others.

Spinning is bounded: who reads in vain `LIMIT` times ends the launch with an error (`trap`).
"""

import triton
import triton.language as tl

# All ones: as a float a NaN with a payload that arithmetic does not make.  A NaN of that kind is published as another.
EMPTY = tl.constexpr(-1)


@triton.jit
def publish(p_words, start, u, value, live, UNITS: tl.constexpr, H: tl.constexpr, PAD: tl.constexpr, ASM: tl.constexpr):
    """Write a slice of results where other programs wait for it, never as `EMPTY`.

    p_words  the exchange as int32
    start    (B,) where each sequence's row begins, in elements
    u        (UNITS,) the units of the slice, of which the first is even
    value    (B, UNITS) in the type of the elements
    live     (B,) which sequences have results
    """
    if H < PAD:
        value = tl.where((u < H)[None, :], value, tl.zeros(value.shape, value.dtype))
    p = p_words + start[:, None] + u[None, :]
    mask = live[:, None] & (u < PAD)[None, :]
    if value.dtype.primitive_bitwidth == 16:
        bits = value.to(tl.int16, bitcast=True).to(tl.int32)
        bits = tl.where(bits == EMPTY, 0x7FFF, bits) & 0xFFFF
        # A sum, in which no two bits meet: both units' threads get the word by a shuffle, wherever the layout has them.
        pairs = tl.reshape(bits << (u % 2 * 16)[None, :], (value.shape[0], UNITS // 2, 2))
        words = tl.broadcast_to(tl.sum(pairs, 2, keep_dims=True), pairs.shape)
        words = tl.reshape(words, value.shape)
        p = p_words + (start[:, None] + u[None, :]) // 2
        mask = mask & (u % 2 == 0)[None, :]
    else:
        words = value.to(tl.int32, bitcast=True)
        words = tl.where(words == EMPTY, 0x7FFFFFFF, words)
    if ASM:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.b32 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,r,r", [p, words, mask.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        tl.store(p, words, mask=mask)


@triton.jit
def _count(tries, LIMIT, ASM: tl.constexpr):
    """One more read in vain, of which there is an end."""
    tries += 1
    if tries > LIMIT:
        if ASM:
            tl.inline_asm_elementwise("trap; mov.b32 $0, $1;", "=r,r", [tries], dtype=tl.int32, is_pure=False, pack=1)
        else:
            assert tries <= LIMIT, "a program has waited in vain for the results of another"
    return tries


@triton.jit
def _missing(words, awaited, ROWWISE: tl.constexpr, SIZE: tl.constexpr):
    """Whether a word that is awaited is `EMPTY`: as an unsigned number the largest, so that one maximum tells."""
    if ROWWISE:
        words = tl.where(awaited, words, 0)
    most = tl.max(words.to(tl.uint32, bitcast=True).reshape(SIZE), 0).to(tl.int32, bitcast=True) == EMPTY
    if ROWWISE:
        return most
    else:
        return most & awaited


@triton.jit
def read(p_words, mask):
    """Read words, 0 where masked; all of them if the mask is None."""
    if mask is None:
        return tl.load(p_words, volatile=True)
    else:
        return tl.load(p_words, mask=mask, other=0, volatile=True)


@triton.jit
def await_all(p_words, mask, awaited, ROWWISE: tl.constexpr, LIMIT, SIZE: tl.constexpr, ASM: tl.constexpr):
    """Read words, 0 where masked, until none that is awaited is `EMPTY`.

    awaited  which words, of their shape, if ROWWISE; else whether any
    """
    words = read(p_words, mask)
    tries = 0
    while _missing(words, awaited, ROWWISE, SIZE):
        tries = _count(tries, LIMIT, ASM)
        words = read(p_words, mask)
    return words


@triton.jit
def elements(words, like: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Words (PARTS, ROWS, .) as (PARTS, ROWS, UNITS) elements of a type of 16 or 32 bits."""
    if like.primitive_bitwidth == 16:
        low = (words & 0xFFFF).to(tl.int16)
        high = (words >> 16).to(tl.int16)
        return tl.reshape(tl.join(low, high), (PARTS, ROWS, UNITS)).to(like, bitcast=True)
    else:
        return words.to(like, bitcast=True)


@triton.jit
def await_one_each(p_words, awaited, LIMIT, ASM: tl.constexpr):
    """Read one word of each producer until all that are awaited are there: less to read in vain than all words are.

    It is a hint alone: other words of the same producers may still be on their way.
    """
    missing = 1
    tries = -1
    while missing > 0:
        tries = _count(tries, LIMIT, ASM)
        words = tl.load(p_words, mask=awaited, other=0, volatile=True)
        missing = tl.max((words == EMPTY).to(tl.int32), 0)


@triton.jit
def fold(a, KS: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr):
    """The sum of (ROWS, N, KS) over its last axis, which lies across warps, by halves.

    By each half a program's warps come to hold fewer elements each.  After `tl.sum`, every warp would hold all of them,
    and do all that follows as often as there are warps.
    """
    for i in tl.static_range(5):
        if 2 << i <= KS:
            x, y = tl.split(tl.reshape(a, (ROWS, N, KS // (2 << i), 2)))
            a = x + y
    return tl.reshape(a, (ROWS, N))
