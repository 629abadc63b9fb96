"""The launches of the fused loops: one kernel runs all steps of a layer without projection, forward or backward."""

from typing import Any

import torch
from torch import Tensor

from . import launch as launching
from .launch import INTERPRETED
from .plan import Rows, Slices
from .work import Work, fast, first_products, wide

# How often a program reads in vain before the call fails.  A read takes at least half a microsecond: seconds in all, of
# which one that waits for its turn on a busy GPU has not used any, since all programs start together.
LIMIT = 1 << 24


def forward(
    plan: Rows | Slices, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `loops.forward`."""
    directions, batch, hidden = h_0.shape
    y = gates.new_empty(work.rows, directions * hidden)
    cells = gates.new_empty((directions, work.rows, hidden) if save else 0)
    if isinstance(plan, Rows):
        h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
        launching.launch(
            "fused_rows", "forward", (-(-batch // plan.tile), directions), plan.warps,
            (gates, w_hh, y, cells, h_0, c_0, h_n, c_n, *_index(work)), (work.problem.rows.steps, batch, work.rows),
            H=hidden, D=directions, HP=plan.units, BB=plan.tile, SAVE=save, **_compiled(work),
        )  # fmt: skip
        return y, h_n, c_n, cells
    c = c_0.to(wide(c_0.dtype), copy=True)
    h_n = h_0.clone()
    bits = _bits(y)
    bits.fill_(-1)
    launching.launch(
        "fused_slices", "forward", (directions * plan.tiles * plan.slices,), plan.warps,
        (gates, w_hh, y, bits, cells, h_0, _bits(h_0), h_n, c, *_index(work)),
        (work.problem.rows.steps, batch, work.rows, plan.tiles, LIMIT, 0),
        H=hidden, D=directions, SAVE=save, together=True, **_cut(plan), **_compiled(work),
    )  # fmt: skip
    return y, h_n, c.to(c_0.dtype), cells


def backward(
    plan: Rows | Slices,
    work: Work,
    acts: Tensor,
    cells: Tensor,
    c_0: Tensor,
    w_hh: Tensor,
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor,
    dacts: Tensor | None,
    dcells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `loops.backward`."""
    directions, batch, hidden = c_0.shape
    dgates = torch.empty_like(acts)
    trace = dacts is not None
    states = (acts, w_hh, cells, c_0, dy, dh_n)
    if isinstance(plan, Rows):
        dh_0, dc_0 = torch.empty_like(dh_n), torch.empty_like(dc_n)
        launching.launch(
            "fused_rows", "backward", (-(-batch // plan.tile), directions), plan.warps,
            (*states, dc_n, dacts, dcells, dgates, dh_0, dc_0, *_index(work)),
            (work.problem.rows.steps, batch, work.rows),
            H=hidden, D=directions, HP=plan.units, BB=plan.tile, TRACE=trace, **_compiled(work),
        )  # fmt: skip
        return dgates, dh_0, dc_0
    dc = dc_n.to(wide(dc_n.dtype), copy=True)
    bits = _bits(dgates)
    bits.fill_(-1)
    launching.launch(
        "fused_slices", "backward", (directions * plan.tiles * plan.slices,), plan.warps,
        (*states, dc, dacts, dcells, dgates, bits, *_index(work)),
        (work.problem.rows.steps, batch, work.rows, plan.tiles, LIMIT, 0),
        H=hidden, D=directions, TRACE=trace, together=True, **_cut(plan), **_compiled(work),
    )  # fmt: skip
    return dgates, first_products(work, dgates, w_hh, dh_n), dc.to(c_0.dtype)


def _index(work: Work) -> tuple[Tensor | None, Tensor | None]:
    return work.device_starts, work.lengths


def _compiled(work: Work) -> dict[str, Any]:
    """What the fused kernels are compiled for."""
    # Three products of TF32 are as exact as one of float32, and use the tensor cores.
    precision = "ieee" if INTERPRETED else "tf32x3" if work.precise else "tf32"
    asm = not INTERPRETED
    ragged, reverse = work.places is not None, int(work.problem.reverse)
    return {"RAGGED": ragged, "REVERSE": reverse, "FAST": fast(work), "PRECISION": precision, "ASM": asm}


def _cut(plan: Slices) -> dict[str, int]:
    return {
        "HS": plan.units,
        "SLICES": plan.slices,
        "CHUNKS": plan.chunks,
        "KS": plan.parts,
        "KC": plan.part,
        "BB": plan.rows,
        "TILE": plan.tile,
    }


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers."""
    return tensor.view(torch.int16 if tensor.itemsize == 2 else torch.int32)
