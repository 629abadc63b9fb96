"""The gradients of a layer: from a kernel's backward loop, and from matrix products of what that loop delivers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import chunks
from .kernel import Call, unflatten


def gradients(
    call: Call,
    needs: Sequence[bool],
    saved: tuple[Tensor, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dacts: Tensor | None,
    dcells: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments that need one; None for the others.

    saved      as `chunks.forward` returns it
    arguments  x, h_0, c_0 and all weights by `flatten`
    """
    x, h_0, c_0, *flat = arguments
    weights = unflatten(flat, h_0.shape[0])
    each = len(flat) // len(weights)
    multiply, empty = call.kernel.multiply, call.kernel.empty
    # The first direction writes every row of dx, a second one adds to it.
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
        whole = dgates.shape[0] == x.shape[0]  # slicing costs as much as a small product
        if dx is not None:
            multiply(dx if whole else dx[rows], dgates, weights[d][0], not single)
        turned = dgates.t()
        add(each * d, turned, x if whole else x[rows])
        add(each * d + 1, turned, before)
        if dh is not None and raw is not None:
            add(each * d + each - 1, dh.t(), raw)

    cotangents = (dy, dh_n, dc_n, dacts, dcells)
    dh_0, dc_0, db = chunks.backward(call, saved, x, h_0, c_0, weights, *cotangents, accumulate, needs[1])
    if not x.shape[0]:
        # Without rows there were no parts, so nothing was added.
        dweights = [torch.zeros_like(w) if needed else None for w, needed in zip(flat, needs[3:], strict=True)]
    for d in range(len(weights) if each >= 4 else 0):
        bias = each * d + 2
        # Each gradient is a tensor of its own, since users may write into it.
        if needs[3 + bias]:
            dweights[bias] = db[0] if single else db[d].clone()
        if needs[3 + bias + 1]:
            dweights[bias + 1] = db[d].clone()
    return dx, dh_0 if needs[1] else None, dc_0 if needs[2] else None, *dweights
