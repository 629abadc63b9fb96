"""The launches of the CUDA engine's kernels: the time loop of one layer without projection, forward and backward."""

import importlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import Problem, Ragged
from .plan import Plan, Rows, Slices

# In Triton's interpreter the kernels run on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# How often a program reads in vain before the call fails.  A read takes at least half a microsecond: seconds in all, of
# which one that waits for its turn on a busy GPU has not used any, since all programs start together.
LIMIT = 1 << 24


# How every kernel is compiled: not pipelined, and products fused with sums, which newer Tritons want to be told.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}

# A CUDA graph copies from this memory at every replay: it stays as long as the process.
_captured: list[Tensor] = []


class Work(NamedTuple):
    """A problem without projection, and what its launches need besides tensors.

    sizes    how many sequences are alive at each step, and starts[t], the first row of step t, on the host
    places   (T + 1 + B,) int64 on the device: `starts`, then the length of every sequence; None of a dense batch
    precise  float32 in products of float32; else they may round their operands to TF32
    """

    problem: Problem
    rows: int  # P
    sizes: Sequence[int]
    starts: Sequence[int]
    places: Tensor | None
    precise: bool

    @property
    def device_starts(self) -> Tensor | None:
        """(T + 1,)."""
        return None if self.places is None else self.places[: self.problem.rows.steps + 1]

    @property
    def lengths(self) -> Tensor | None:
        """(B,)."""
        return None if self.places is None else self.places[self.problem.rows.steps + 1 :]


def work_of(problem: Problem, rows: int, precise: bool) -> Work:
    """The work of a problem of so many packed rows."""
    problem = problem._replace(proj_size=0)
    steps, batch, device = problem.rows.steps, problem.batch, problem.device
    if not isinstance(problem.rows, Ragged):
        return Work(problem, rows, [batch] * steps, range(0, rows + 1, max(batch, 1)), None, precise)
    sizes = problem.rows.batch_sizes
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    # Sizes fall: so many of them are above b.
    lengths = steps - torch.searchsorted(sizes.flip(0), torch.arange(batch, device="cpu"), right=True)
    places = torch.cat([starts, lengths])
    if device.type == "cuda":
        places = places.pin_memory()  # so that the copy waits for nothing
        if torch.cuda.is_current_stream_capturing():
            _captured.append(places)
        places = places.to(device, non_blocking=True)
    return Work(problem, rows, sizes.tolist(), starts.tolist(), places, precise)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic, and of c from step to step."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(
    plan: Plan, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The time loop forward.

    gates    (D, P, 4H) the part from x; activated in place if `save`
    w_hh     (D, 4H, H)
    returns  y (P, D*H), h_n and c_n (D, B, H), cells (D, P, H), which is empty unless `save`
    """
    directions, batch, hidden = h_0.shape
    y = gates.new_empty(work.rows, directions * hidden)
    cells = gates.new_empty((directions, work.rows, hidden) if save else 0)
    if isinstance(plan, Rows):
        h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
        launch(
            "fused_rows", "forward", (-(-batch // plan.tile), directions), plan.warps,
            (gates, w_hh, y, cells, h_0, c_0, h_n, c_n, *_index(work)), (work.problem.rows.steps, batch, work.rows),
            H=hidden, D=directions, HP=plan.units, BB=plan.tile, SAVE=save, **_compiled(work),
        )  # fmt: skip
        return y, h_n, c_n, cells
    c = c_0.to(wide(c_0.dtype), copy=True)
    h_n = h_0.clone()
    if isinstance(plan, Slices):
        bits = _bits(y)
        bits.fill_(-1)
        launch(
            "fused_slices", "forward", (directions * plan.tiles * plan.slices,), plan.warps,
            (gates, w_hh, y, bits, cells, h_0, _bits(h_0), h_n, c, *_index(work)),
            (work.problem.rows.steps, batch, work.rows, plan.tiles, LIMIT, 0),
            H=hidden, D=directions, SAVE=save, together=True, **_cut(plan), **_compiled(work),
        )  # fmt: skip
        return y, h_n, c.to(c_0.dtype), cells
    w = [each.t() for each in w_hh]
    for now in _order(work, directions):
        for d, t in enumerate(now):
            n = work.sizes[t]
            part = gates[d, work.starts[t] : work.starts[t] + n]
            torch.addmm(part, h_n[d, :n], w[d], out=part)
        blocks = -(-max(work.sizes[t] for t in now) * hidden // plan.block)
        launch(
            "pointwise", "forward", (blocks, directions), plan.warps,
            (gates, y, cells, h_n, c), (*_pair(work.starts, now), *_pair(work.sizes, now), batch, work.rows),
            H=hidden, D=directions, BLOCK=plan.block, SAVE=save, FAST=_fast(work),
        )  # fmt: skip
    return y, h_n, c.to(c_0.dtype), cells


def backward(
    plan: Plan,
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
    """The time loop backward; shapes as in `forward`, dacts (D, P, 4H) and dcells (D, P, H) both given or both None.

    returns  dgates (D, P, 4H), dh_0 and dc_0 (D, B, H)
    """
    directions, batch, hidden = c_0.shape
    dgates = torch.empty_like(acts)
    trace = dacts is not None
    states = (acts, w_hh, cells, c_0, dy, dh_n)
    if isinstance(plan, Rows):
        dh_0, dc_0 = torch.empty_like(dh_n), torch.empty_like(dc_n)
        launch(
            "fused_rows", "backward", (-(-batch // plan.tile), directions), plan.warps,
            (*states, dc_n, dacts, dcells, dgates, dh_0, dc_0, *_index(work)),
            (work.problem.rows.steps, batch, work.rows),
            H=hidden, D=directions, HP=plan.units, BB=plan.tile, TRACE=trace, **_compiled(work),
        )  # fmt: skip
        return dgates, dh_0, dc_0
    dc = dc_n.to(wide(dc_n.dtype), copy=True)
    if isinstance(plan, Slices):
        bits = _bits(dgates)
        bits.fill_(-1)
        launch(
            "fused_slices", "backward", (directions * plan.tiles * plan.slices,), plan.warps,
            (*states, dc, dacts, dcells, dgates, bits, *_index(work)),
            (work.problem.rows.steps, batch, work.rows, plan.tiles, LIMIT, 0),
            H=hidden, D=directions, TRACE=trace, together=True, **_cut(plan), **_compiled(work),
        )  # fmt: skip
        return dgates, first_products(work, dgates, w_hh, dh_n), dc.to(c_0.dtype)
    dh = dh_n.clone()
    starts, sizes, steps = work.starts, work.sizes, work.problem.rows.steps
    for now in reversed(_order(work, directions)):
        # The step before, in the direction of the forward, and how many sequences had one.
        before = [t + 1 if turned(work, d) else t - 1 for d, t in enumerate(now)]
        begun = [min(sizes[t], sizes[e]) if 0 <= e < steps else 0 for t, e in zip(now, before, strict=True)]
        before = [min(max(t, 0), steps - 1) for t in before]
        blocks = -(-max(sizes[t] for t in now) * hidden // plan.block)
        launch(
            "pointwise", "backward", (blocks, directions), plan.warps,
            (acts, cells, c_0, dy, dh, dc, dacts, dcells, dgates),
            (*_pair(starts, now), *_pair(sizes, now), *_pair(starts, before), begun[0], begun[-1], batch, work.rows),
            H=hidden, D=directions, BLOCK=plan.block, TRACE=trace, FAST=_fast(work),
        )  # fmt: skip
        for d, t in enumerate(now):
            n = sizes[t]
            torch.mm(dgates[d, starts[t] : starts[t] + n], w_hh[d], out=dh[d, :n])
    return dgates, dh, dc.to(c_0.dtype)


def turned(work: Work, direction: int) -> bool:
    """Whether a direction runs the rows backwards."""
    return direction == 1 or work.problem.reverse


def first_rows(work: Work, direction: int) -> Tensor | slice:
    """The rows of each sequence's first step in a direction, for those sequences that have one."""
    alive = work.sizes[0]
    if not turned(work, direction):
        return slice(0, alive)
    if work.places is None:
        return slice(work.rows - alive, work.rows)
    assert work.device_starts is not None
    assert work.lengths is not None
    return work.device_starts[work.lengths[:alive] - 1] + torch.arange(alive, device=work.places.device)


