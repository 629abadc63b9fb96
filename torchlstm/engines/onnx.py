"""A layer as ONNX's LSTM operator: what `torch.onnx.export(dynamo=True)` writes.  It computes nothing."""

import warnings

import torch
from torch import Tensor

from .contract import Dense, Problem, Weights


def exporting(problem: Problem) -> bool:
    """Whether this call is being traced for ONNX."""
    return not problem.reach.direct and torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def layer(
    problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `contract.Layer`; raises RuntimeError for what the operator cannot do.

    https://onnx.ai/onnx/operators/onnx__LSTM.html: gates are i, o, f, g there, and y is (T, D, B, H).
    """
    rows, directions, hidden = problem.rows, problem.directions, problem.hidden_size
    if problem.trace:
        raise _refusal("ONNX's LSTM operator gives no gates, and this call is LSTM.trace")
    if problem.proj_size:
        raise _refusal(f"ONNX's LSTM operator has no projection, and this LSTM has proj_size={problem.proj_size}")
    if not isinstance(rows, Dense):
        raise _refusal("ONNX's LSTM operator takes no PackedSequence, lengths or resets: export a model without")
    w_ih, w_hh = (torch.stack([_iofg(direction[k]) for direction in weights]) for k in (0, 1))
    bias = None
    if problem.bias:
        bias = torch.stack([torch.cat([_iofg(b_ih), _iofg(b_hh)]) for _, _, b_ih, b_hh, _ in weights])
    state = (directions, rows.batch, hidden)
    y, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        (x.view(rows.steps, rows.batch, problem.input_size), w_ih, w_hh, bias, None, h_0, c_0),
        {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"},
        dtypes=(x.dtype,) * 3,
        shapes=((rows.steps, directions, rows.batch, hidden), state, state),
    )
    return y.transpose(1, 2).reshape(x.shape[0], directions * hidden), h_n, c_n


def _refusal(reason: str) -> RuntimeError:
    """An error that says so, and a warning: the exporter then tries another way, and reports the failure of that."""
    message = f"cannot be exported to ONNX: {reason}"
    warnings.warn(message, stacklevel=2)
    return RuntimeError(message)


def _iofg(weight: Tensor | None) -> Tensor:
    """Gates i, f, g, o (4H, ..) in ONNX's order."""
    assert weight is not None
    hidden = weight.shape[0] // 4
    # Slices, which the exporter folds into the constants.
    return torch.cat([weight[:hidden], weight[3 * hidden :], weight[hidden : 3 * hidden]])
