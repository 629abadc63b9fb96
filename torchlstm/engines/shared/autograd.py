"""The autograd Functions around kernels, called directly or as operators; gradients of any order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..contract import Layer, Problem, Weights
from ..reference import engine as reference
from . import chunks, operators, per_sample, torch_private
from .access import Access, access_of, as_plain
from .gradients import gradients
from .kernel import Call, Kernel, flatten, spread, unflatten
from .unread import completed, read_by_backward, separate

# Cotangents of y, h_n, c_n, and of the gates and cells that a trace returns; the last two are None without a trace.
_COTANGENTS = 5


def layer_of(kernel: Kernel) -> Layer:
    """Make a layer (see `contract.Layer`) from a kernel."""
    operators.register(kernel)
    name = kernel.name

    def layer(
        problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
    ) -> tuple[Tensor, ...]:
        flat, trace = flatten(weights), problem.trace
        if problem.recorder is not None:
            return per_sample.by_operators(name, problem, x, h_0, c_0, flat)
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, h_0, c_0, *flat))
        result: tuple[Tensor, ...]
        if problem.access.direct and differentiable:
            result = _Forward.apply(Call(kernel, problem), x, h_0, c_0, *flat)  # type: ignore[no-untyped-call]
            return result
        if problem.access.direct:
            y, h_n, c_n, saved = kernel.forward(problem, x, h_0, c_0, weights, trace)
            return y, h_n, c_n, *saved
        static = (name, problem.batch_sizes, problem.rows.steps, problem.checkpoint_every)
        # An exported program has no gradients, so nothing is saved for them.
        if (differentiable or problem.access.transformed) and not torch_private.is_exporting():
            tensors = _distinct(x, h_0, c_0, *flat)
            result = _OpaqueForward.apply(trace, *static, *tensors)  # type: ignore[no-untyped-call]
        else:
            result = operators.lstm(name, x, h_0, c_0, flat, *static[1:], trace)
        return result[:5] if trace else result[:3]

    return layer


def _distinct(*tensors: Tensor) -> list[Tensor]:
    """These tensors, with clones so that no two are the same object: Dynamo does not accept one twice in a Function."""
    result: list[Tensor] = []
    for tensor in tensors:
        # Not by `id`, for which Dynamo would recompile for every new tensor.
        result.append(tensor.clone() if any(tensor is other for other in result) else tensor)
    return result


class _Forward(torch.autograd.Function):
    """A layer on plain tensors.

    Results, and arguments that the backward does not read, are not saved, so that users may write into them.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, h_0: Tensor, c_0: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        weights = unflatten(flat, h_0.shape[0])
        y, h_n, c_n, saved = chunks.forward(call, x, h_0, c_0, weights, True)
        ctx.call, ctx.count = call, len(saved)
        arguments, problem = [x, h_0, c_0, *flat], call.problem
        ctx.unread = []
        if problem.checkpoint_every is None:
            sizes = (problem.directions, problem.bias, problem.proj_size > 0, problem.rows.steps == 1)
            arguments, ctx.unread = separate(arguments, read_by_backward(ctx.needs_input_grad[1:], *sizes))
        ctx.save_for_backward(*saved, *arguments)
        ctx.set_materialize_grads(False)
        # As outputs, gates and cells are guarded: autograd notices in the backward if they were changed in place.
        return (y, h_n, c_n, *saved[:2]) if call.problem.trace else (y, h_n, c_n)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        call, count = ctx.call, ctx.count
        # Read once: under an activation checkpoint each access recomputes.
        tensors = ctx.saved_tensors
        cotangents = grad_outputs if call.problem.trace else (*grad_outputs, None, None)
        access = access_of(cotangents)
        arguments = completed(tensors[count:], ctx.unread, access)
        return None, *pull_back(call, ctx.needs_input_grad[1:], tensors[:count], arguments, cotangents, access)


def pull_back(
    call: Call,
    needs: tuple[bool, ...],
    saved: tuple[Tensor, ...],
    arguments: Sequence[Any],
    cotangents: Sequence[Tensor | None],
    access: Access,
) -> Sequence[Tensor | None]:
    """The gradients of a layer's arguments, for cotangents of any kind; differentiable themselves if grad mode is on.

    saved       as `chunks.forward` returns it
    arguments   x, h_0, c_0 and all weights by `flatten`
    cotangents  of y, h_n, c_n and of a trace's gates and cells, each or None
    """
    if access.subclass:
        cotangents = tuple(None if t is None else as_plain(t) for t in cotangents)
    if access.direct:
        # Recorded only under create_graph, since that costs as much as a small step.
        run = _Backward.apply if torch.is_grad_enabled() else gradients
        direct: Sequence[Tensor | None] = run(call, needs, saved, *cotangents, *arguments)
        return direct
    # No kernel can read these, for example a batch of cotangents under vmap.
    if access.refusal is not None:
        return _reference_gradients(call.problem, needs, (*cotangents, *arguments))
    problem = call.problem
    static = (call.kernel.name, needs, problem.batch_sizes, problem.rows.steps, problem.checkpoint_every)
    x, h_0, c_0 = arguments[:3]
    y = x.new_empty(()).expand(x.shape[0], h_0.shape[0] * h_0.shape[2])
    tensors = (*_zeros_for_none(cotangents[:3], (y, h_0, c_0)), *cotangents[3:], *arguments)
    gates, cells, h = (*saved, x.new_empty(0))[:3]
    opaque = _OpaqueBackward.apply(*static, gates, cells, h, *tensors)  # type: ignore[no-untyped-call]
    return spread(needs, opaque)


