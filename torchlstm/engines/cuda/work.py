"""The work of a call of the CUDA engine: which rows belong to which step, on the host and on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Problem, Ragged
from .launch import INTERPRETED

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


def fast(work: Work) -> bool:
    """Whether the hardware's own tanh will do: for half precision."""
    return work.problem.dtype.itemsize == 2 and not INTERPRETED


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
