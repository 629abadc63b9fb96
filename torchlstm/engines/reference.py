"""The reference engine: a loop over `lstm_step`, for any device, any dtype and any transform of torch."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ..equations import lstm_step
from . import chunks
from .contract import Dense, Engine, Problem, Weights
from .kernel import flatten, unflatten


def recurrence(
    gates_x: Tensor,
    batch_sizes: Tensor | None,
    h: Tensor,
    c: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    reverse: bool,
    trace: bool,
) -> list[Tensor]:
    """The time loop of one direction, in the part of Python that TorchScript understands.

    gates_x      (T, B, 4H) if batch_sizes is None, else (P, 4H)
    batch_sizes  (T,) or None: how many sequences are alive at each step
    h, c         (B, R), (B, H)
    returns      y (P, R), h_n (B, R), c_n (B, H), and of a trace the activated gates (P, 4H) and c (P, H)
    """
    # `unbind` and `split` cut all steps at once: their gradient is one concatenation, not one buffer a step.
    if batch_sizes is None:
        steps = gates_x.unbind(0)
    else:
        sizes: list[int] = batch_sizes.tolist()
        steps = gates_x.split(sizes)
    y = [h] * len(steps)
    acts, cells = y.copy(), y.copy()
    for k in range(len(steps)):
        t = len(steps) - 1 - k if reverse else k
        n = steps[t].shape[0]
        whole = n == h.shape[0]
        h_t, c_t, i, f, g, o = lstm_step(steps[t], h if whole else h[:n], c if whole else c[:n], w_hh, w_hr)
        y[t] = h_t
        if trace:
            acts[t], cells[t] = torch.cat([i, f, g, o], dim=-1), c_t
        h, c = (h_t, c_t) if whole else (torch.cat([h_t, h[n:]]), torch.cat([c_t, c[n:]]))
    if trace:
        return [torch.cat(y), h, c, torch.cat(acts), torch.cat(cells)]
    return [torch.cat(y), h, c]


@functools.cache
def _scripted() -> Callable[..., Any]:
    """The time loop as TorchScript."""
    with warnings.catch_warnings():
        # torch.jit is deprecated; whoever traces has been told.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(recurrence)


def layer(problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]) -> tuple[Tensor, ...]:
    """See `contract.Layer`."""
    run = _chunked if _checkpoints(problem, (x, h_0, c_0, *flatten(weights))) else _direction
    results = [run(problem, d, x, h_0[d], c_0[d], direction) for d, direction in enumerate(weights)]
    y, *rest = zip(*results, strict=True)
    # `stack` copies: the final states must not share memory with the output.
    return (y[0] if len(y) == 1 else torch.cat(y, dim=-1)), *map(torch.stack, rest)


def _direction(problem: Problem, d: int, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> list[Tensor]:
    """One direction of rows x (P, I), as `recurrence` returns it."""
    # A trace records a Python loop with as many steps as its example has; a script's loop stays a loop.
    loop = _scripted() if torch.jit.is_tracing() else recurrence  # type: ignore[attr-defined,no-untyped-call]
    rows, (w_ih, w_hh, b_ih, b_hh, w_hr) = problem.rows, weights
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    gates_x, batch_sizes = F.linear(x, w_ih, bias), None  # one product for all steps
    if isinstance(rows, Dense):
        gates_x = gates_x.view(rows.steps, rows.batch, w_ih.shape[0])
    else:
        batch_sizes = rows.batch_sizes
    results: list[Tensor] = loop(gates_x, batch_sizes, h, c, w_hh, w_hr, d == 1 or problem.reverse, problem.trace)
    return results


def _checkpoints(problem: Problem, tensors: Sequence[Tensor]) -> bool:
    """Whether to keep the states of some steps only: where a gradient is wanted, and plain autograd makes it."""
    if problem.checkpoint_every is None or problem.reach.transformed or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing() or forward_ad._current_level >= 0:  # type: ignore[attr-defined,no-untyped-call]
        return False
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _chunked(problem: Problem, d: int, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> list[Tensor]:
    """As `_direction`, a chunk at a time."""
    y = [x] * chunks.count(problem.rows.steps, problem.checkpoint_every or 1)
    for chunk in chunks.chunks(problem, d):
        arguments = (chunk.problem, x[chunk.rows], h, c, *flatten([weights]))
        y[chunk.number], h, c = _Chunk.apply(*arguments)  # type: ignore[no-untyped-call]
    return [torch.cat(y), h, c]


class _Chunk(torch.autograd.Function):
    """Some steps of one direction, of which nothing is kept but what they start from.

    torch.utils.checkpoint would keep the graph, if not the tensors: of small steps that is most of the memory.
    """

    @staticmethod
    def forward(ctx: Any, problem: Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.problem = problem
        ctx.save_for_backward(*tensors)
        return _run(problem, tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        needs, graph = ctx.needs_input_grad[1:], torch.is_grad_enabled()
        with torch.enable_grad():
            # Of their own, so that no path through the chunks before counts too; with a graph where one is wanted.
            own = [tensor.view_as(tensor) if graph else tensor.detach() for tensor in ctx.saved_tensors]
            wanted = [t if graph else t.requires_grad_() for t, needed in zip(own, needs, strict=True) if needed]
            found = torch.autograd.grad(_run(ctx.problem, own), wanted, cotangents, create_graph=graph)
        rest = iter(found)
        return None, *(next(rest) if needed else None for needed in needs)


def _run(problem: Problem, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of one direction: of x, h, c and its weights by `flatten`."""
    x, h, c, *flat = tensors
    return tuple(_direction(problem, 0, x, h, c, unflatten(flat, 1)[0]))


ENGINE = Engine("reference", layer)
