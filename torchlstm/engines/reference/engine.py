"""The reference engine: a loop over `lstm_step`, for any device, any dtype and any transform of torch.

On plain real tensors, outside of transforms, `direct.py` computes the same with fewer operations; gradients of
gradients use the loop again.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ...equations import lstm_step
from ..contract import Dense, Engine, Problem, Weights
from ..shared import chunks, per_sample
from ..shared.access import DIRECT, access_of
from ..shared.kernel import flatten, spread, unflatten
from ..shared.torch_private import forward_ad, may_be_dual
from ..shared.unread import completed, read_by_backward, separate
from . import direct
from .loop import time_loop, undeprecated


def _step(gates_x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """`lstm_step` as a step of the time loop.

    state    h, c, and in a trace the activated gates, which the next step ignores
    weights  w_hh and, with a projection, w_hr
    """
    w_hr = weights[1] if len(weights) > 1 else None
    h, c, i, f, g, o = lstm_step(gates_x, state[0], state[1], weights[0], w_hr)
    return [h, c] if len(state) == 2 else [h, c, torch.cat([i, f, g, o], dim=-1)]


recurrence = time_loop(_step)


@cache
def _scripted() -> Callable[..., Any]:
    """The time loop as TorchScript."""
    with undeprecated():
        return torch.jit.script(recurrence)


def layer(problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]) -> tuple[Tensor, ...]:
    """See `contract.Layer`."""
    if problem.recorder is not None:
        return per_sample.by_transforms(layer, problem, x, h_0, c_0, weights)
    run = _chunked if _checkpoints(problem, (x, h_0, c_0, *flatten(weights))) else _direction
    results = [run(problem, d, x, h_0[d], c_0[d], direction) for d, direction in enumerate(weights)]
    y, *rest = zip(*results, strict=True)
    # `stack` copies: the final states must not share memory with the output.
    return (y[0] if len(y) == 1 else torch.cat(y, dim=-1)), *map(torch.stack, rest)


def _direction(problem: Problem, d: int, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> Sequence[Tensor]:
    """One direction of rows x (P, I): y (P, R), h_n, c_n, and of a trace the activated gates (P, 4H) and c (P, H)."""
    tensors = (x, h, c, *flatten([weights]))
    # Not `problem.access`: a gradient of a gradient differentiates with the problem of the first call.
    few = not problem.trace and x.dtype.is_floating_point and access_of(tensors) is DIRECT
    if not few or x.device.type not in direct.DEVICES or problem.rows.steps < direct.LEAST:
        return _looped(problem, d, x, h, c, weights)
    steps = direct.steps_of(problem, d)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        problem = problem._replace(directions=1, reverse=steps.reverse, checkpoint_every=None)
        return cast(Sequence[Tensor], _Direct.apply(problem, steps, *tensors))  # type: ignore[no-untyped-call]
    return direct.forward(steps, x, h, c, weights, save=False)[:3]


def _looped(problem: Problem, d: int, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> list[Tensor]:
    """As `_direction`, by the loop over `lstm_step`."""
    # torch.jit.trace would unroll a Python loop to the number of steps of its example; a scripted loop stays a loop.
    loop = _scripted() if torch.jit.is_tracing() else recurrence  # type: ignore[attr-defined,no-untyped-call]
    rows, (w_ih, w_hh, b_ih, b_hh, w_hr) = problem.rows, weights
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    gates_x, batch_sizes = F.linear(x, w_ih, bias), None  # one product for all steps
    acts = [gates_x.new_zeros(h.shape[0], gates_x.shape[1])] if problem.trace else []
    if isinstance(rows, Dense):
        gates_x = gates_x.view(rows.steps, rows.batch, w_ih.shape[0])
    else:
        batch_sizes = rows.batch_sizes
    recurrent, reverse = [w_hh] if w_hr is None else [w_hh, w_hr], d == 1 or problem.reverse
    (y, *every), (h, c, *_) = loop(gates_x, batch_sizes, [h, c, *acts], recurrent, reverse, 3 if problem.trace else 1)
    return [y, h, c, *reversed(every)]


class _Direct(torch.autograd.Function):
    """One direction by `direct.py`; differentiable gradients and batched cotangents use the loop."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, steps: direct.Steps, *tensors: Tensor) -> tuple[Tensor, ...]:
        x, h, c, *flat = tensors
        y, h_n, c_n, saved = direct.forward(steps, x, h, c, unflatten(flat, 1)[0], save=True)
        sizes = (1, problem.bias, problem.proj_size > 0, len(steps.sizes) == 1)
        arguments, ctx.unread = separate(tensors, read_by_backward(ctx.needs_input_grad[2:], *sizes))
        ctx.problem, ctx.steps, ctx.count = problem, steps, len(saved)
        ctx.save_for_backward(*saved, *arguments)
        ctx.set_materialize_grads(False)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        # Read once: under an activation checkpoint each access recomputes.
        tensors, needs, graph = ctx.saved_tensors, ctx.needs_input_grad[2:], torch.is_grad_enabled()
        access = access_of(cotangents)
        x, h, c, *flat = arguments = completed(tensors[ctx.count :], ctx.unread, access)
        if access is not DIRECT or graph:
            run = partial(_run, ctx.problem, _looped)
            return None, None, *_run_again(run, arguments, needs, cotangents, graph)
        saved, weights = tensors[: ctx.count], unflatten(flat, 1)[0]
        return None, None, *direct.backward(ctx.steps, x, h, c, weights, saved, cotangents, needs)


