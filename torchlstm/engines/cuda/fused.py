"""The launches of the fused loops: one kernel runs all steps of a layer without projection, forward or backward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import launch as launching
from .launch import INTERPRETED
from .plan import Rows, Slices, divide_up, padded, power_of_two
from .work import Work, fast, first_products, wide

# The bound of a spin: how many times a program may read the sentinel before it aborts the launch.  A read takes at
# least half a microsecond, so these are seconds.  Waiting for a busy GPU uses none of them: all programs of a
# cooperative launch start together.
LIMIT = 1 << 24


def forward(
    plan: Rows | Slices, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `loops.forward`."""
    directions, batch, hidden = h_0.shape
    y = gates.new_empty(work.rows, directions * hidden)
    cells = gates.new_empty((directions, work.rows, hidden) if save else 0)
    h_0, c_0, w_hh = _aligned(h_0, c_0, w_hh)
    if isinstance(plan, Rows):
        h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
        _launch("forward", plan, work, (gates, w_hh, y, cells, h_0, c_0, h_n, c_n), c_0, SAVE=save)
        return y, h_n, c_n, cells
    pad = padded(hidden)
    c_n = _states(plan, c_0, c_0)
    # Sequences without a step keep what they began with.
    h_n = torch.empty_like(h_0) if work.sizes[0] == batch else h_0.clone()
    words = _exchange(work, y, work.rows, directions * pad)
    if pad > hidden:
        h_0 = torch.nn.functional.pad(h_0, (0, pad - hidden))
    _launch(
        "forward", plan, work, (gates, w_hh, words, y, cells, h_0.view(torch.int32), c_0, h_n, c_n), c_0,
        SAVE=save, PEEK=plan.peek, SLICES_UP=power_of_two(plan.slices),
    )  # fmt: skip
    return y, h_n, c_n.to(c_0.dtype), cells


def backward(
    plan: Rows | Slices,
    work: Work,
    acts: Tensor,
    cells: Tensor,
    c_0: Tensor,
    w_hh: Tensor,
    dy: Tensor,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dacts: Tensor | None,
    dcells: Tensor | None,
    needs_h_0: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `loops.backward`."""
    directions, _, hidden = c_0.shape
    dgates = torch.empty_like(acts)
    trace = dacts is not None
    acts, cells, c_0, w_hh, dy = _aligned(acts, cells, c_0, w_hh, dy)
    dh_n, dc_n, dacts, dcells = _aligned(dh_n, dc_n, dacts, dcells)
    if isinstance(plan, Rows):
        dh_0, dc_0 = torch.empty_like(c_0), torch.empty_like(c_0)
        tensors = (acts, w_hh, cells, c_0, dy, dh_n, dc_n, dacts, dcells, dgates, dh_0, dc_0)
        _launch("backward", plan, work, tensors, c_0, TRACE=trace)
        return dgates, dh_0, dc_0
    dc_0 = _states(plan, c_0, dc_n)
    words = _exchange(work, dgates, directions, work.rows, 4 * padded(hidden))
    tensors = (acts, w_hh, words, cells, c_0, dy, dh_n, dc_n, dc_0, dacts, dcells, dgates)
    _launch("backward", plan, work, tensors, c_0, TRACE=trace)
    dh_0 = first_products(work, dgates, w_hh, c_0, dh_n) if needs_h_0 else dgates
    return dgates, dh_0, dc_0.to(c_0.dtype)


def _launch(
    name: str, plan: Rows | Slices, work: Work, tensors: Sequence[Tensor | None], state: Tensor, **constants: Any
) -> None:
    """Launch a fused kernel.

    tensors    all that it takes, in its order, before the index of a ragged batch
    state      (D, B, H), for its sizes
    constants  those that this kernel has beyond the ones that all have
    """
    directions, batch, hidden = state.shape
    tensors = (*tensors, work.device_starts, work.lengths)
    sizes = (work.problem.rows.steps, batch, work.rows)
    constants |= {
        "H": hidden, "D": directions, "RAGGED": work.places is not None, "REVERSE": int(work.problem.reverse),
        "FAST": fast(work), "PRECISION": precision(work), "ASM": not INTERPRETED,
    }  # fmt: skip
    if isinstance(plan, Rows):
        grid: tuple[int, ...] = (divide_up(batch, plan.tile), directions)
        constants |= {"HP": plan.units, "BB": plan.tile}
        launching.launch_again("fused_rows", name, grid, plan.warps, tensors, sizes, **constants)
        return
    grid = (directions * plan.tiles * plan.slices,)
    constants |= {
        "PAD": padded(hidden), "HS": plan.units, "SLICES": plan.slices, "CHUNKS": plan.chunks, "KS": plan.parts,
        "KC": plan.part, "BB": plan.rows, "TILE": plan.tile,
    }  # fmt: skip
    numbers = (*sizes, plan.tiles, LIMIT, 0)
    launching.launch_again("fused_slices", name, grid, plan.warps, tensors, numbers, together=True, **constants)


def _states(plan: Slices, like: Tensor, first: Tensor | None = None) -> Tensor:
    """Where a kernel leaves the last c, or the first's gradient (D, B, H).

    A program with several products a step keeps it there from step to step: it is float32 then, and begins as `first`,
    None for zero.
    """
    if plan.tile == plan.rows:
        return torch.empty_like(like)
    kind = wide(like.dtype)
    return torch.zeros_like(like, dtype=kind) if first is None else first.to(kind, copy=True)


def precision(work: Work) -> str:
    """How operands of products are rounded; in the interpreter not at all, as nn.LSTM's are on a CPU."""
    # Three products of TF32 are as exact as one of float32, and use the tensor cores.
    return "ieee" if INTERPRETED else "tf32x3" if work.precise else "tf32"


def _aligned(*tensors: Tensor | None) -> list[Any]:
    """The tensors, or copies of those that do not begin at multiples of 16 bytes.

    Triton compiles a kernel anew, and a slower one, for a tensor that begins anywhere else.
    """
    return [t.clone() if t is not None and t.data_ptr() % 16 else t for t in tensors]


def _exchange(work: Work, results: Tensor, *shape: int) -> Tensor:
    """The words of an exchange, all of them the sentinel.

    They are the memory of the results, unless what is exchanged differs from these: rows of another length, or values
    rounded to TF32.  Then they are memory of their own, of this shape.
    """
    rounds = results.dtype == torch.float32 and precision(work) == "tf32"
    apart = rounds or padded(work.problem.hidden_size) > work.problem.hidden_size
    return (results.new_empty(shape) if apart else results).view(torch.int32).fill_(-1)
