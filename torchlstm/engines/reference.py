"""The reference engine: a loop over `lstm_cell`, for any device, any dtype and any transform of torch."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..equations import lstm_cell
from .contract import Dense, Engine, Problem, Weights
from .loop import time_loop


def _step(gates_x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """`lstm_cell` as a step of the time loop: state h, c, weights w_hh and, with a projection, w_hr."""
    w_hr = weights[1] if len(weights) > 1 else None
    h, c = lstm_cell(gates_x, state[0], state[1], weights[0], w_hr)
    return [h, c]


recurrence = time_loop(_step)


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
        recurrent = [w_hh] if w_hr is None else [w_hh, w_hr]
        results.append(loop(gates_x, batch_sizes, [h_0[d], c_0[d]], recurrent, d == 1))
    y, states = zip(*results, strict=True)
    h_n, c_n = zip(*states, strict=True)
    # `stack` copies: the final states must not share memory with the output.
    return (y[0] if len(y) == 1 else torch.cat(y, dim=-1)), torch.stack(h_n), torch.stack(c_n)


ENGINE = Engine("reference", layer)
