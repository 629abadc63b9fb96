"""What a kernel brings, the time loop of a layer forward and backward, and the rest of the gradients made from it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from .contract import Problem, Weights

# accumulate(direction, rows, dgates, before, dh, raw): what the time loop backward hands over, part by part.
#   rows    the slice of [0, P) that this part covers; all parts of a direction make up [0, P)
#   dgates  (n, 4H) gradient of the gates before activation
#   before  (n, R) h of the step before, h_0 included
#   dh, raw (n, R), (n, H) gradient at h_t, and o * tanh(c_t); with a projection only, else None
# The tensors are valid during the call only.
Accumulate: TypeAlias = Callable[[int, slice, Tensor, Tensor, Tensor | None, Tensor | None], None]


class Kernel(Protocol):
    """The time loop of one layer, all its directions, on plain tensors.

    name  what the operators call it: another name for another kernel
    Shapes as in `contract.Layer`; `saved` is the activated gates (D, P, 4H) and c (D, P, H) of every row.
    """

    name: str

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return y, h_n, c_n and saved, which is () unless `save`."""

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
        dacts: Tensor | None,
        dcells: Tensor | None,
        accumulate: Accumulate,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dh_0, dc_0 and db (D, 4H), the gradient of either bias.

        dacts, dcells  (D, P, 4H), (D, P, H) gradients of `saved` beyond those of the recurrence itself; None for zero
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


def flatten(weights: Iterable[Weights]) -> list[Tensor]:
    """The weights of all directions in a row, those that there are."""
    return [tensor for direction in weights for tensor in direction if tensor is not None]


def unflatten(flat: Sequence[Tensor], directions: int) -> tuple[Weights, ...]:
    """The inverse of `flatten`."""
    each = len(flat) // directions
    bias, projected = each >= 4, each % 2 == 1
    result: list[Weights] = []
    for start in range(0, len(flat), each):
        w_ih, w_hh, *rest = flat[start : start + each]
        b_ih, b_hh = (rest[0], rest[1]) if bias else (None, None)
        result.append((w_ih, w_hh, b_ih, b_hh, rest[-1] if projected else None))
    return tuple(result)


def gradients(
    call: Call,
    needs: Sequence[bool],
    saved: tuple[Tensor, ...],
    y: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dacts: Tensor | None,
    dcells: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments that need one: the loop's, and products of its parts.

    arguments  x, h_0, c_0 and all weights by `flatten`
    """
    x, h_0, c_0, *flat = arguments
    weights = unflatten(flat, h_0.shape[0])
    each = len(flat) // len(weights)
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
        add(each * d, turned, x if whole else x[rows])
        add(each * d + 1, turned, before)
        if dh is not None and raw is not None:
            add(each * d + each - 1, dh.t(), raw)

    cotangents = (dy, dh_n, dc_n, dacts, dcells)
    dh_0, dc_0, db = call.kernel.backward(call.problem, saved, h_0, c_0, weights, y, *cotangents, accumulate)
    if not x.shape[0]:
        # No rows, no parts: nothing was added to anything.
        dweights = [torch.zeros_like(w) if needed else None for w, needed in zip(flat, needs[3:], strict=True)]
    for d in range(len(weights) if each >= 4 else 0):
        bias = each * d + 2
        # Tensors of their own: whoever has one gradient may write into it.
        if needs[3 + bias]:
            dweights[bias] = db[0] if single else db[d].clone()
        if needs[3 + bias + 1]:
            dweights[bias + 1] = db[d].clone()
    return dx, dh_0 if needs[1] else None, dc_0 if needs[2] else None, *dweights