def first_products(work: Work, dgates: Tensor, w_hh: Tensor, dh_n: Tensor) -> Tensor:
    """dh_0 (D, B, R) from dgates (D, P, 4H) and w_hh (D, 4H, R); sequences without a step pass dh_n on."""
    dh_0 = dh_n.clone()
    for d in range(len(dh_0)):
        torch.mm(dgates[d, first_rows(work, d)], w_hh[d], out=dh_0[d, : work.sizes[0]])
    return dh_0


def neighbours(work: Work, rows: Tensor, edge: Tensor, backwards: bool) -> Tensor:
    """For each packed row, what belongs to the same sequence's step before, or with `backwards` the step after.

    rows     (P, F)
    edge     (B, F) where there is no such step
    returns  (P, F)
    """
    batch, count = edge.shape[0], work.rows
    if work.places is None:
        return torch.cat([rows[batch:], edge]) if backwards else torch.cat([edge, rows[: count - batch]])
    assert work.device_starts is not None
    sizes = work.device_starts.diff()
    place = torch.arange(count, device=rows.device)
    first, last = sizes[:1].new_full((1,), batch), sizes.new_zeros(1)
    if not backwards:
        # `edge` stands before the rows, as a step of B sequences.
        back = torch.repeat_interleave(torch.cat([first, sizes[:-1]]), sizes, output_size=count)
        return torch.cat([edge, rows])[place + batch - back]
    here = torch.repeat_interleave(sizes, sizes, output_size=count)
    following = torch.repeat_interleave(torch.cat([sizes[1:], last]), sizes, output_size=count)
    sequence = place - torch.repeat_interleave(work.device_starts[:-1], sizes, output_size=count)
    return torch.cat([rows, edge])[torch.where(sequence < following, place + here, count + sequence)]


def launch(
    file: str,
    name: str,
    grid: tuple[int, ...],
    warps: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int],
    together: bool = False,
    **constants: Any,
) -> None:
    """Launch a kernel on the current stream; `together`: refuse to unless all its programs can run at once."""
    kernel = getattr(importlib.import_module(f".kernels.{file}", __package__), name)
    options = {} if INTERPRETED else {"num_warps": warps, "launch_cooperative_grid": together, **OPTIONS}
    if 0 not in grid:
        kernel[grid](*tensors, *numbers, **constants, **options)


def _index(work: Work) -> tuple[Tensor | None, Tensor | None]:
    return work.device_starts, work.lengths


def _fast(work: Work) -> bool:
    """Whether the hardware's own tanh will do: for half precision."""
    return work.problem.dtype.itemsize == 2 and not INTERPRETED


def _compiled(work: Work) -> dict[str, Any]:
    """What the fused kernels are compiled for."""
    # Three products of TF32 are as exact as one of float32, and use the tensor cores.
    precision = "ieee" if INTERPRETED else "tf32x3" if work.precise else "tf32"
    asm = not INTERPRETED
    ragged, reverse = work.places is not None, int(work.problem.reverse)
    return {"RAGGED": ragged, "REVERSE": reverse, "FAST": _fast(work), "PRECISION": precision, "ASM": asm}


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
