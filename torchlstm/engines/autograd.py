"""The Functions that all kernel engines share: a kernel brings the time loop, this file the rest of the gradients."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from . import reference
from .contract import Layer, Problem, Weights

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
        return None, *_Backward.apply(call, needs, saved, y, *cotangents, *arguments)  # type: ignore[no-untyped-call]


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
    # One direction writes every row of dx once, a second one adds to it.
    single = len(weights) == 1
    dx = None if not needs[0] else torch.empty_like(x) if single else torch.zeros_like(x)
    dweights: list[Tensor | None] = [None] * len(flat)

    def add(index: int, left: Tensor, right: Tensor) -> None:
        """dweights[index] += left^T right."""
        if not needs[3 + index]:
            return
        total = dweights[index]
        if total is None:
            dweights[index] = left.t() @ right
        else:
            total.addmm_(left.t(), right)

    def accumulate(d: int, rows: slice, dgates: Tensor, before: Tensor, dh: Tensor | None, raw: Tensor | None) -> None:
        if dx is not None:
            if single:
                torch.mm(dgates, weights[d][0], out=dx[rows])
            else:
                dx[rows].addmm_(dgates, weights[d][0])
        add(5 * d, dgates, x[rows])
        add(5 * d + 1, dgates, before)
        if dh is not None and raw is not None:
            add(5 * d + 4, dh, raw)

    dh_0, dc_0, db = call.kernel.backward(call.problem, saved, h_0, c_0, weights, y, dy, dh_n, dc_n, accumulate)
    for d, (_, _, b_ih, b_hh, _) in enumerate(weights):
        for index, bias in ((5 * d + 2, b_ih), (5 * d + 3, b_hh)):
            if bias is not None and needs[3 + index]:
                # Two tensors: whoever owns one gradient may write into it.
                dweights[index] = db[d].clone()
    return dx, dh_0 if needs[1] else None, dc_0 if needs[2] else None, *dweights


def _second_order(
    problem: Problem, needs: Sequence[bool], tensors: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Pull cotangents of the gradients back to dy, dh_n, dc_n and to the arguments of the layer.

    tensors  dy, dh_n, dc_n, x, h_0, c_0 and all weights; None where there is none
    """
    arguments = [index for index in range(3, len(tensors)) if tensors[index] is not None]
    wanted = [index - 3 for index in arguments if needs[index - 3]]

    def layer(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        full: list[Any] = [None] * (len(tensors) - 3)
        for index, tensor in zip(arguments, given, strict=True):
            full[index - 3] = tensor
        return reference.layer(problem, full[0], full[1], full[2], _directions(full[3:]))

    def gradients(*given: Tensor) -> tuple[Tensor, ...]:
        """The gradients that were asked for, of dy, dh_n, dc_n and the arguments."""
        _, pull = torch.func.vjp(layer, *given[3:])[:2]
        by_index = dict(zip(arguments, pull(given[:3]), strict=True))
        return tuple(by_index[index + 3] for index in wanted)

    given = [tensors[index] for index in arguments]
    dy, dh_n, dc_n = (
        torch.zeros_like(result) if tensor is None else tensor
        for tensor, result in zip(tensors[:3], _results(problem, tensors), strict=True)
    )
    values, pull = torch.func.vjp(gradients, dy, dh_n, dc_n, *given)[:2]
    incoming = (cotangents[index] for index in wanted)
    pulled = pull(tuple(torch.zeros_like(v) if c is None else c for v, c in zip(values, incoming, strict=True)))
    result: list[Tensor | None] = [None] * len(tensors)
    for index, tensor in zip((0, 1, 2, *arguments), pulled, strict=True):
        result[index] = None if tensors[index] is None else tensor
    return result


def _results(problem: Problem, tensors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors shaped like y, h_n and c_n."""
    x, h_0, c_0 = tensors[3:6]
    assert x is not None
    assert h_0 is not None
    assert c_0 is not None
    return x.new_empty(x.shape[0], h_0.shape[0] * h_0.shape[2]), h_0, c_0
