"""Checks of inputs, states, weights and options that modules share, made before any engine sees a tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engines.contract import Weights
from .precision import autocasts


def check_pair(owner: str, hx: object, name: str = "hx") -> None:
    """Raise unless hx is two tensors; `owner` names the operator in torch's own words ("lstm", "lstm_cell")."""
    if not isinstance(hx, (tuple, list)):
        what = f"one Tensor of shape {tuple(hx.shape)}" if isinstance(hx, Tensor) else type(hx).__name__
        raise TypeError(f"{owner} expects {name} to be a tuple (h_0, c_0) of two tensors, got {what}")
    if len(hx) != 2:
        raise RuntimeError(f"{owner} expects two hidden states, got {len(hx)}")
    for index, state in enumerate(hx):
        if not isinstance(state, Tensor):
            raise TypeError(f"{owner} expects {name}[{index}] to be a Tensor, got {type(state).__name__}")


def check_states(input: Tensor, hx: Sequence[Tensor], name: str = "hidden") -> None:
    """Raise RuntimeError unless the states live where the input lives, in a dtype that goes with it."""
    device, dtype = input.device, input.dtype
    for index, state in enumerate(hx):
        if state.device != device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{device} and hidden tensor at {state.device}"
            )
        if state.dtype != dtype and not (autocasts(input) and autocasts(state)):
            raise RuntimeError(f"Expected {name}[{index}] dtype {dtype}, as the input has, got {state.dtype}")


def check_weights(input: Tensor, weights: Weights, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise RuntimeError unless one direction's weights have these shapes, the input's device and a fitting dtype.

    shapes  of w_ih, w_hh, b_ih, b_hh, w_hr
    """
    device, dtype = input.device, input.dtype
    for name, weight, shape in zip(("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"), weights, shapes, strict=True):
        if weight is None:
            continue
        if weight.dtype != dtype and not (autocasts(input) and autocasts(weight)):
            raise RuntimeError(f"Input and parameter dtypes differ: input {dtype}, {name} {weight.dtype}")
        if weight.device != device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{device} and parameter tensor at {weight.device}"
            )
        if weight.shape != shape:
            raise RuntimeError(f"Expected {name} of shape {shape}, got {tuple(weight.shape)}")


def dtype_mismatch(input: Tensor, weight: Tensor) -> str | None:
    """nn.LSTM's words for an input of another dtype than the weights, or None where they go together."""
    if input.dtype == weight.dtype or (autocasts(input) and autocasts(weight)):
        return None
    return (
        f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
        f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
    )


def check_every(every: object) -> None:
    """Raise TypeError or ValueError unless this is None or a number of steps to keep the states of one of."""
    if every is None:
        return
    if not isinstance(every, int) or isinstance(every, bool):
        raise TypeError(f"LSTM: Expected checkpoint_every to be an int or None, got {type(every).__name__}")
    if every < 1:
        raise ValueError(f"LSTM: Expected checkpoint_every to be at least 1, got {every}")


def check_tensor(owner: str, input: object) -> None:
    """Raise TypeError for something that is no tensor, RuntimeError for a sparse or a nested one."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{owner}: Expected input to be a Tensor, got {type(input).__name__}")
    if input.is_nested:
        kind = "jagged" if input.layout == torch.jagged else "strided"
        raise RuntimeError(
            f"{owner}: Expected a dense input, got a nested tensor of {kind} layout; those of jagged layout, "
            "layout=torch.jagged, are for an LSTM or a stack of cells"
        )
    if input.layout != torch.strided:
        raise RuntimeError(f"{owner}: Expected a dense (strided) input, got {input.layout}")
