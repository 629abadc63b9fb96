"""The products around and within the time loop, in the precision of the call, whatever torch's setting is.

torch's own products of float32 follow a setting of the process, `torch.backends.cuda.matmul.fp32_precision`.  Other
threads read it, so it is never switched here.  Where it allows the precision that a call has, torch multiplies, by
cuBLAS.  Where it does not, a kernel of ours does: in exact float32 under a setting of TF32, or in TF32 under a setting
of exact products, if the product is large enough to gain.  The latter takes a rounded copy of both operands.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import Problem
from ..shared.torch_private import constant
from . import launch as launching
from .plan import divide_up


class _Tile(NamedTuple):
    """How the kernel is cut: rows, columns and inner axis of a tile, warps, and stages of its pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


# Their shared memory fits on every GPU of compute capability 8.0 or newer.
_EXACT, _TF32 = _Tile(128, 64, 32, 4, 2), _Tile(128, 128, 32, 4, 3)
# Rows and columns of a tile of the kernel that rounds an operand.
_PATCH = 64
# The least multiplications and tiles for which a product that may be in TF32 is the kernel's, not cuBLAS's exact one:
# below, the exact one takes no longer (H200: 0.09 ms at the bound), and few tiles leave most of a GPU idle.
_LARGE, _MANY = 1 << 31, 64


@constant
def _wants_exact(cell: bool) -> bool:
    setting: Any = torch.backends.cuda.matmul if cell else torch.backends.cudnn.rnn
    return bool(setting.fp32_precision != "tf32")


def exact(problem: Problem) -> bool:
    """Whether torch's settings, as they are now, want a problem's products of float32 exact.

    nn.LSTM's follow `torch.backends.cudnn.rnn`, nn.LSTMCell's `torch.backends.cuda.matmul`; other dtypes have one
    precision.  A compiled program keeps what it was compiled under.
    """
    return problem.dtype == torch.float32 and _wants_exact(problem.cell)


def in_tf32() -> bool:
    """Whether torch's own products of float32 round their operands to TF32."""
    matmul: Any = torch.backends.cuda.matmul
    return bool(matmul.fp32_precision == "tf32")


def strict(dtype: torch.dtype, exact: bool) -> bool:
    """Whether a product has to be exact, and torch's own would not be."""
    return exact and dtype == torch.float32 and in_tf32()


def _ours(out: Tensor, left: Tensor, exact: bool) -> bool:
    """Whether a product is computed by our kernel."""
    if out.dtype != torch.float32:
        return False
    return in_tf32() if exact else not in_tf32() and _pays(out, left)


def multiply(out: Tensor, left: Tensor, right: Tensor, exact: bool, add: bool = False) -> Tensor:
    """Write left (M, K) @ right (K, N) to out (M, N), or add it; returns out."""
    if _ours(out, left, exact):
        return own(out, left, right, exact, add)
    if add:
        return out.addmm_(left, right)
    return torch.mm(left, right, out=out)


def product(left: Tensor, right: Tensor, exact: bool) -> Tensor:
    """left (M, K) @ right (K, N)."""
    return multiply(left.new_empty(left.shape[0], right.shape[1]), left, right, exact)


def affine(out: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, exact: bool) -> None:
    """Write left (M, K) @ right (K, N) to out (M, N), with bias (N,) added to each row."""
    if bias is None:
        multiply(out, left, right, exact)
    elif _ours(out, left, exact):
        own(out.copy_(bias), left, right, exact, add=True)
    else:
        torch.addmm(bias, left, right, out=out)


def own(out: Tensor, left: Tensor, right: Tensor, exact: bool, add: bool = False) -> Tensor:
    """As `multiply`, by the kernel: in float32, or with operands rounded to TF32."""
    tile = _EXACT if exact else _TF32
    if not exact:
        left, right = _rounded(left), _rounded(right.t()).t()
    (rows, inner), columns = left.shape, right.shape[1]
    # The interpreter multiplies in float32: of TF32 it has the rounding of operands alone.
    precision = "ieee" if exact or launching.INTERPRETED else "tf32"
    launching.launch(
        "product", "product", _tiles(rows, columns, tile), tile.warps,
        (left, right, out),
        (rows, columns, inner, *left.stride(), *right.stride(), *out.stride()),
        stages=tile.stages, ADD=add, PRECISION=precision, BM=tile.rows, BN=tile.columns, BK=tile.inner,
    )  # fmt: skip
    return out


def _rounded(matrix: Tensor) -> Tensor:
    """A matrix (R, C) of any strides, rounded to TF32: contiguous, and of its own."""
    out = matrix.new_empty(matrix.shape)
    launching.launch(
        "product", "rounded", (divide_up(out.shape[0], _PATCH), divide_up(out.shape[1], _PATCH)), _TF32.warps,
        (matrix, out), (*out.shape, *matrix.stride()), BR=_PATCH, BC=_PATCH,
    )  # fmt: skip
    return out


def _tiles(rows: int, columns: int, tile: _Tile) -> tuple[int, int]:
    return divide_up(rows, tile.rows), divide_up(columns, tile.columns)


def _pays(out: Tensor, left: Tensor) -> bool:
    (rows, columns), inner = out.shape, left.shape[1]
    return rows * columns * inner >= _LARGE and math.prod(_tiles(rows, columns, _TF32)) >= _MANY
