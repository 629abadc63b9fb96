"""The loop without communication between programs: for every step a product, by cuBLAS, and a kernel for the cell."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import launch as launching
from .plan import Steps
from .work import Work, fast, turned, wide


def forward(
    plan: Steps, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `loops.forward`."""
    directions, batch, hidden = h_0.shape
    y = gates.new_empty(work.rows, directions * hidden)
    cells = gates.new_empty((directions, work.rows, hidden) if save else 0)
    c = c_0.to(wide(c_0.dtype), copy=True)
    h_n = h_0.clone()
    w = [each.t() for each in w_hh]
    for now in _order(work, directions):
        for d, t in enumerate(now):
            n = work.sizes[t]
            part = gates[d, work.starts[t] : work.starts[t] + n]
            torch.addmm(part, h_n[d, :n], w[d], out=part)
        blocks = -(-max(work.sizes[t] for t in now) * hidden // plan.block)
        launching.launch(
            "pointwise", "forward", (blocks, directions), plan.warps,
            (gates, y, cells, h_n, c), (*_pair(work.starts, now), *_pair(work.sizes, now), batch, work.rows),
            H=hidden, D=directions, BLOCK=plan.block, SAVE=save, FAST=fast(work),
        )  # fmt: skip
    return y, h_n, c.to(c_0.dtype), cells


def backward(
    plan: Steps,
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
    dc = dc_n.to(wide(dc_n.dtype), copy=True)
    dh = dh_n.clone()
    starts, sizes, steps = work.starts, work.sizes, work.problem.rows.steps
    for now in reversed(_order(work, directions)):
        # The step before, in the direction of the forward, and how many sequences had one.
        before = [t + 1 if turned(work, d) else t - 1 for d, t in enumerate(now)]
        begun = [min(sizes[t], sizes[e]) if 0 <= e < steps else 0 for t, e in zip(now, before, strict=True)]
        before = [min(max(t, 0), steps - 1) for t in before]
        blocks = -(-max(sizes[t] for t in now) * hidden // plan.block)
        launching.launch(
            "pointwise", "backward", (blocks, directions), plan.warps,
            (acts, cells, c_0, dy, dh, dc, dacts, dcells, dgates),
            (*_pair(starts, now), *_pair(sizes, now), *_pair(starts, before), begun[0], begun[-1], batch, work.rows),
            H=hidden, D=directions, BLOCK=plan.block, TRACE=dacts is not None, FAST=fast(work),
        )  # fmt: skip
        for d, t in enumerate(now):
            n = sizes[t]
            torch.mm(dgates[d, starts[t] : starts[t] + n], w_hh[d], out=dh[d, :n])
    return dgates, dh, dc.to(c_0.dtype)


def _order(work: Work, directions: int) -> list[tuple[int, ...]]:
    """The steps that are computed together: one of each direction."""
    steps = work.problem.rows.steps
    onwards = range(steps)
    if directions == 1:
        return [(t,) for t in (reversed(onwards) if work.problem.reverse else onwards)]
    return [(t, steps - 1 - t) for t in onwards]


def _pair(values: Sequence[int], steps: Sequence[int]) -> tuple[int, int]:
    """The values of both directions' steps; of one direction, twice its own."""
    return values[steps[0]], values[steps[-1]]
