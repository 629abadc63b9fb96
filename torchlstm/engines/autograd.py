"""The Functions that kernel engines share: gradients of any order, around kernels called directly or as operators."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import operators, per_sample, reference
from .contract import Layer, Problem, Weights
from .kernel import Call, Kernel, flatten, gradients, unflatten
from .plain import reach


def layer_of(kernel: Kernel) -> Layer:
    """The layer that a kernel makes; see `contract.Layer`."""
    operators.register(kernel)
    name = kernel.name

    def layer(
        problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        flat = flatten(weights)
        if problem.recorder is not None:
            return per_sample.by_operators(name, problem, x, h_0, c_0, flat)
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (x, h_0, c_0, *flat))
        if problem.reach.direct and differentiable:
            result = _Forward.apply(Call(kernel, problem), x, h_0, c_0, *flat)  # type: ignore[no-untyped-call]
        elif problem.reach.direct:
            result = kernel.forward(problem, x, h_0, c_0, weights, False)
        else:
            static = (name, problem.batch_sizes, problem.rows.steps)
            # An exported program has no gradients: what only they need would be written for nothing.
            if (differentiable or problem.reach.transformed) and not torch.compiler.is_exporting():
                tensors = _distinct(x, h_0, c_0, *flat)
                result = _OpaqueForward.apply(*static, *tensors)  # type: ignore[no-untyped-call]
            else:
                result = operators.lstm(name, x, h_0, c_0, flat, *static[1:], False)
        y, h_n, c_n, *_ = result
        return y, h_n, c_n

    return layer


def _distinct(*tensors: Tensor) -> list[Tensor]:
    """These tensors, no two of them the same object: Dynamo takes a Function's argument only once."""
    result: list[Tensor] = []
    for tensor in tensors:
        # Not by `id`: Dynamo would compile anew for every other tensor.
        result.append(tensor.clone() if any(tensor is other for other in result) else tensor)
    return result


class _Forward(torch.autograd.Function):
    """A layer on plain tensors."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, h_0: Tensor, c_0: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        weights = unflatten(flat, h_0.shape[0])
        y, h_n, c_n, saved = call.kernel.forward(call.problem, x, h_0, c_0, weights, True)
        ctx.call = call
        ctx.save_for_backward(*saved, y, x, h_0, c_0, *flat)
        ctx.set_materialize_grads(False)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        gates, cells, y, *arguments = ctx.saved_tensors
        call, needs = ctx.call, ctx.needs_input_grad[1:]
        found = reach(cotangents)
        if found.direct:
            # A graph of the gradients only where one is wanted (create_graph): it costs as much as a small step.
            run = _Backward.apply if torch.is_grad_enabled() else gradients
            return None, *run(call, needs, (gates, cells), y, *cotangents, *arguments)
        # A batch of cotangents under vmap, for one: nothing that a kernel could read.
        given = _zeros_for_none(cotangents, (y, *arguments[1:3]))
        if found.refusal is not None:
            return None, *_reference_gradients(call.problem, needs, (*given, *arguments))
        static = (call.kernel.name, needs, call.problem.batch_sizes, call.problem.rows.steps)
        opaque = _OpaqueBackward.apply(*static, gates, cells, y, *given, *arguments)  # type: ignore[no-untyped-call]
        return None, *_spread(needs, opaque)


class _Backward(torch.autograd.Function):
    """The gradients of a layer, as a function of cotangents and arguments: so that it has gradients of its own."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, needs: Sequence[bool], saved: tuple[Tensor, ...], y: Tensor, *tensors: Any
    ) -> tuple[Tensor | None, ...]:
        ctx.call, ctx.needs = call, needs
        ctx.save_for_backward(*tensors)
        return gradients(call, needs, saved, y, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference twice: what is rare is not worth kernels of its own."""
        return None, None, None, None, *_second_order(ctx.call.problem, ctx.needs, ctx.saved_tensors, cotangents)


class _OpaqueForward(torch.autograd.Function):
    """A layer as an operator: for compile, export, torch.func and modes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str, batch_sizes: Tensor | None, steps: int, x: Tensor, h_0: Tensor, c_0: Tensor, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = operators.lstm(name, x, h_0, c_0, list(flat), batch_sizes, steps, True)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name, batch_sizes, ctx.steps, *arguments = inputs
        y, _, _, gates, cells = output
        ctx.mark_non_differentiable(gates, cells)
        ctx.save_for_backward(batch_sizes, gates, cells, y, *arguments)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh_n: Tensor, dc_n: Tensor, *_: Any) -> tuple[Any, ...]:
        batch_sizes, gates, cells, y, *arguments = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[3:])
        # Dynamo fails on a Function of any number of tensors here, and a compiled backward is not differentiated again.
        run = _OpaqueBackward.forward if torch.compiler.is_compiling() else _OpaqueBackward.apply
        found = run(ctx.name, needs, batch_sizes, ctx.steps, gates, cells, y, dy, dh_n, dc_n, *arguments)
        return None, None, None, *_spread(needs, found)


