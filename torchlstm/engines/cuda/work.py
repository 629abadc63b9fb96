"""The work of a call of the CUDA engine: which rows belong to which step, on the host and on the device."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..contract import Problem, Ragged
from . import products
from .launch import INTERPRETED

# The places of ragged batches, by sizes, device and stream; the backward of a call finds those of its forward.  By the
# stream, since a copy is complete only to what is queued behind it, and so many at most: 8 (T + 1 + B) bytes each.
_places: OrderedDict[Any, Tensor] = OrderedDict()
_MOST = 64
_lock = Lock()


# The steps that are computed together: one of each direction.
Together: TypeAlias = tuple[int, ...]


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
    sizes = problem.rows.batch_sizes.tolist()
    starts = [0, *accumulate(sizes)]
    return Work(problem, rows, sizes, starts, _places_of(sizes, starts, batch, device), precise)


def _places_of(sizes: list[int], starts: list[int], batch: int, device: torch.device) -> Tensor:
    """The places of a batch of these sizes on a device, ready for the current stream."""
    if device.type != "cuda":
        return torch.tensor([*starts, *_lengths(sizes, batch)], device=device)
    if torch.cuda.is_current_stream_capturing():
        return _filled(sizes, batch, device)
    key = (tuple(sizes), batch, device, torch.cuda.current_stream(device).cuda_stream)
    with _lock:
        if (found := _places.get(key)) is not None:
            _places.move_to_end(key)
            return found
    with torch.inference_mode(False):  # for calls of any mode
        # Pinned, so that the copy waits for nothing; torch keeps the memory until it is done.
        pinned = torch.tensor([*starts, *_lengths(sizes, batch)], device="cpu").pin_memory()
        places = pinned.to(device, non_blocking=True)
    with _lock:
        _places[key] = places
        if len(_places) > _MOST:
            _places.popitem(last=False)
    return places


def _lengths(sizes: list[int], batch: int) -> list[int]:
    """How many steps each of B sequences has; sizes fall."""
    lengths = [0] * batch
    for t, (now, following) in enumerate(zip(sizes, [*sizes[1:], 0], strict=True)):
        lengths[following:now] = [t + 1] * (now - following)
    return lengths


def _filled(sizes: list[int], batch: int, device: torch.device) -> Tensor:
    """The places, written by fills on the device: a captured copy from the host would need that memory at each replay.

    One fill for each distinct size, at most B of them; the memory is the graph's own.
    """
    steps, alive = len(sizes), torch.empty(len(sizes), dtype=torch.int64, device=device)
    places = torch.zeros(steps + 1 + batch, dtype=torch.int64, device=device)
    lengths, end = places[steps + 1 :], 0
    while end < steps:
        begin, size = end, sizes[end]
        while end < steps and sizes[end] == size:
            end += 1
        alive[begin:end].fill_(size)
        lengths[:size].fill_(end)
    torch.cumsum(alive, 0, out=places[1 : steps + 1])
    return places


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic, and of c from step to step."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fast(work: Work) -> bool:
    """Whether the hardware's approximate tanh is precise enough: in half precision."""
    return work.problem.dtype.itemsize == 2 and not INTERPRETED


def turned(work: Work, direction: int) -> bool:
    """Whether a direction runs the rows backwards."""
    return direction == 1 or work.problem.reverse


def order_of(work: Work, directions: int) -> list[Together]:
    """The steps of a forward in its order."""
    steps = work.problem.rows.steps
    onwards = range(steps)
    if directions == 1:
        return [(t,) for t in (reversed(onwards) if work.problem.reverse else onwards)]
    return [(t, steps - 1 - t) for t in onwards]


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


def first_products(work: Work, dgates: Tensor, w_hh: Tensor, h_0: Tensor, dh_n: Tensor | None) -> Tensor:
    """dh_0, as h_0 (D, B, R), from dgates (D, P, 4H) and w_hh (D, 4H, R); sequences without a step pass dh_n on."""
    alive = work.sizes[0]
    if alive == h_0.shape[1]:  # every element is written
        dh_0 = torch.empty_like(h_0)
    elif dh_n is None:
        dh_0 = torch.zeros_like(h_0)
    else:
        dh_0 = dh_n.clone()
    for d in range(len(dh_0)):
        products.multiply(dh_0[d, :alive], dgates[d, first_rows(work, d)], w_hh[d], work.precise)
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


def before_each(work: Work, cells: Tensor, o: Tensor, h_0: Tensor, backwards: bool) -> Tensor:
    """h (P, H) of the step before each row, h_0 (B, H) before the first, from c and the output gate of every row.

    cells, o   (P, H)
    backwards  as `neighbours`
    """
    if work.places is not None:
        return neighbours(work, torch.tanh(cells).mul_(o), h_0, backwards)
    # Written in its final place, which saves a pass over all rows.
    batch, rows = h_0.shape[0], work.rows
    before, rest = cells.new_empty(rows, cells.shape[1]), rows - batch
    first, last = before.split([rest, batch] if backwards else [batch, rest])
    (inner, edge), source = ((first, last), slice(batch, rows)) if backwards else ((last, first), slice(0, rest))
    torch.tanh(cells[source], out=inner).mul_(o[source])
    edge.copy_(h_0)
    return before
