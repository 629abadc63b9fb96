"""A product of float32 matrices in a given precision, whatever torch's process-wide setting is.

    left, right, out  (M, K), (K, N), (M, N), of any strides; out gets left right, or that added if ADD

grid: (tiles of M, tiles of N).  For TF32 the operands are rounded beforehand, by `rounded`: the tensor cores of sm_90
read them from shared memory, the inner axis last, and truncate instead of rounding.
"""

import triton
import triton.language as tl


# Specialised on strides: Triton loads along the axis whose stride is 1.
@triton.jit
def rounded(p_in, p_out, R, C, in_r, in_c, BR: tl.constexpr, BC: tl.constexpr):
    """A tile (BR, BC) of a matrix (R, C) of any strides, rounded to TF32, halves away from zero; p_out: contiguous.

    No assembly: the rounding is arithmetic on the bits.
    """
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.program_id(1).to(tl.int64) * BC + tl.arange(0, BC)
    mask = (r < R)[:, None] & (c < C)[None, :]
    x = tl.load(p_in + r[:, None] * in_r + c[None, :] * in_c, mask=mask, other=0.0)
    bits = x.to(tl.int32, bitcast=True)
    # An exponent of ones is an infinity or NaN: adding to its digits could carry into the sign.
    finite = (bits & 0x7F800000) != 0x7F800000
    bits = tl.where(finite, (bits + 0x1000) & -0x2000, bits)
    tl.store(p_out + r[:, None] * C + c[None, :], bits.to(tl.float32, bitcast=True), mask=mask)


# Specialised on sizes too: if they are multiples of 16, a load of 16 bytes needs one mask.
@triton.jit
def product(
    p_left, p_right, p_out, M, N, K, left_m, left_k, right_k, right_n, out_m, out_n,
    ADD: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile (BM, BN) of out.  PRECISION: `tl.dot`'s word."""
    m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    n = tl.program_id(1).to(tl.int64) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    p_left += m[:, None] * left_m + k[None, :] * left_k
    p_right += k[:, None] * right_k + n[None, :] * right_n
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for done in range(0, K, BK):
        live = done + k < K
        left = tl.load(p_left, mask=(m < M)[:, None] & live[None, :], other=0.0)
        right = tl.load(p_right, mask=live[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        p_left += BK * left_k
        p_right += BK * right_k
    p_out += m[:, None] * out_m + n[None, :] * out_n
    mask = (m < M)[:, None] & (n < N)[None, :]
    if ADD:
        total += tl.load(p_out, mask=mask, other=0.0)
    tl.store(p_out, total, mask=mask)
