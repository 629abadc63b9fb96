"""Which of the CUDA engine's loops runs a problem, and how it is cut up: a rule in numbers, no trial runs.

No figure here was measured on a GPU.  They come from the machine code that Triton 3.6 and 3.9 write for sm_90
(registers, spills, shared memory: `tests/engines/cuda/test_cuda_compile.py` holds the bounds), and from the number of
multiprocessors.
"""

from typing import NamedTuple, TypeAlias

import torch

from ..contract import Problem
from .device import GPU


class Rows(NamedTuple):
    """`engines/cuda/kernels/fused_rows.py`: a program owns a tile of sequences and all hidden units."""

    units: int  # H rounded up to a power of two
    tile: int
    warps: int


class Slices(NamedTuple):
    """`engines/cuda/kernels/fused_slices.py`: a program owns a slice of hidden units."""

    units: int  # of a slice
    slices: int
    chunks: int  # of the inner axis of a product, one after another
    parts: int  # of a chunk, side by side
    part: int
    rows: int  # sequences of a product
    tile: int  # sequences of a program
    tiles: int
    warps: int


class Steps(NamedTuple):
    """`engines/cuda/kernels/pointwise.py`: a product and a kernel for every step."""

    block: int
    warps: int


Plan: TypeAlias = Rows | Slices | Steps

# A product on tensor cores has 16 rows at least: smaller batches are filled up.
_ROWS = 16
# 16 and 32 warps were slower to compile and spilled more at every size.
_WARPS = 8
# The most hidden units for which W_hh, or a slice of it, stays in registers, by kind of product and units of the slice.
# One size up, hundreds of bytes a thread are spilled, or Triton asks for more shared memory than there is.
_ROWS_UNITS = {"half": 128, "tf32": 64, "float32": 32}
_SLICES_UNITS = {
    ("half", "forward"): {8: 1024, 16: 1024},
    ("half", "backward"): {8: 1024, 16: 512},
    ("tf32", "forward"): {8: 1024, 16: 512},
    ("tf32", "backward"): {8: 1024, 16: 256},
    ("float32", "forward"): {8: 512, 16: 256},
    ("float32", "backward"): {8: 512},
}
# The inner axis that a product takes at a time.
_INNER = {"half": 2048, "tf32": 2048, "float32": 1024}
# Sequences of a program of a slice, at most: one product after another, each as long as the first.
_TILE = 64
_BLOCK = 256


def steps() -> Steps:
    """The plan that runs every problem on every GPU."""
    return Steps(_BLOCK, 4)


def plan(problem: Problem, direction: str, precise: bool, gpu: GPU) -> Plan:
    """The loop for a problem without projection.

    direction  "forward" or "backward"
    precise    products of float32 are exact to float32, not to TF32
    gpu        the programs of `Slices` must all be on it at once
    """
    hidden, dtype = problem.hidden_size, problem.dtype
    if dtype == torch.float64 or problem.rows.steps == 1:
        return steps()
    kind = "half" if dtype.itemsize == 2 else "float32" if precise else "tf32"
    if hidden <= _ROWS_UNITS[kind]:
        units = max(16, power_of_two(hidden))
        return Rows(units, _ROWS, 4 if units <= 32 else _WARPS)
    for units, most in _SLICES_UNITS[kind, direction].items():
        inner = padded(hidden) * (1 if direction == "forward" else 4)
        if hidden <= most and (found := _slices(problem, units, inner, _INNER[kind], gpu)):
            return found
    return steps()


def _slices(problem: Problem, units: int, inner: int, most: int, gpu: GPU) -> Slices | None:
    """The cut into slices of so many units, or None if the GPU has not room for all of them."""
    slices = -(-problem.hidden_size // units)
    room = gpu.multiprocessors // (slices * problem.directions)
    groups = -(-problem.batch // _ROWS)
    if not room or groups > room * (_TILE // _ROWS):
        return None
    each = -(-groups // min(groups, room))
    chunks = -(-inner // most)
    part = max(16, power_of_two(-(-inner // (chunks * _WARPS))))
    parts = power_of_two(-(-inner // (chunks * part)))
    return Slices(units, slices, chunks, parts, part, _ROWS, each * _ROWS, -(-groups // each), _WARPS)


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def padded(hidden: int) -> int:
    """Units of a row of an exchange: rows of multiples of 16 bytes, of any type."""
    return -(-hidden // 8) * 8