def _checkpoints(problem: Problem, tensors: Sequence[Tensor]) -> bool:
    """Whether to run in chunks: if the problem asks for them and plain autograd will run a backward."""
    if problem.checkpoint_every is None or problem.access.transformed or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    if forward_ad._current_level >= 0 and may_be_dual(tensors):
        return False
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _chunked(problem: Problem, d: int, x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> list[Tensor]:
    """As `_direction`, chunk by chunk."""
    y = [x] * chunks.count(problem.rows.steps, problem.checkpoint_every or 1)
    for chunk in chunks.chunks(problem, d):
        arguments = (chunk.problem, x[chunk.rows], h, c, *flatten([weights]))
        y[chunk.number], h, c = _Chunk.apply(*arguments)  # type: ignore[no-untyped-call]
    return [torch.cat(y), h, c]


class _Chunk(torch.autograd.Function):
    """Some steps of one direction, of which only the inputs are saved; the backward recomputes them.

    torch.utils.checkpoint would keep the graph, though not the tensors; with small steps that is most of the memory.
    """

    @staticmethod
    def forward(ctx: Any, problem: Problem, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.problem = problem
        ctx.save_for_backward(*tensors)
        return tuple(_run(problem, _direction, tensors))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        run = partial(_run, ctx.problem, _direction)
        needs, graph = ctx.needs_input_grad[1:], torch.is_grad_enabled()
        return None, *_run_again(run, ctx.saved_tensors, needs, cotangents, graph)


def _run(problem: Problem, direction: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The results of one direction for tensors x, h, c and its weights by `flatten`."""
    x, h, c, *flat = tensors
    return direction(problem, 0, x, h, c, unflatten(flat, 1)[0])


def _run_again(
    run: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    cotangents: Sequence[Tensor | None],
    graph: bool,
) -> list[Tensor | None]:
    """The gradients of the tensors that need one, by running `run` again, this time with a graph.

    graph  whether the gradients themselves must be differentiable
    """
    with torch.enable_grad():
        # New tensors, so that no other path in the user's graph contributes; still connected to it if `graph`.
        own = [tensor.view_as(tensor) if graph else tensor.detach() for tensor in tensors]
        wanted = [t if graph else t.requires_grad_() for t, needed in zip(own, needs, strict=True) if needed]
        pairs = [pair for pair in zip(run(own), cotangents, strict=True) if pair[1] is not None]
        if not pairs:
            return [None] * len(tensors)
        results, given = zip(*pairs, strict=True)
        found = torch.autograd.grad(results, wanted, given, create_graph=graph, allow_unused=True)
    return spread(needs, found)


ENGINE = Engine("reference", layer)