class _OpaqueBackward(torch.autograd.Function):
    """As `_Backward`, as an operator; gives only the gradients that are needed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str,
        needs: tuple[bool, ...],
        batch_sizes: Tensor | None,
        steps: int,
        gates: Tensor,
        cells: Tensor,
        y: Tensor,
        dy: Tensor,
        dh_n: Tensor,
        dc_n: Tensor,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        layer = (name, x, h_0, c_0, list(flat), batch_sizes, steps)
        return tuple(operators.lstm_backward(*layer, gates, cells, y, dy, dh_n, dc_n, list(needs)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, ctx.needs, batch_sizes, ctx.steps, _, _, _, *tensors = inputs
        ctx.save_for_backward(batch_sizes, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        batch_sizes, *tensors = ctx.saved_tensors
        _, _, _, x, h_0, c_0, *flat = tensors
        layer = operators.Arguments("", x, h_0, c_0, flat, batch_sizes, ctx.steps)
        pulled = _second_order(layer.problem, ctx.needs, tensors, _spread(ctx.needs, cotangents))
        return (None,) * 7 + tuple(pulled)


def _spread(needs: Sequence[bool], found: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients in the places of what needed them, None elsewhere."""
    rest = iter(found)
    return [next(rest) if needed else None for needed in needs]


def _reference_gradients(
    problem: Problem, needs: Sequence[bool], tensors: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """What `gradients` computes, by the reference engine, for any kind of tensor.

    tensors  dy, dh_n, dc_n, x, h_0, c_0 and all weights
    """
    cotangents, arguments = tensors[:3], tensors[3:]
    wanted = [index for index, needed in enumerate(needs) if needed]

    def layer(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full: list[Any] = list(arguments)
        for index, tensor in zip(wanted, given, strict=True):
            full[index] = tensor
        return reference.layer(problem, full[0], full[1], full[2], unflatten(full[3:], full[1].shape[0]))

    _, pull = torch.func.vjp(layer, *(arguments[index] for index in wanted))[:2]
    gradients = dict(zip(wanted, pull(tuple(cotangents)), strict=True))
    return tuple(gradients.get(index) for index in range(len(arguments)))


def _second_order(
    problem: Problem, needs: Sequence[bool], tensors: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Pull cotangents of the gradients back to dy, dh_n, dc_n and to the arguments of the layer.

    tensors  dy, dh_n, dc_n, x, h_0, c_0 and all weights; None for a cotangent that there is not
    """
    arguments: Sequence[Any] = tensors[3:]
    x, h_0, c_0 = arguments[:3]
    y = x.new_empty(x.shape[0], h_0.shape[0] * h_0.shape[2])
    given = (*_zeros_for_none(tensors[:3], (y, h_0, c_0)), *arguments)

    def needed(*values: Tensor) -> tuple[Tensor, ...]:
        """The gradients that were asked for."""
        return tuple(g for g in _reference_gradients(problem, needs, values) if g is not None)

    values, pull = torch.func.vjp(needed, *given)[:2]
    incoming = [cotangent for cotangent, wanted in zip(cotangents, needs, strict=True) if wanted]
    pulled: tuple[Tensor, ...] = pull(tuple(_zeros_for_none(incoming, values)))
    return [None if tensor is None else gradient for tensor, gradient in zip(tensors, pulled, strict=True)]


def _zeros_for_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """These tensors, with zeros shaped as `like` in the place of None."""
    return [torch.zeros_like(model) if t is None else t for t, model in zip(tensors, like, strict=True)]
