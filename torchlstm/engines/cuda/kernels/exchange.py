"""The exchange between programs that run at once: words are written once, and polled while they hold a sentinel.

Before the launch all words of the exchange hold the sentinel `EMPTY`, a pattern of bits that no result has.  A
producer writes each word once (`publish`).  A consumer reads it until it differs from `EMPTY` (`await_all`).  Each
word is its own flag and says nothing about other words.  So there is no separate flag, no fence and no barrier between
programs, and the order of memory accesses does not matter.

In PTX's memory model concurrent accesses are no data race if both are strong operations on the same 32-bit word (PTX
ISA, "Memory Consistency Model").  So results are written by `st.relaxed.gpu` of 32 bits, two units of 16 bits in one,
and read by `ld.volatile` of one, two or four words: the elements of a vector count as separate accesses.  Triton's
loads are that wide where rows begin at multiples of 16 bytes.  So rows are `PAD` units long, H rounded up to a
multiple of 8; the units from H on are zeros, published like all others.

The spin is bounded: a program that has read the sentinel `LIMIT` times aborts the launch (`trap`).  `docs/exchange.md`
draws all of this.
"""

import triton
import triton.language as tl

# All ones: as a float a NaN with a payload that arithmetic does not produce.  A result of these bits is published as
# another NaN.
EMPTY = tl.constexpr(-1)


@triton.jit
def publish(p_words, start, u, value, live, UNITS: tl.constexpr, H: tl.constexpr, PAD: tl.constexpr, ASM: tl.constexpr):
    """Write a slice of results into the exchange, never as `EMPTY`.

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
        # Two units make a word.  The halves have no bit in common, so their sum is the word; a sum also works in
        # whatever layout the units are, by shuffles.
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
    """Count a read that found the sentinel; abort beyond `LIMIT` of them."""
    tries += 1
    if tries > LIMIT:
        if ASM:
            tl.inline_asm_elementwise("trap; mov.b32 $0, $1;", "=r,r", [tries], dtype=tl.int32, is_pure=False, pack=1)
        else:
            assert tries <= LIMIT, "a program has waited in vain for the results of another"
    return tries


@triton.jit
def _missing(words, awaited, ROWWISE: tl.constexpr, SIZE: tl.constexpr):
    """Whether an awaited word is `EMPTY`, which is the largest unsigned number: one maximum over all words tells."""
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
    """Poll one word of each producer until all awaited ones are there: a poll of all words would read more memory.

    This is only a hint: other words of the same producers may not be visible yet.
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

    With each halving a warp holds fewer elements.  After `tl.sum` every warp would hold all of them, and all that
    follows would be computed once by each warp.
    """
    for i in tl.static_range(5):
        if 2 << i <= KS:
            x, y = tl.split(tl.reshape(a, (ROWS, N, KS // (2 << i), 2)))
            a = x + y
    return tl.reshape(a, (ROWS, N))
