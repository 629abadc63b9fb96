"""The reference engine: a loop over `lstm_cell`, for any device, any dtype and any transform of torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..equations import lstm_cell
from .contract import Dense, Engine, Rows, Weights


def _sizes(rows: Rows) -> list[int]:
    """How many sequences are alive at each step."""
    return [rows.batch] * rows.steps if isinstance(rows, Dense) else rows.batch_sizes.tolist()


def _direction(
    x: Tensor, h: Tensor, c: Tensor, weights: Weights, sizes: list[int], reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction: x (P, I), h (B, R), c (B, H) -> y (P, R), h_n (B, R), c_n (B, H)."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    batch = h.shape[0]
    # One product for all steps; cut by `split`, whose gradient is one concatenation, not one buffer a step.
    steps = list(enumerate(F.linear(x, w_ih, bias).split(sizes)))
    y = [h] * len(steps)
    for t, gates_x in reversed(steps) if reverse else steps:
        n = sizes[t]
        if n == batch:
            y[t], c = lstm_cell(gates_x, h, c, w_hh, w_hr)
            h = y[t]
        else:
            y[t], c_t = lstm_cell(gates_x, h[:n], c[:n], w_hh, w_hr)
            h, c = torch.cat([y[t], h[n:]]), torch.cat([c_t, c[n:]])
    return torch.cat(y), h, c


def layer(
    x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """See `contract.Layer`."""
    sizes = _sizes(rows)
    results = [_direction(x, h_0[d], c_0[d], weights[d], sizes, d == 1) for d in range(len(weights))]
    y, h_n, c_n = zip(*results, strict=True)
    # `stack` copies: the final states must not share memory with the output.
    return (y[0] if len(y) == 1 else torch.cat(y, dim=-1)), torch.stack(h_n), torch.stack(c_n)


ENGINE = Engine("reference", layer)
