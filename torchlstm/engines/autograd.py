"""The Functions that all kernel engines share: a kernel brings the time loop, this file the rest of the gradients."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from . import reference
from .contract import Layer, Problem, Weights
from .plain import not_plain

# accumulate(direction, rows, dgates, before, dh, raw): what the time loop backward hands over, part by part.
#   rows    the slice of [0, P) that this part covers; all parts of a direction make up [0, P)
#   dgates  (n, 4H) gradient of the gates before activation
#   before  (n, R) h of the step before, h_0 included
#   dh, raw (n, R), (n, H) gradient at h_t, and o * tanh(c_t); with a projection only, else None
# The tensors are valid during the call only.
Accumulate: TypeAlias = Callable[[int, slice, Tensor, Tensor, Tensor | None, Tensor | None], None]


class Kernel(Protocol):
    """The time loop of one layer, all its directions, on plain tensors.

    Shapes as in `contract.Layer`.
    """

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return y, h_n, c_n, and what the backward needs: nothing of that unless `save`."""

    def backward(
        self,
        problem: Problem,
        saved: tuple[Tensor, ...],
        h_0: Tensor,
        c_0: Tensor,
        weights: tuple[Weights, ...],
        y: Tensor,
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        accumulate: Accumulate,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dh_0, dc_0 and db (D, 4H), the gradient of either bias.

        `saved` is not written: a graph may be kept and run again.
        """

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        """Write left @ right to `out`, or add it."""

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Make a tensor that is not initialised yet, of the dtype and on the device of another."""


class Call(NamedTuple):
    """What a forward and its backward have in common besides tensors."""

    kernel: Kernel
    problem: Problem


def layer_of(kernel: Kernel) -> Layer:
    """The layer that a kernel makes; see `contract.Layer`."""

    def layer(
        problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        flat = [tensor for direction in weights for tensor in direction]
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h_0, c_0, *flat)):
            result: tuple[Tensor, Tensor, Tensor] = _Forward.apply(  # type: ignore[no-untyped-call]
                Call(kernel, problem), x, h_0, c_0, *flat
            )
            return result
        return kernel.forward(problem, x, h_0, c_0, weights, False)[:3]

    return layer


def _directions(flat: Sequence[Tensor | None]) -> tuple[Weights, ...]:
    """Weights by direction, from all of them in a row."""
    return tuple(tuple(flat[start : start + 5]) for start in range(0, len(flat), 5))  # type: ignore[misc]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, h_0: Tensor, c_0: Tensor, *flat: Tensor | None) -> tuple[Tensor, ...]:
        y, h_n, c_n, saved = call.kernel.forward(call.problem, x, h_0, c_0, _directions(flat), True)
        ctx.call, ctx.count = call, len(saved)
        ctx.save_for_backward(*saved, y, x, h_0, c_0, *flat)
        ctx.set_materialize_grads(False)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        tensors, count = ctx.saved_tensors, ctx.count
        saved, y, arguments = tensors[:count], tensors[count], tensors[count + 1 :]
        call, needs = ctx.call, ctx.needs_input_grad[1:]
        if not_plain(cotangents):
            # A batch of cotangents under vmap, for one: nothing that a kernel could read.
            given = (*_zeros_for_none(cotangents, _results(arguments)), *arguments)
            return None, *_reference_gradients(call.problem, needs, given)
        # A graph of the gradients only where one is wanted (create_graph): it costs as much as a small step.
        gradients = _Backward.apply if torch.is_grad_enabled() else _gradients
        return None, *gradients(call, needs, saved, y, *cotangents, *arguments)


class _Backward(torch.autograd.Function):
    """The gradients of a layer, as a function of cotangents and arguments: so that it has gradients of its own."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, needs: Sequence[bool], saved: tuple[Tensor, ...], y: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.call, ctx.needs = call, needs
        ctx.save_for_backward(*tensors)
        return _gradients(call, needs, saved, y, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the reference twice: what is rare is not worth kernels of its own."""
        return None, None, None, None, *_second_order(ctx.call.problem, ctx.needs, ctx.saved_tensors, cotangents)


