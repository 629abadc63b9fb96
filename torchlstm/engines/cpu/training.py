"""The autograd Function of the fast path: one call of the extension forward, one backward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..contract import Dense, problem_of
from ..shared.access import access_of, as_plain
from ..shared.autograd import pull_back
from ..shared.kernel import Call, unflatten
from ..shared.unread import completed, read_by_backward, separate
from .engine import FLOATS, _kernel


class Training(torch.autograd.Function):
    """One layer on plain tensors in the user's form, without reshaping rows and states.

    As in `shared.autograd._Forward`, results, and arguments that the backward does not read, are not saved.
    """

    @staticmethod
    def forward(ctx: Any, form: Any, *arguments: Any) -> tuple[Tensor, ...]:
        """Compute one call.

        form       the extension's object with the sizes of the call
        arguments  input, h and c (None for zeros), and all weights by `flatten`
        """
        results, saved = _kernel.keep(form, arguments)
        steps, _, directions, *_, projected = _kernel.form(form)
        bias = len(arguments) - 3 >= 4 * directions
        read = read_by_backward(ctx.needs_input_grad[1:], directions, bias, bool(projected), steps == 1)
        kept, ctx.unread = separate(arguments, read)
        ctx.form, ctx.count = form, len(saved)
        ctx.save_for_backward(*saved, *kept)
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """All gradients by one call; by the path in Python if it cannot read a tensor, such as batched cotangents."""
        # Read once: under an activation checkpoint each access recomputes.
        tensors = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grads: tuple[Any, ...] | None = _kernel.gradients(ctx.form, ctx.needs_input_grad, tensors, cotangents)
            if grads is not None:
                return grads
        access = access_of(cotangents)
        arguments = completed(tensors[ctx.count :], ctx.unread, access)
        return None, *_by_rows(ctx.form, ctx.needs_input_grad[1:], tensors[: ctx.count], arguments, cotangents, access)


def _by_rows(
    form: Any,
    needs: tuple[bool, ...],
    saved: tuple[Tensor, ...],
    arguments: Sequence[Any],
    cotangents: Sequence[Tensor | None],
    access: Any,
) -> list[Tensor | None]:
    """`pull_back` for a call in the user's form."""
    steps, batch, directions, batch_first, _, cell, _ = _kernel.form(form)

    def rows(tensor: Tensor | None) -> Any:
        """Input or output as packed rows."""
        if tensor is None:
            return None
        return (tensor.transpose(0, 1) if batch_first else tensor).reshape(steps * batch, tensor.shape[-1])

    def states(tensor: Tensor | None) -> Any:
        """States as (D, B, F)."""
        return None if tensor is None else tensor.reshape(directions, batch, tensor.shape[-1])

    if access.subclass:
        cotangents = [None if tensor is None else as_plain(tensor) for tensor in cotangents]
        access = access_of(cotangents)
    dy, dh_n, dc_n = (None, *cotangents) if cell else cotangents
    x, h_0, c_0, *flat = arguments
    weights = unflatten(flat, directions)
    w_hh, given = weights[0][1], (h_0, c_0)
    sizes = (w_hh.shape[1], w_hh.shape[0] // 4)
    h_0, c_0 = (
        w_hh.new_zeros(directions, batch, size) if state is None else states(state)
        for state, size in zip(given, sizes, strict=True)
    )
    packed = rows(x)
    call = Call(FLOATS, problem_of(packed, h_0, weights, Dense(steps, batch)))
    grads = pull_back(
        call, needs, saved, (packed, h_0, c_0, *flat), (rows(dy), states(dh_n), states(dc_n), None, None), access
    )
    dx, *dstates = grads[:3]
    if dx is not None:
        dx = dx.reshape(steps, batch, -1).transpose(0, 1) if batch_first else dx.reshape(x.shape)
    back = [
        None if grad is None or state is None else grad.reshape(state.shape)
        for grad, state in zip(dstates, given, strict=True)
    ]
    return [dx, *back, *grads[3:]]
