"""Freeze the LSTMs of a model for inference, with packed and optionally rounded weights, and thaw them again."""

import warnings
from typing import Any

import torch
from torch import nn

from .call.frozen_weights import shapes_of, sizes_of, store_of_module
from .cell import LSTMCell
from .engines.shared import torch_private
from .engines.shared.rounding import Format, check_format
from .frozen import Frozen, become_float, become_frozen
from .lazy import LazyLSTM
from .lstm import LSTM
from .swap import Candidate, Model

_FLOAT = (nn.LSTM, nn.LSTMCell, LSTM, LSTMCell)


def plan_freeze(model: nn.Module, weights: Format = None) -> list[Candidate]:
    """Say what `freeze(model, weights)` would do, without doing it.

    The values of the weights are not checked here: `freeze` raises for NaN and infinity.

    Args:
        model: Any module.
        weights: The format, as `freeze` takes it.

    Returns:
        One `Candidate` for every LSTM and LSTMCell in the model, torch.nn's and torchlstm's, with subclasses and
        modules that are frozen in another format. Each has a `reason` if it would be left alone.

    Raises:
        ValueError: The format does not exist.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
        >>> [(name, reason) for name, module, reason in torchlstm.plan_freeze(model, torch.int8)]
        [('0', None)]
    """
    check_format(weights)
    return [
        Candidate(name, module, _reason(module, weights))
        for name, module in model.named_modules()
        if isinstance(module, _FLOAT) and not (isinstance(module, Frozen) and module.weights == weights)
    ]


def freeze(model: Model, weights: Format = None) -> Model:
    """Turn every LSTM and LSTMCell of a model into a frozen one for inference, in place.

    The modules stay the same objects and become a `FrozenLSTM` or `FrozenLSTMCell`. Names, hooks, modes and tied
    modules are unchanged. Their parameters leave the model; an optimizer that holds them keeps them. `thaw` undoes it.
    Modules that cannot be frozen are left alone, with one warning that names them.

    Args:
        model: Any module whose LSTMs are on the CPU.
        weights: None: unchanged, and the results are the same bit for bit. torch.bfloat16, torch.float16 or torch.int8:
            the matrices are rounded to it, see `FrozenLSTM`.

    Returns:
        The model.

    Raises:
        ValueError: The format does not exist, or a weight is not finite or too large for it. The model is unchanged.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
        >>> torchlstm.freeze(model.eval(), torch.int8)
        Sequential(
          (0): FrozenLSTM(8, 16, weights=torch.int8)
        )
    """
    plan = plan_freeze(model, weights)
    # Pack every module's weights before changing the first: if one fails, the model is unchanged.
    stores = [
        (module, store_of_module(module, weights, name + "." if name else ""))
        for name, module, reason in plan
        if reason is None
    ]
    for module, store in stores:
        become_frozen(module, store, type(module))
    left = [f"{name or 'the model itself'}: {reason}" for name, _, reason in plan if reason]
    if left:
        warnings.warn("freeze left alone: " + "; ".join(left), stacklevel=2)
    return model


def thaw(model: Model) -> Model:
    """Undo `freeze`: turn every frozen module of a model into what it was, with new parameters, in place.

    If `weights` was None, the parameters have exactly their former values. If they were rounded, they are the rounded
    values in float32, and a warning names the modules.

    Args:
        model: Any module.

    Returns:
        The model.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> model = torchlstm.freeze(torch.nn.Sequential(torch.nn.LSTM(8, 16)))
        >>> torchlstm.thaw(model)
        Sequential(
          (0): LSTM(8, 16)
        )
    """
    frozen: list[tuple[str, Any]] = [(n, module) for n, module in model.named_modules() if isinstance(module, Frozen)]
    floats = [module._store.floats() for _, module in frozen]
    rounded = [f"{name or 'the model itself'} ({each.weights})" for name, each in frozen if each.weights is not None]
    with torch.inference_mode(False):
        for (_, module), tensors in zip(frozen, floats, strict=True):
            become_float(module, tensors)
    if rounded:
        warnings.warn(f"thaw: the weights are those that rounding has left: {', '.join(rounded)}", stacklevel=2)
    return model


def _reason(module: nn.Module, weights: Format) -> str | None:
    """Say why this LSTM or LSTMCell, or one of a subclass, is left alone; None if it is not."""
    kind = type(module)
    if isinstance(module, Frozen):
        return f"it is frozen with weights={module.weights} already: thaw first"
    if isinstance(module, LazyLSTM):
        return "it is lazy, and becomes an LSTM at its first call: call it first"
    if kind not in _FLOAT:
        if hasattr(module, "parametrizations"):
            return (
                f"it is parametrized, which made its class a subclass of {kind.__mro__[1].__name__}: remove that first"
            )
        return f"its class {kind.__module__}.{kind.__qualname__} is a subclass, whose own methods freezing would lose"
    if "forward" in vars(module):
        return "it has a forward of its own, set on the instance"
    return _reason_of_weights(module, weights)


def _reason_of_weights(module: nn.Module, weights: Format) -> str | None:
    expected = shapes_of(*sizes_of(module))
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    if more := [name for name in own if name not in expected]:
        return (
            f"it has the parameter {more[0]} besides those of an LSTM, as of spectral or weight norm: remove that first"
        )
    dtype = None
    for name, shape in expected.items():
        weight = own.get(name)
        if weight is None:
            return f"its {name} is no parameter" if getattr(module, name, None) is not None else f"its {name} is None"
        if type(weight) is not nn.Parameter:
            return f"its {name} is a {type(weight).__name__}, which is no plain tensor"
        if weight.shape != shape:
            return f"its {name} has shape {tuple(weight.shape)}, expected {shape}"
        if torch_private.has_hooks(weight):
            return f"its {name} has hooks, which freezing would lose"
        if weight.device.type != "cpu":
            return f"its weights are on {weight.device}, and a frozen LSTM runs on the CPU: model.cpu() first"
        dtype = dtype or weight.dtype
        if weight.dtype != dtype:
            return f"its {name} is {weight.dtype}, others are {dtype}"
    if weights is not None and dtype != torch.float32:
        return f"its weights are {dtype}, and what is rounded to {weights} is torch.float32: model.float() first"
    return None
