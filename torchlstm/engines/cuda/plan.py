"""Which of the CUDA engine's loops runs a problem, and how it is cut up: a rule in numbers, no trial runs.

No figure here was measured on a GPU.  They come from the machine code that Triton 3.6 and 3.9 write for sm_80 to sm_120
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
# The most hidden units for which W_hh stays in registers, by kind of product.  One size up, hundreds of bytes a thread
# are spilled.
_ROWS_UNITS = {"half": 128, "tf32": 64, "float32": 32}
# The same for slices of W_hh: (units of a slice, most hidden units), the first that fits is taken.  A slice of 16 units
# reads as much as one of 8, so that there is half as much to read in all; it spills earlier, except of the forward in
# half precision.
_SLICES_UNITS = {
    ("half", "forward"): ((8, 512), (16, 1024), (8, 1024)),
    ("half", "backward"): ((8, 1024), (16, 1024)),
    ("tf32", "forward"): ((8, 1024), (16, 512)),
    ("tf32", "backward"): ((8, 1024), (16, 512)),
    ("float32", "forward"): ((8, 512), (16, 256)),
    ("float32", "backward"): ((8, 512), (16, 256)),
}
# The inner axis that a product takes at a time, by kind and units of a slice: what is read of it stays in registers
# until it is multiplied, beside the weights.  The first for which there is shared memory enough; every further product
# waits for memory once more.
_INNER = {
    ("half", 8): (2048, 1024), ("half", 16): (1024,), ("tf32", 8): (1024, 512), ("tf32", 16): (1024, 512),
    ("float32", 8): (1024, 512), ("float32", 16): (1024, 512),
}  # fmt: skip
# Sequences of a program of a slice, at most: one product after another, each as long as the first.  An estimate, not a
# measurement: four products of 1024 units take no longer than a step that launches its product and its cell alone.
_TILE = 64
_BLOCK = 256


def steps() -> Steps:
    """The plan that runs every problem on every GPU."""
    return Steps(_BLOCK, 4)


def plan(problem: Problem, direction: str, precise: bool, gpu: GPU) -> Plan:
    """The loop for a problem without projection.

    direction  "forward" or "backward"
    precise    products of float32 are exact to float32, not to TF32
    gpu        what it has of shared memory, and multiprocessors: the programs of `Slices` must all be on it at once
    """
    hidden, dtype = problem.hidden_size, problem.dtype
    if dtype == torch.float64 or problem.rows.steps == 1:
        return steps()
    kind = "half" if dtype.itemsize == 2 else "float32" if precise else "tf32"
    if hidden <= _ROWS_UNITS[kind]:
        units = max(16, power_of_two(hidden))
        rows = Rows(units, _ROWS, 4 if units <= 32 else _WARPS)
        return rows if shared_memory(rows, problem, direction, precise) <= gpu.shared_memory else steps()
    for units, most in _SLICES_UNITS[kind, direction]:
        # The GPU has to have room for all slices at once.
        room = gpu.multiprocessors // (-(-hidden // units) * problem.directions)
        if hidden > most or not room or problem.batch > room * _TILE:
            continue
        for inner in _INNER[kind, units]:
            slices = _slices(problem, direction, units, inner, room)
            if shared_memory(slices, problem, direction, precise) <= gpu.shared_memory:
                return slices
    return steps()


def _slices(problem: Problem, direction: str, units: int, most: int, room: int) -> Slices:
    """The cut into slices of so many units and products of at most so many terms, for so many tiles of sequences."""
    inner = padded(problem.hidden_size) * (1 if direction == "forward" else 4)
    groups = -(-problem.batch // _ROWS)
    each = -(-groups // min(groups, room))
    chunks = -(-inner // most)
    part = max(16, power_of_two(-(-inner // (chunks * _WARPS))))
    parts = power_of_two(-(-inner // (chunks * part)))
    slices = -(-problem.hidden_size // units)
    return Slices(units, slices, chunks, parts, part, _ROWS, each * _ROWS, -(-groups // each), _WARPS)


def shared_memory(plan: Rows | Slices, problem: Problem, direction: str, precise: bool) -> int:
    """Bytes of shared memory that Triton asks for: the largest of what passes through it, one after another."""
    size = problem.dtype.itemsize
    # Three products of TF32 have an operand of large and one of small parts.
    operand_size = 2 * size if precise and problem.dtype == torch.float32 else size
    if isinstance(plan, Rows):
        # The weight of a gate and c, which is float32, before the first step; h, or the gradients of a gate.
        return max(plan.units * plan.units * size, plan.tile * plan.units * max(4, operand_size))
    inner = plan.parts * plan.part
    sums = plan.parts * plan.rows * plan.units * (4 if direction == "forward" else 1)
    # The weight of a gate, before the first step; what is exchanged; the sums that are to be folded, in float32.
    return max(inner * plan.units * size, plan.rows * inner * operand_size, sums * 4)


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def padded(hidden: int) -> int:
    """Units of a row of an exchange: rows of multiples of 16 bytes, of any type."""
    return -(-hidden // 8) * 8
