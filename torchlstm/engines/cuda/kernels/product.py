"""A product of matrices of float32 whose precision is its own, whatever torch's process-wide setting says.

    left, right, out  (M, K), (K, N), (M, N), of any strides; out gets left right, or that added if ADD

grid: (tiles of M, tiles of N).  No assembly: TF32's rounding is arithmetic on the bits.
"""

import triton
import triton.language as tl


@triton.jit
def _rounded(x):
    """A float32 rounded to TF32, halves away from zero; what the product would do itself is cut the bits off."""
    bits = x.to(tl.int32, bitcast=True)
    # An exponent of ones is an infinity or NaN: to add to its digits could carry into the sign.
    finite = (bits & 0x7F800000) != 0x7F800000
    near = (bits + 0x1000) & -0x2000
    return tl.where(finite, near, bits).to(tl.float32, bitcast=True)


# Sizes are specialised on too: of multiples of 16, loads of 16 bytes need one mask.
@triton.jit
def product(
    p_left, p_right, p_out, M, N, K, left_m, left_k, right_k, right_n, out_m, out_n,
    ADD: tl.constexpr, PRECISION: tl.constexpr, ROUND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile (BM, BN) of out.  PRECISION: `tl.dot`'s word; ROUND: round the operands to TF32."""
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
        if ROUND:
            left = _rounded(left)
            right = _rounded(right)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        p_left += BK * left_k
        p_right += BK * right_k
    p_out += m[:, None] * out_m + n[None, :] * out_n
    mask = (m < M)[:, None] & (n < N)[None, :]
    if ADD:
        total += tl.load(p_out, mask=mask, other=0.0)
    tl.store(p_out, total, mask=mask)
