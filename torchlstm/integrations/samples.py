"""Common parts of the per-sample-gradient integrations: the parameters of each layer, and the order of samples."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..call.jagged import check_jagged, is_jagged, plan
from ..call.segments import segment
from ..cell import LSTMCell
from ..engines.shared.per_sample import EAGER_ONLY
from ..lstm import LSTM


def parameters_of(library: str, module: LSTM | LSTMCell) -> list[list[nn.Parameter]]:
    """Return the Parameters of every layer, by `kernel.flatten`."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    if isinstance(module, LSTMCell):
        names = [kinds]
    else:
        kinds += ["weight_hr"] if module.proj_size else []
        directions = ("", "_reverse") if module.bidirectional else ("",)
        names = [[f"{kind}_l{k}{d}" for d in directions for kind in kinds] for k in range(module.num_layers)]
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    expected = [name for layer in names for name in layer]
    if missing := [name for name in expected if name not in own]:
        raise NotImplementedError(
            f"{library}: {missing[0]} of this {type(module).__name__} is no Parameter of its own "
            f"(a parametrization, or a tensor in its place): remove that before {library} gets the model"
        )
    if extra := [name for name, weight in own.items() if name not in expected and weight.requires_grad]:
        raise NotImplementedError(
            f"{library}: {type(module).__name__} has a parameter {extra[0]} that torchlstm does not know; "
            "put it into a module of its own"
        )
    return [[own[name] for name in layer] for layer in names]


def order_of(library: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return which sequence of the rows is each sample of a call: (B,), or None if they have the same order.

    Raises:
        RuntimeError: The call is compiled, or its sequences are not its samples.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(EAGER_ONLY)
    if others := [name for name in ("resets", "reset_state") if kwargs.get(name) is not None]:
        raise RuntimeError(
            f"{library}: a sample with resets is several sequences, whose gradients are not added up: "
            f"call {type(module).__name__} without {', '.join(others)}"
        )
    input = args[0] if args else kwargs.get("input")
    if isinstance(input, PackedSequence):
        return input.unsorted_indices
    if isinstance(module, LSTM) and is_jagged(input):
        check_jagged("LSTM", input)
        return plan(input).leave[0]
    if isinstance(module, LSTM) and isinstance(input, Tensor) and kwargs.get("lengths") is not None:
        segments = segment(input, module.batch_first, 1, kwargs["lengths"])
        return None if segments is None else segments.leave[0]
    return None
