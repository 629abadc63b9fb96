"""The reference engine: a loop over `lstm_cell`, for any device, any dtype and any transform of torch."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..equations import lstm_cell
from . import per_sample
from .contract import Dense, Engine, Problem, Weights


def recurrence(
    gates_x: Tensor,
    batch_sizes: Tensor | None,
    h: Tensor,
    c: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The time loop of one direction, in the part of Python that TorchScript understands.

    gates_x      (T, B, 4H) if batch_sizes is None, else (P, 4H)
    batch_sizes  (T,) or None: how many sequences are alive at each step
    h, c         (B, R), (B, H)
    returns      y (P, R), h_n (B, R), c_n (B, H)
    """
    # `unbind` and `split` cut all steps at once: their gradient is one concatenation, not one buffer a step.
    if batch_sizes is None:
        steps = gates_x.unbind(0)
    else:
        sizes: list[int] = batch_sizes.tolist()
        steps = gates_x.split(sizes)
    y = [h] * len(steps)
    for k in range(len(steps)):
        t = len(steps) - 1 - k if reverse else k
        n = steps[t].shape[0]
        if n == h.shape[0]:
            h, c = lstm_cell(steps[t], h, c, w_hh, w_hr)
            y[t] = h
        else:
            h_t, c_t = lstm_cell(steps[t], h[:n], c[:n], w_hh, w_hr)
            y[t] = h_t
            h, c = torch.cat([h_t, h[n:]]), torch.cat([c_t, c[n:]])
    return torch.cat(y), h, c


@functools.cache
def _scripted() -> Callable[..., Any]:
    """The time loop as TorchScript."""
    with warnings.catch_warnings():
        # torch.jit is deprecated; whoever traces has been told.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(recurrence)


def layer(
    problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `contract.Layer`."""
    if problem.recorder is not None:
        return per_sample.by_transforms(layer, problem, x, h_0, c_0, weights)
    # A trace records a Python loop with as many steps as its example has; a script's loop stays a loop.
    loop = _scripted() if torch.jit.is_tracing() else recurrence  # type: ignore[attr-defined,no-untyped-call]
    rows, results = problem.rows, []
    for d, (w_ih, w_hh, b_ih, b_hh, w_hr) in enumerate(weights):
        bias = None if b_ih is None or b_hh is None else b_ih + b_hh
        gates_x, batch_sizes = F.linear(x, w_ih, bias), None  # one product for all steps
        if isinstance(rows, Dense):
            gates_x = gates_x.view(rows.steps, rows.batch, w_ih.shape[0])
        else:
            batch_sizes = rows.batch_sizes
        results.append(loop(gates_x, batch_sizes, h_0[d], c_0[d], w_hh, w_hr, d == 1))
    y, h_n, c_n = zip(*results, strict=True)
    # `stack` copies: the final states must not share memory with the output.
    return (y[0] if len(y) == 1 else torch.cat(y, dim=-1)), torch.stack(h_n), torch.stack(c_n)


ENGINE = Engine("reference", layer)
