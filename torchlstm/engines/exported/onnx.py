"""A layer as ONNX's LSTM operator, for `torch.onnx.export(dynamo=True)`; nothing is computed here."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import Dense, Problem, Weights
from ..shared import torch_private


def exporting(problem: Problem) -> bool:
    """Whether this call is being exported to ONNX."""
    return not problem.access.direct and torch_private.is_exporting() and torch.onnx.is_in_onnx_export()


def layer(
    problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """See `contract.Layer`; raises RuntimeError for what ONNX's operator cannot do.

    https://onnx.ai/onnx/operators/onnx__LSTM.html: gates are i, o, f, g there, and y is (T, D, B, H).
    """
    rows, directions, hidden = problem.rows, problem.directions, problem.hidden_size
    if problem.trace:
        raise _refusal("ONNX's LSTM operator gives no gates, and this call is LSTM.trace: export a call of the LSTM")
    if not isinstance(rows, Dense):
        raise _refusal(
            "ONNX's LSTM operator takes no PackedSequence, lengths or resets: export a model that calls the LSTM on a "
            "tensor alone, of one sequence or of sequences that are equally long"
        )
    count, x = x.shape[0], x.view(rows.steps, rows.batch, problem.input_size)
    if problem.proj_size:
        x, h_0, weights, w_hr = _unprojected(x, h_0, c_0, weights)
    w_ih, w_hh = (torch.stack([_iofg(direction[k]) for direction in weights]) for k in (0, 1))
    bias = None
    if problem.bias:
        bias = torch.stack([torch.cat([_iofg(b_ih), _iofg(b_hh)]) for _, _, b_ih, b_hh, _ in weights])
    state = (directions, rows.batch, hidden)
    y, h_n, c_n = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        (x, w_ih, w_hh, bias, None, h_0, c_0),
        {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"},
        dtypes=(x.dtype,) * 3,
        shapes=((rows.steps, directions, rows.batch, hidden), state, state),
    )
    if problem.proj_size:
        y, h_n = y @ w_hr, h_n @ w_hr
    return y.transpose(1, 2).reshape(count, directions * y.shape[3]), h_n, c_n


def _unprojected(
    x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
) -> tuple[Tensor, Tensor, tuple[Weights, ...], Tensor]:
    """Express a layer with a projection by one without, whose state is r = o * tanh(c), so that h = W_hr r.

    The recurrent part of the gates, W_hh h, becomes (W_hh W_hr) r.  Only h_0 is not a projection of some r, so it is
    appended to the input of each direction's first step, and W_hh to the input weights.

    x        (T, B, I)
    returns  x (T, B, I + D*R), r_0 (D, B, H) zeros, weights without projections, and W_hr^T of each direction (D, H, R)
    """
    steps = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1)
    given = zip((steps == 0, steps == x.shape[0] - 1), h_0, strict=False)
    x = torch.cat([x, *(torch.where(first, h, 0.0) for first, h in given)], dim=-1)
    plain: list[Weights] = []
    for d, (w_ih, w_hh, b_ih, b_hh, w_hr) in enumerate(weights):
        assert w_hr is not None
        size = w_hh.shape[1]
        of_h = F.pad(w_hh, (d * size, (len(weights) - 1 - d) * size))  # zeros for the other direction's h_0
        plain.append((torch.cat([w_ih, of_h], dim=1), w_hh @ w_hr, b_ih, b_hh, None))
    return x, torch.zeros_like(c_0), tuple(plain), torch.stack([w_hr.t() for *_, w_hr in weights if w_hr is not None])


def _refusal(reason: str) -> RuntimeError:
    """An error, and a warning too, since the exporter tries another strategy and reports only the failure of that."""
    message = f"cannot be exported to ONNX: {reason}"
    warnings.warn(message, stacklevel=2)
    return RuntimeError(message)


def _iofg(weight: Tensor | None) -> Tensor:
    """Gates i, f, g, o (4H, ..) in ONNX's order."""
    assert weight is not None
    hidden = weight.shape[0] // 4
    # Slices, since the exporter folds these into constants.
    return torch.cat([weight[:hidden], weight[3 * hidden :], weight[hidden : 3 * hidden]])
