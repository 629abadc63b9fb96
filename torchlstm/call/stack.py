"""Runs a planned call on packed rows: layer after layer, dropout between them, states in and out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.contract import Weights
from .dispatch import layer
from .packing import Packed
from .plan import Plan

# What a trace has of one layer, all its directions: y (P, D*R), acts (D, P, 4H), cells (D, P, H).
Traced = tuple[Tensor, Tensor, Tensor]


def run_stack(
    plan: Plan, packed: Packed, states: Sequence[Tensor], layers: Sequence[tuple[Weights, ...]]
) -> tuple[Tensor, Tensor, Tensor, list[Traced]]:
    """Run packed rows through all layers.

    states   h_0 (L*D, B, R), c_0 (L*D, B, H), direction innermost
    layers   L of D of Weights
    returns  y (P, D*R), h_n (L*D, B, R), c_n (L*D, B, H), and a list with the `Traced` of each layer, if the plan has
             a trace
    """
    x, (h_0, c_0), precision = packed.data, states, plan.precision
    if precision is not None:
        layers = [tuple(precision.cast(weights) for weights in each) for each in layers]
        x, *states = precision.cast((x, h_0, c_0))
        with torch.autocast(x.device.type, enabled=False):
            plain = plan._replace(precision=None)
            y, h_n, c_n, traced = run_stack(plain, packed._replace(data=x), states, layers)
        # The gates get the dtype of h.
        return *precision.results(y, h_n, c_n), [precision.results(*each) for each in traced]
    problems = plan.problems
    if packed.rows is not plan.rows:
        problems = tuple(each._replace(rows=packed.rows, batch=packed.batch) for each in problems)
    if len(layers) == 1:
        y, h_n, c_n, *inner = layer(problems[0], x, h_0, c_0, layers[0])
        return y, h_n, c_n, [(y, *inner)] if plan.trace else []  # type: ignore[list-item]
    every_h, every_c = [], []
    every: list[Any] = []
    parts = zip(layers, h_0.split(plan.directions), c_0.split(plan.directions), strict=True)
    for index, (weights, h, c) in enumerate(parts):
        if index > 0 and plan.dropout != 0:
            # torch's own operator on contiguous time-major rows: on the CPU it draws the same mask as nn.LSTM.
            x = torch.dropout(x, plan.dropout, True)
        x, h, c, *inner = layer(problems[index], x, h, c, weights)
        every_h.append(h)
        every_c.append(c)
        if plan.trace:
            every.append((x, *inner))
    return x, torch.cat(every_h), torch.cat(every_c), every