def _gradients(
    call: Call,
    needs: Sequence[bool],
    saved: tuple[Tensor, ...],
    y: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, h_0, c_0 and all weights, those that are needed: the loop's, and products of its parts."""
    x, h_0, c_0, *flat = arguments
    weights = _directions(flat)
    multiply, empty = call.kernel.multiply, call.kernel.empty
    # One direction writes every row of dx once, a second one adds to it.
    single = len(weights) == 1
    dx = empty(x, *x.shape) if needs[0] else None
    if dx is not None and not single:
        dx.zero_()
    dweights: list[Tensor | None] = [None] * len(flat)

    def add(index: int, left: Tensor, right: Tensor) -> None:
        """dweights[index] += left right."""
        if not needs[3 + index]:
            return
        total = dweights[index]
        if total is None:
            total = dweights[index] = empty(left, left.shape[0], right.shape[1])
            multiply(total, left, right, False)
        else:
            multiply(total, left, right, True)

    def accumulate(d: int, rows: slice, dgates: Tensor, before: Tensor, dh: Tensor | None, raw: Tensor | None) -> None:
        whole = dgates.shape[0] == x.shape[0]  # a slice costs as much as a small product
        if dx is not None:
            multiply(dx if whole else dx[rows], dgates, weights[d][0], not single)
        turned = dgates.t()
        add(5 * d, turned, x if whole else x[rows])
        add(5 * d + 1, turned, before)
        if dh is not None and raw is not None:
            add(5 * d + 4, dh.t(), raw)

    dh_0, dc_0, db = call.kernel.backward(call.problem, saved, h_0, c_0, weights, y, dy, dh_n, dc_n, accumulate)
    if not x.shape[0]:
        # No rows, no parts: nothing was added to anything.
        dweights = [torch.zeros_like(w) if needed else None for w, needed in zip(flat, needs[3:], strict=True)]
    for d, (_, _, b_ih, b_hh, _) in enumerate(weights):
        if b_ih is not None and needs[5 * d + 5]:
            dweights[5 * d + 2] = db[d]
        if b_hh is not None and needs[5 * d + 6]:
            # A tensor of its own: whoever has one gradient may write into it.
            dweights[5 * d + 3] = db[d].clone()
    return dx, dh_0 if needs[1] else None, dc_0 if needs[2] else None, *dweights


def _reference_gradients(
    problem: Problem, needs: Sequence[bool], tensors: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """What `_gradients` computes, by the reference engine, for any kind of tensor.

    tensors  dy, dh_n, dc_n, x, h_0, c_0 and all weights; None for a weight that there is not
    """
    cotangents, arguments = tensors[:3], tensors[3:]
    wanted = [index for index, needed in enumerate(needs) if needed]

    def layer(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full: list[Any] = list(arguments)
        for index, tensor in zip(wanted, given, strict=True):
            full[index] = tensor
        return reference.layer(problem, full[0], full[1], full[2], _directions(full[3:]))

    _, pull = torch.func.vjp(layer, *(arguments[index] for index in wanted))[:2]
    gradients = dict(zip(wanted, pull(tuple(cotangents)), strict=True))
    return tuple(gradients.get(index) for index in range(len(arguments)))


def _second_order(
    problem: Problem, needs: Sequence[bool], tensors: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Pull cotangents of the gradients back to dy, dh_n, dc_n and to the arguments of the layer.

    tensors  dy, dh_n, dc_n, x, h_0, c_0 and all weights; None where there is none
    """
    given = [*_zeros_for_none(tensors[:3], _results(tensors[3:])), *tensors[3:]]
    present = [index for index, tensor in enumerate(given) if tensor is not None]

    def gradients(*values: Tensor) -> tuple[Tensor, ...]:
        """The gradients that were asked for."""
        full: list[Tensor | None] = list(given)
        for index, value in zip(present, values, strict=True):
            full[index] = value
        return tuple(g for g in _reference_gradients(problem, needs, full) if g is not None)

    values, pull = torch.func.vjp(gradients, *(given[index] for index in present))[:2]
    incoming = [cotangent for cotangent, needed in zip(cotangents, needs, strict=True) if needed]
    pulled = dict(zip(present, pull(tuple(_zeros_for_none(incoming, values))), strict=True))
    return [None if tensor is None else pulled[index] for index, tensor in enumerate(tensors)]


def _zeros_for_none(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """These tensors, with zeros shaped as `like` in the place of None."""
    return [torch.zeros_like(model) if t is None else t for t, model in zip(tensors, like, strict=True)]


def _results(arguments: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors shaped like y, h_n and c_n, for arguments x, h_0, c_0, ..."""
    x, h_0, c_0 = arguments[:3]
    return x.new_empty(x.shape[0], h_0.shape[0] * h_0.shape[2]), h_0, c_0
