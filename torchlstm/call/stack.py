"""Layers: dropout between them, states in and out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.contract import Dense, Rows, Weights
from .dispatch import layer


def run_stack(
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    layers: Sequence[tuple[Weights, ...]],
    rows: Rows,
    dropout: float,
    training: bool,
    trace: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Any]]:
    """Run packed rows through all layers.

    x         (P, I)
    h_0, c_0  (L*D, B, R), (L*D, B, H), direction innermost
    layers    L of D of Weights
    returns   y (P, D*R), h_n (L*D, B, R), c_n (L*D, B, H); L of (y, acts, cells) if `trace`, see `contract.Layer`
    """
    if len(layers) == 1:
        y, h, c, *inner = layer(x, h_0, c_0, layers[0], rows, trace, checkpoint_every)
        return y, h, c, [(y, *inner)] if trace else []
    directions = len(layers[0])
    states = zip(h_0.split(directions), c_0.split(directions), strict=True)
    h_n, c_n, traced = [], [], []
    for index, (weights, (h, c)) in enumerate(zip(layers, states, strict=True)):
        if index > 0 and dropout != 0 and training:
            # Torch's own operator on contiguous time-major rows: on CPU it draws the mask that nn.LSTM draws.
            x = torch.dropout(x, dropout, True)
        x, h, c, *inner = layer(x, h, c, weights, rows, trace, checkpoint_every)
        h_n.append(h)
        c_n.append(c)
        if trace:
            traced.append((x, *inner))
    return x, torch.cat(h_n), torch.cat(c_n), traced


def run_step(x: Tensor, h_0: Tensor, c_0: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """One step of one layer in one direction: x (B, I), h_0 (B, R), c_0 (B, H) -> h_1 (B, R), c_1 (B, H)."""
    _, h_1, c_1 = layer(x, h_0.unsqueeze(0), c_0.unsqueeze(0), (weights,), Dense(1, x.shape[0]))
    # In place: the results are tensors of their own, not views.
    return h_1.squeeze_(0), c_1.squeeze_(0)
