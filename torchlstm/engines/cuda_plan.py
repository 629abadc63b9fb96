"""Which of the CUDA engine's loops runs a problem, and how it is cut up: a rule in numbers, no trial runs.

No figure here was measured on a GPU.  They come from the machine code that Triton 3.6 and 3.9 write for sm_90 (registers,
spills, shared memory: `tests/test_cuda_compile.py` holds the bounds) and from the number of multiprocessors.
"""

from typing import NamedTuple, TypeAlias

import torch

from .contract import Problem


class Rows(NamedTuple):
    """`kernels/cuda/fused_rows.py`: a program owns a tile of sequences and all hidden units."""

    units: int  # H rounded up to a power of two
    tile: int
    warps: int


class Slices(NamedTuple):
    """`kernels/cuda/fused_slices.py`: a program owns a slice of hidden units."""

    units: int  # of a slice
    slices: int
    parts: int  # of the inner axis of a product
    part: int
    rows: int  # sequences of a product
    tile: int  # sequences of a program
    tiles: int
    warps: int


class Steps(NamedTuple):
    """`kernels/cuda/pointwise.py`: a product and a kernel for every step."""

    block: int
    warps: int


Plan: TypeAlias = Rows | Slices | Steps

# A product has at least 16 rows on tensor cores: smaller batches are filled up.
_ROWS = 16
# By bytes of an element and direction of the loop: the most hidden units whose W_hh fits into the registers of one
# program (16-bit, 128 units: 254 of 255 registers with 8 warps; one size up spills hundreds of bytes a thread).
_ROWS_UNITS = {(2, "forward"): 128, (2, "backward"): 128, (4, "forward"): 64, (4, "backward"): 64}
# The same of a slice: so many hidden units of the layer, by units of the slice.  With more, registers spill.
_SLICES_UNITS = {
    (2, "forward"): {8: 1024, 16: 1024},
    (2, "backward"): {16: 1024},
    (4, "forward"): {8: 1024, 16: 512},
    (4, "backward"): {16: 512},
}
# Sequences of a program, at most: what a step of one product costs, every further product of a program costs again.
_TILE = 64
_BLOCK = 256


def plan(problem: Problem, direction: str, multiprocessors: int) -> Plan:
    """The loop for a problem without projection.

    direction        "forward" or "backward"
    multiprocessors  of the GPU; the programs of `Slices` must all be on it at once
    """
    hidden, size = problem.hidden_size, problem.dtype.itemsize
    if problem.dtype in (torch.float16, torch.bfloat16, torch.float32) and problem.rows.steps > 1:
        if hidden <= _ROWS_UNITS[size, direction]:
            units = max(16, _power_of_two(hidden))
            return Rows(units, _ROWS, 4 if units * size <= 64 else 8)
        for units, most in _SLICES_UNITS[size, direction].items():
            if hidden <= most and (found := _slices(problem, direction, units, multiprocessors)):
                return found
    return Steps(_BLOCK, 4)


def _slices(problem: Problem, direction: str, units: int, multiprocessors: int) -> Slices | None:
    """The cut into slices of so many units, or None if the GPU has not room for all of them."""
    slices = -(-problem.hidden_size // units)
    room = multiprocessors // (slices * problem.directions)
    if not room:
        return None
    groups = -(-problem.batch // _ROWS)
    tiles = min(groups, room)
    each = -(-groups // tiles)
    if each * _ROWS > _TILE:
        return None
    inner = problem.hidden_size * (1 if direction == "forward" else 4)
    warps = 8 if direction == "forward" else 16
    part = max(16, _power_of_two(-(-inner // warps)))
    parts = _power_of_two(-(-inner // part))
    return Slices(units, slices, parts, part, _ROWS, each * _ROWS, -(-groups // each), warps)


def _power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
