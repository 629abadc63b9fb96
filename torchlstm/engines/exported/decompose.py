"""Decomposes our operators in an exported program into torch operations: the unrolled equations, or a scan."""

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from ...equations import lstm_step
from ..contract import Dense, Weights
from ..reference import engine as reference
from ..shared.kernel import unflatten
from ..shared.operators import Arguments


def lstm(*args: Any) -> Any:
    """Decompose `torchlstm::lstm` (see `operators`): unrolled if the number of steps is known, else a scan.

    Raises RuntimeError for ragged rows.
    """
    *arguments, save = args
    call = Arguments(*arguments)
    if save and call.every is not None:
        return NotImplemented  # a training forward, which no exported program contains
    if call.batch_sizes is not None:
        refuse()
    weights, tensors = unflatten(call.weights, call.h_0.shape[0]), (call.x, call.h_0, call.c_0)
    results: tuple[Tensor, ...]
    if isinstance(call.steps, int):
        results = reference.layer(call.problem._replace(trace=save, checkpoint_every=None), *tensors, weights)
    else:
        results = _scan(Dense(call.steps, call.h_0.shape[1]), *tensors, weights, save)
    nothing = call.x.new_empty(0)
    if not save:
        return *results, nothing, nothing, nothing
    return *results, results[0].clone() if call.problem.proj_size else nothing


def refuse(*_: Any) -> NoReturn:
    """Raise RuntimeError for an operator that needs a PackedSequence, lengths or resets, such as `torchlstm::cut`."""
    raise RuntimeError(
        "torchlstm: a PackedSequence, lengths or resets cannot be decomposed: which sequences are alive at a step is "
        "known only when the program runs. Export a model that calls the LSTM on tensors alone"
    )


def _scan(
    rows: Dense, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
) -> tuple[Tensor, ...]:
    """A layer as a scan, see `contract.Layer`; returns acts and cells too if `save`."""
    each = [_direction(rows, d, x, h_0[d], c_0[d], weights[d], save) for d in range(len(weights))]
    y, *rest = zip(*each, strict=True)
    return torch.cat(y, dim=-1), *map(torch.stack, rest)


def _direction(
    rows: Dense, d: int, x: Tensor, h: Tensor, c: Tensor, weights: Weights, save: bool
) -> tuple[Tensor, ...]:
    """One direction of rows x (P, I): y (P, R), h_n, c_n, and if `save` the activated gates (P, 4H) and c (P, H)."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    bias = None if b_ih is None or b_hh is None else b_ih + b_hh
    gates_x = F.linear(x, w_ih, bias).view(rows.steps, rows.batch, w_ih.shape[0])
    recurrent = (w_hh,) if w_hr is None else (w_hh, w_hr)

    def step(h: Tensor, c: Tensor, gates_x: Tensor, *recurrent: Tensor) -> list[Tensor]:
        h, c, *gates = lstm_step(gates_x, h, c, recurrent[0], recurrent[1] if len(recurrent) > 1 else None)
        # The results must not share memory.
        return [h, c, h.clone(), *([torch.cat(gates, dim=-1), c.clone()] if save else [])]

    # The operator itself, since `scan` of torch._higher_order_ops would compile the step in the middle of a trace.
    inputs = [gates_x.flip(0) if d else gates_x]
    h, c, *every = torch.ops.higher_order.scan(step, [h.clone(), c.clone()], inputs, recurrent)
    y, *saved = ((tensor.flip(0) if d else tensor).flatten(0, 1) for tensor in every)
    return y, h, c, *saved