class _Backward(torch.autograd.Function):
    """The gradients of a layer as a differentiable function of cotangents and arguments."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, needs: Sequence[bool], saved: tuple[Tensor, ...], *tensors: Any
    ) -> tuple[Tensor | None, ...]:
        ctx.call, ctx.needs = call, needs
        ctx.save_for_backward(*tensors)
        return gradients(call, needs, saved, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference engine twice; this is too rare for kernels of its own."""
        return None, None, None, *_second_order(ctx.call.problem, ctx.needs, ctx.saved_tensors, cotangents)


class _OpaqueForward(torch.autograd.Function):
    """A layer as an operator, for compile, export, torch.func and dispatch modes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        trace: bool,
        name: str,
        batch_sizes: Tensor | None,
        steps: int,
        every: int | None,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = operators.lstm(name, x, h_0, c_0, list(flat), batch_sizes, steps, every, True)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.trace, ctx.name, batch_sizes, ctx.steps, ctx.every, *arguments = inputs
        *_, gates, cells, h = output
        ctx.mark_non_differentiable(*((h,) if ctx.trace else (gates, cells, h)))
        ctx.save_for_backward(batch_sizes, gates, cells, h, *arguments)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor, dh_n: Tensor, dc_n: Tensor, dacts: Tensor | None, dcells: Tensor | None, _: Any
    ) -> tuple[Any, ...]:
        batch_sizes, gates, cells, h, *arguments = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[5:])
        if not ctx.trace:
            dacts = dcells = None
        # Dynamo fails here on a Function with a varying number of tensors.  A compiled backward has no second order.
        run = _OpaqueBackward.forward if torch.compiler.is_compiling() else _OpaqueBackward.apply
        cotangents = (dy, dh_n, dc_n, dacts, dcells)
        static = (ctx.name, needs, batch_sizes, ctx.steps, ctx.every)
        grads = run(*static, gates, cells, h, *cotangents, *arguments)
        return (None,) * 5 + tuple(spread(needs, grads))


class _OpaqueBackward(torch.autograd.Function):
    """As `_Backward`, as an operator; returns only the gradients that are needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str,
        needs: tuple[bool, ...],
        batch_sizes: Tensor | None,
        steps: int,
        every: int | None,
        gates: Tensor,
        cells: Tensor,
        h: Tensor,
        dy: Tensor,
        dh_n: Tensor,
        dc_n: Tensor,
        dacts: Tensor | None,
        dcells: Tensor | None,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        layer = (name, x, h_0, c_0, list(flat), batch_sizes, steps, every)
        return tuple(operators.lstm_backward(*layer, gates, cells, h, dy, dh_n, dc_n, dacts, dcells, list(needs)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.needs, batch_sizes, ctx.steps, _, _, _, _, *tensors = inputs
        ctx.save_for_backward(batch_sizes, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        batch_sizes, *tensors = ctx.saved_tensors
        x, h_0, c_0, *flat = tensors[_COTANGENTS:]
        layer = operators.Arguments("", x, h_0, c_0, flat, batch_sizes, ctx.steps)
        pulled = _second_order(layer.problem, ctx.needs, tensors, spread(ctx.needs, cotangents))
        return (None,) * 8 + tuple(pulled)


def _reference_gradients(problem: Problem, needs: Sequence[bool], tensors: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """As `gradients`, by the reference engine, for any kind of tensor.

    tensors  dy, dh_n, dc_n, dacts, dcells, None for zeros; then x, h_0, c_0 and all weights
    """
    cotangents, arguments = tensors[:_COTANGENTS], tensors[_COTANGENTS:]
    wanted = [index for index, needed in enumerate(needs) if needed]
    # Only a trace has gates and cells among its results.  A graph of the graph keeps all states, so without chunks.
    traced = any(cotangent is not None for cotangent in cotangents[3:])
    problem = problem._replace(trace=traced, checkpoint_every=None)

    def layer(*args: Tensor) -> tuple[Tensor, ...]:
        full: list[Any] = list(arguments)
        for index, tensor in zip(wanted, args, strict=True):
            full[index] = tensor
        return reference.layer(problem, full[0], full[1], full[2], unflatten(full[3:], full[1].shape[0]))

    results, pull = torch.func.vjp(layer, *(arguments[index] for index in wanted))[:2]
    pulled = pull(tuple(_zeros_for_none(cotangents[: len(results)], results)))
    gradients = dict(zip(wanted, pulled, strict=True))
    return tuple(gradients.get(index) for index in range(len(arguments)))


def _second_order(
    problem: Problem, needs: Sequence[bool], tensors: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Pull cotangents of the gradients back to the layer's cotangents and arguments.

    tensors  as `_reference_gradients`
    """
    there = [index for index, tensor in enumerate(tensors) if tensor is not None]

    def needed(*args: Tensor) -> tuple[Tensor, ...]:
        """The gradients that are needed."""
        full: list[Any] = [None] * len(tensors)
        for index, tensor in zip(there, args, strict=True):
            full[index] = tensor
        return tuple(g for g in _reference_gradients(problem, needs, full) if g is not None)

    values, pull = torch.func.vjp(needed, *(tensors[index] for index in there))[:2]
    incoming = [cotangent for cotangent, wanted in zip(cotangents, needs, strict=True) if wanted]
    grads = dict(zip(there, pull(tuple(_zeros_for_none(incoming, values))), strict=True))
    return [grads.get(index) for index in range(len(tensors))]


def _zeros_for_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """These tensors, with zeros shaped as `like` instead of None."""
    return [torch.zeros_like(model) if t is None else t for t, model in zip(tensors, like, strict=True)]
