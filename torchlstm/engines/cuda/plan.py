"""Which of the CUDA engine's loops runs a problem, and how it is cut up: a rule in numbers, no trial runs.

The order of the cuts is that of their times on an H200 (Triton 3.6; `docs/gpu.md`, "The time loop alone"); what fits at
all follows from shared memory and the number of multiprocessors.  Products of float32 that are exact were not timed.
"""

from typing import Any, NamedTuple, TypeAlias

import torch

from ..contract import Problem
from .device import GPU


class Rows(NamedTuple):
    """`engines/cuda/kernels/fused_rows.py`: a program owns a tile of sequences and all hidden units."""

    units: int  # H rounded up to a power of two
    tile: int
    warps: int


class Slices(NamedTuple):
    """`engines/cuda/kernels/fused_slices.py`: a program owns a slice of hidden units.

    peek  poll one word of each slice before all words are read
    """

    units: int  # of a slice
    slices: int
    chunks: int  # of the inner axis of a product, one after another
    parts: int  # of a chunk, side by side
    part: int
    rows: int  # sequences of a product
    tile: int  # sequences of a program
    tiles: int
    warps: int
    peek: bool = False


class Steps(NamedTuple):
    """`engines/cuda/kernels/pointwise.py`: a product and a kernel for every step."""

    block: int
    warps: int


Plan: TypeAlias = Rows | Slices | Steps

# A product on tensor cores has at least 16 rows: smaller batches are padded.
_ROWS = 16
_WARPS = 8
# The most hidden units for which W_hh stays in registers, by kind of product.  One size up, hundreds of bytes a thread
# are spilled.
_ROWS_UNITS = {"half": 128, "tf32": 64, "float32": 32}
# Up to so many units, one program that owns all of them is as fast as slices that wait for each other.
_FEW_UNITS = 32
# The cuts into slices by preference: units of a slice, warps, the most hidden units.  Fewer warps have fewer sums to
# fold; twice the units halve what all programs read, and their number.
_SLICES = {
    ("half", "forward"): ((8, 4, 512), (16, 8, 1024), (8, 8, 1024)),
    ("half", "backward"): ((8, 4, 64), (16, 8, 1024), (8, 8, 1024)),
    ("tf32", "forward"): ((8, 4, 256), (16, 8, 512), (8, 8, 1024), (16, 8, 1024)),
    ("tf32", "backward"): ((8, 4, 64), (16, 8, 1024), (8, 8, 1024)),
    ("float32", "forward"): ((8, 8, 512), (16, 8, 256)),
    ("float32", "backward"): ((8, 8, 512), (16, 8, 256)),
}
# The least and the most hidden units for which a forward polls one word of each slice before it reads all words.  A
# backward does not gain, nor does a program with several products a step.
_PEEK = (129, 512)
# Terms of a product's inner axis at a time, by kind and units of a slice, by preference: the first is taken that fits
# into shared memory.  The operand stays in registers beside the weights until it is multiplied; each further product
# waits for memory once more.
_INNER = {
    ("half", 8): (2048, 1024), ("half", 16): (1024,), ("tf32", 8): (1024, 512), ("tf32", 16): (1024, 512),
    ("float32", 8): (1024, 512), ("float32", 16): (1024, 512),
}  # fmt: skip
# Sequences of a program of a slice, at most: one product of 16 after another, each as long as the first.  Beyond, steps
# are faster: in half precision, of 1024 units, four products take 11 us and a step 8 (forward); of TF32 21 and 29.
_TILE = {"half": 32, "tf32": 64, "float32": 64}
_BLOCK = 256

# Plans that were made, by all that the rule depends on.
_known: dict[tuple[Any, ...], Plan] = {}
_MOST = 4096


def steps() -> Steps:
    """The plan that runs every problem on every GPU."""
    return Steps(_BLOCK, 4)


def plan(problem: Problem, direction: str, precise: bool, gpu: GPU) -> Plan:
    """The loop for a problem without projection.

    direction  "forward" or "backward"
    precise    products of float32 are exact to float32, not to TF32
    gpu        what it has of shared memory, and multiprocessors: the programs of `Slices` must all be on it at once
    """
    single = problem.rows.steps == 1
    key = (problem.hidden_size, problem.batch, problem.directions, problem.dtype, single, direction, precise, gpu)
    if (known := _known.get(key)) is None:
        if len(_known) >= _MOST:
            _known.clear()
        known = _known[key] = _chosen(problem, direction, precise, gpu)
    return known


def _chosen(problem: Problem, direction: str, precise: bool, gpu: GPU) -> Plan:
    hidden, dtype = problem.hidden_size, problem.dtype
    if dtype == torch.float64 or problem.rows.steps == 1:
        return steps()
    kind = "half" if dtype.itemsize == 2 else "float32" if precise else "tf32"
    rows = _rows(problem, direction, kind, gpu)
    if rows is not None and hidden <= _FEW_UNITS:
        return rows
    found: list[Slices] = []
    for units, warps, most in _SLICES[kind, direction]:
        # The GPU has to have room for all slices at once.
        room = gpu.multiprocessors // (divide_up(hidden, units) * problem.directions)
        if hidden > most or not room or problem.batch > room * _TILE[kind]:
            continue
        for inner in _INNER[kind, units]:
            slices = _slices(problem, direction, units, warps, inner, room)
            if shared_memory(slices, problem, direction, precise) <= gpu.shared_memory:
                found.append(slices)
                break
    # The fewest products one after another, then by preference.
    best = min(found, key=lambda slices: slices.tile, default=None)
    if best is None or (rows is not None and best.tile > best.rows):
        return rows or steps()
    return best


def _rows(problem: Problem, direction: str, kind: str, gpu: GPU) -> Rows | None:
    """The cut into tiles of sequences, None where it does not fit."""
    if problem.hidden_size > _ROWS_UNITS[kind]:
        return None
    units = max(16, power_of_two(problem.hidden_size))
    rows = Rows(units, _ROWS, 4 if units <= _FEW_UNITS else _WARPS)
    return rows if shared_memory(rows, problem, direction, kind == "float32") <= gpu.shared_memory else None


def _slices(problem: Problem, direction: str, units: int, warps: int, most: int, room: int) -> Slices:
    """The cut into slices of so many units and products of at most so many terms, for so many tiles of sequences."""
    hidden = problem.hidden_size
    inner = padded(hidden) * (1 if direction == "forward" else 4)
    groups = divide_up(problem.batch, _ROWS)
    each = divide_up(groups, min(groups, room))
    chunks = divide_up(inner, most)
    part = max(16, power_of_two(divide_up(inner, chunks * warps)))
    parts = power_of_two(divide_up(inner, chunks * part))
    peek = direction == "forward" and each == 1 and _PEEK[0] <= hidden <= _PEEK[1]
    slices, tiles = divide_up(hidden, units), divide_up(groups, each)
    return Slices(units, slices, chunks, parts, part, _ROWS, each * _ROWS, tiles, warps, peek)


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


def divide_up(count: int, size: int) -> int:
    """How many parts of a size hold so many."""
    return -(-count // size)


def power_of_two(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def padded(hidden: int) -> int:
    """Units of a row of an exchange: rows of multiples of 16 bytes, of any type."""
    return divide_up(hidden, 8) * 8
