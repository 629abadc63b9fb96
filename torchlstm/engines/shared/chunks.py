"""A layer in chunks of steps: only the states between chunks are saved, and the backward recomputes each chunk."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ..contract import Dense, Problem, Ragged, Weights
from .kernel import Accumulate, Call


class Chunk(NamedTuple):
    """Some steps of one direction, as a problem of its own."""

    problem: Problem
    rows: slice  # of the packed rows [0, P)
    number: int  # in the order of time


def count(steps: int, every: int) -> int:
    """How many chunks of at most `every` steps there are."""
    return (steps + every - 1) // every


def chunks(problem: Problem, direction: int) -> Iterator[Chunk]:
    """The chunks of one direction, in the order in which they run."""
    every, steps, batch, sizes = problem.checkpoint_every, problem.rows.steps, problem.batch, problem.batch_sizes
    assert every is not None
    reverse = direction == 1 or problem.reverse
    starts = None if sizes is None else [0, *sizes.cumsum(0).tolist()]
    part = problem._replace(directions=1, reverse=reverse, checkpoint_every=None)
    order = range(count(steps, every))
    for number in reversed(order) if reverse else order:
        low, high = number * every, min(steps, (number + 1) * every)
        if starts is None or sizes is None:
            yield Chunk(part._replace(rows=Dense(high - low, batch)), slice(low * batch, high * batch), number)
        else:
            yield Chunk(part._replace(rows=Ragged(sizes[low:high])), slice(starts[low], starts[high]), number)


def forward(
    call: Call, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """As `kernel.Kernel.forward`, with `saved` as its backward wants it.

    y shares no memory with `saved`, since the caller gives it to the user: for a projected layer h is a copy.  With
    chunks, `saved` is h and c before each of the N chunks, (D, N * B, R) and (D, N * B, H), in the order of time.
    """
    (kernel, problem), size = call, h_0.shape[2]
    if not save or problem.checkpoint_every is None:
        y, h_n, c_n, saved = kernel.forward(problem, x, h_0, c_0, weights, save)
        return y, h_n, c_n, (*saved, y.clone()) if save and problem.proj_size else saved
    y = kernel.empty(x, x.shape[0], len(weights) * size)
    n = count(problem.rows.steps, problem.checkpoint_every)
    hs, cs = (x.new_empty(len(weights), n, *state.shape[1:]) for state in (h_0, c_0))
    h_n, c_n = x.new_empty(h_0.shape), x.new_empty(c_0.shape)
    for d in range(len(weights)):
        h, c = h_0[d : d + 1], c_0[d : d + 1]
        for chunk in chunks(problem, d):
            hs[d, chunk.number], cs[d, chunk.number] = h[0], c[0]
            # Saved and dropped, so that the computation is bit for bit that of a training without chunks.
            out, h, c = kernel.forward(chunk.problem, x[chunk.rows], h, c, (weights[d],), True)[:3]
            y[chunk.rows, d * size : (d + 1) * size] = out
        h_n[d], c_n[d] = h[0], c[0]
    return y, h_n, c_n, (hs.flatten(1, 2), cs.flatten(1, 2))


def backward(
    call: Call,
    saved: tuple[Tensor, ...],
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: tuple[Weights, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dacts: Tensor | None,
    dcells: Tensor | None,
    accumulate: Accumulate,
    needs_h_0: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `kernel.Kernel.backward`, from what `forward` saved; x (P, I) is read only with chunks."""
    (kernel, problem), size = call, h_0.shape[2]
    if problem.checkpoint_every is None:
        arguments = (h_0, c_0, weights, dy, dh_n, dc_n, dacts, dcells, accumulate, needs_h_0)
        return kernel.backward(problem, saved, *arguments)
    n = count(problem.rows.steps, problem.checkpoint_every)
    hs, cs = (states.unflatten(1, (n, problem.batch)) for states in saved)
    dh_0, dc_0 = x.new_empty(h_0.shape), x.new_empty(c_0.shape)
    db = x.new_zeros(len(weights), 4 * c_0.shape[2])
    for d, direction in enumerate(weights):
        dh, dc = (None if state is None else state[d : d + 1] for state in (dh_n, dc_n))
        for chunk in reversed(list(chunks(problem, d))):
            first, states = chunk.rows.start, (hs[d : d + 1, chunk.number], cs[d : d + 1, chunk.number])

            def hand_over(_: int, rows: slice, *parts: Tensor | None, d: int = d, first: int = first) -> None:
                accumulate(d, slice(first + rows.start, first + rows.stop), *parts)  # type: ignore[arg-type]

            out, _, _, again = kernel.forward(chunk.problem, x[chunk.rows], *states, (direction,), True)
            again = (*again, out) if problem.proj_size else again
            chunk_dy = None if dy is None else dy[chunk.rows, d * size : (d + 1) * size]
            arguments = (*states, (direction,), chunk_dy, dh, dc, None, None, hand_over, True)
            dh, dc, more = kernel.backward(chunk.problem, again, *arguments)
            db[d] += more[0]
            # Free the memory before the next chunk needs as much.
            del out, again
        dh_0[d], dc_0[d] = dh[0], dc[0]  # type: ignore[index]
    return dh_0, dc_0, db
