"""What the kernels share: the cell's arithmetic, products, and memory accessed in a product's layout."""

import triton
import triton.language as tl

# Prefixes: p_ pointer, b_ block, i_ program index, o_ offset.  FAST: the hardware's approximate tanh, for half
# precision.  ASM: compiled for a GPU; the interpreter has no assembly, and takes the same arithmetic in Triton's own
# operations.


@triton.jit
def tanh(x, FAST: tl.constexpr):
    """tanh: with FAST of float32 with a relative error of 2^-11 (PTX ISA, tanh.approx), else to rounding error."""
    if FAST:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        # exp(-2|x|) is in (0, 1]: nothing overflows.
        e = tl.exp(-2.0 * tl.abs(x))
        far = (1.0 - e) / (1.0 + e)
        far = tl.where(x < 0, -far, far)
        if x.dtype == tl.float64:
            return far
        else:
            # Near 0 the difference loses digits of float32: Taylor's series.
            s = x * x
            near = x * (1.0 + s * (-0.33333333333 + s * (0.13333333333 + s * (-0.05396825397 + s * 0.02186948854))))
            return tl.where(tl.abs(x) < 0.2, near, far)


@triton.jit
def sigmoid(x, FAST: tl.constexpr):
    """1 / (1 + exp(-x))."""
    if FAST:
        return 0.5 * tanh(0.5 * x, True) + 0.5
    else:
        return 1.0 / (1.0 + tl.exp(-x))


# `tl.load` and `tl.store` choose a layout of their own; every conversion from it goes through shared memory and takes
# two barriers for each tensor and step.  Inline assembly has no layout: it takes that of its operands, one of which
# (`like`) comes out of a product.  One element an instruction: with two, the second address would be a guess about the
# layout.


@triton.jit
def load_like(p, mask, like, ASM: tl.constexpr):
    """What p points to as float32, 0 where masked, in the layout of `like`, a float32 of the same shape."""
    if ASM:
        m = mask.to(tl.int32)
        anchor = like.to(tl.int32, bitcast=True)
        if p.dtype.element_ty.primitive_bitwidth == 16:
            bits = tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b16 $0, 0; @p ld.global.b16 $0, [$1]; }",
                "=h,l,r,r", [p, m, anchor], dtype=tl.int16, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            bits = tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.ne.s32 p, $2, 0; mov.b32 $0, 0; @p ld.global.b32 $0, [$1]; }",
                "=r,l,r,r", [p, m, anchor], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
        return bits.to(p.dtype.element_ty, bitcast=True).to(tl.float32)
    else:
        return tl.load(p, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_like(p, value, mask, ASM: tl.constexpr):
    """Store a float32 in the element type of p, in the value's own layout."""
    value = value.to(p.dtype.element_ty)
    if ASM:
        m = mask.to(tl.int32)
        if p.dtype.element_ty.primitive_bitwidth == 16:
            tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.global.b16 [$1], $2; mov.b16 $0, 0; }",
                "=h,l,h,r", [p, value.to(tl.int16, bitcast=True), m], dtype=tl.int16, is_pure=False, pack=1,
            )  # fmt: skip
        else:
            tl.inline_asm_elementwise(
                "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.global.b32 [$1], $2; mov.b32 $0, 0; }",
                "=r,l,r,r", [p, value.to(tl.int32, bitcast=True), m], dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
    else:
        tl.store(p, value, mask=mask)


@triton.jit
def barrier(ASM: tl.constexpr):
    """A barrier of the threads of this program.

    Several threads may hold the same element of a tensor: none may overwrite the gates or a state in memory before all
    have read them.  With Triton's own barrier its compiler would fetch the weights from shared memory in every step
    (seen for sm_90).  The interpreter needs no barrier.
    """
    if ASM:
        tl.inline_asm_elementwise("bar.sync 0; mov.b32 $0, $1;", "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def rounded(x, PRECISION: tl.constexpr, ASM: tl.constexpr):
    """An operand of `product`: float32 rounded to TF32 (to nearest, ties away from zero) if that is the precision.

    Tensor cores do not round their operands: they truncate float32 to TF32.
    """
    if PRECISION == "tf32" and x.dtype == tl.float32:
        if ASM:
            return tl.inline_asm_elementwise(
                "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            bits = x.to(tl.int32, bitcast=True)
            finite = (bits & 0x7F800000) != 0x7F800000
            return tl.where(finite, (bits + 0x1000) & -0x2000, bits).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def load_weight(p, mask, PRECISION: tl.constexpr, ASM: tl.constexpr):
    """Load a part of a weight, 0 where masked, as an operand of products.

    It passes through shared memory into the layout of operands.  Triton 3.6 would reserve shared memory for all parts
    that are loaded one after another at once, unless each is used in between: here by a move that is opaque to it.
    """
    w = tl.load(p, mask=mask, other=0.0)
    if not ASM or (PRECISION == "tf32" and w.dtype == tl.float32):
        return rounded(w, PRECISION, ASM)
    elif w.dtype.primitive_bitwidth == 16:
        bits = w.to(tl.int16, bitcast=True)
        bits = tl.inline_asm_elementwise("mov.b16 $0, $1;", "=h,h", [bits], dtype=tl.int16, is_pure=True, pack=1)
        return bits.to(w.dtype, bitcast=True)
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [w], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def product(a, w, sum, PRECISION: tl.constexpr, ASM: tl.constexpr):
    """sum + a w in float32; a of the type of w, and both `rounded`."""
    if ASM:
        return tl.dot(a, w, sum, input_precision=PRECISION)
    else:
        # The interpreter would multiply the bits of a bfloat16 as integers.
        return tl.dot(a.to(tl.float32), w.to(tl.float32), sum, input_precision="ieee")


@triton.jit
def row_of(p_starts, t, B, RAGGED: tl.constexpr):
    """The first packed row of step t, int64."""
    if RAGGED:
        return tl.load(p_starts + t)
    else:
        return t.to(tl.int64) * B


@triton.jit
def cell_forward(i, f, g, o, c, FAST: tl.constexpr):
    """`equations.lstm_cell` from the gates before activation: i, f, g, o activated, c, h."""
    i = sigmoid(i, FAST)
    f = sigmoid(f, FAST)
    g = tanh(g, FAST)
    o = sigmoid(o, FAST)
    c = f * c + i * g
    return i, f, g, o, c, o * tanh(c, FAST)


@triton.jit
def cell_backward(dh, dc, di, df, dg, do, i, f, g, o, c, before, FAST: tl.constexpr):
    """The gradients of the gates before activation and of `before`, c of the step before.

    dh, dc          gradients at h and c, the latter from later steps
    di, df, dg, do  gradients of the activated gates themselves
    """
    r = tanh(c, FAST)
    dc += dh * o * (1.0 - r * r)
    di = (dc * g + di) * i * (1.0 - i)
    df = (dc * before + df) * f * (1.0 - f)
    dg = (dc * i + dg) * (1.0 - g * g)
    do = (dh * r + do) * o * (1.0 - o)
    return di, df, dg, do, dc * f
