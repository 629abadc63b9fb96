"""Once this is imported, ptflops counts LSTM and LSTMCell by its own rules for nn.LSTM and nn.LSTMCell.

Its backend "aten" counts operators instead. There it counts the same for ours as for an nn.LSTM that torch decomposes
(one with proj_size, or without oneDNN and cuDNN; it counts nothing of any other nn.LSTM).

Examples:
    >>> import ptflops, torchlstm
    >>> import torchlstm.integrations.ptflops
    >>> lstm = torchlstm.LSTM(8, 16, batch_first=True)
    >>> macs, parameters = ptflops.get_model_complexity_info(
    ...     lstm, (10, 8), as_strings=False, print_per_layer_stat=False
    ... )
    >>> parameters
    1664
"""

from typing import Any

import torch
from ptflops import pytorch_engine
from ptflops.aten_ops import ATEN_OPS_MAPPING
from ptflops.pytorch_ops import MODULES_MAPPING
from torch import nn
from torch.utils.hooks import RemovableHandle

from .as_nn import OURS, Hook, rules

_start = pytorch_engine.start_flops_count


class _Handles:
    """Two handles of hooks that go together."""

    def __init__(self, *handles: RemovableHandle) -> None:
        self.handles = handles

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _start_flops_count(self: Any, **kwargs: Any) -> None:
    """Start as ptflops does, and add a hook before each module of ours."""
    _start(self, **kwargs)
    for module in self.modules():
        handle = getattr(module, "__flops_handle__", None)
        if type(module) in OURS and isinstance(handle, RemovableHandle):
            module.__flops_handle__ = _Handles(module.register_forward_pre_hook(_begin), handle)


def _begin(module: Any, input: Any) -> None:
    # ptflops also counts calls of torch.mm and others, into a list. The rule already counts an engine's calls.
    collector = getattr(torch.mm, "collector", None)
    module.__dict__["_ptflops_begin"] = None if collector is None else (collector, len(collector))


def _without_inside(hook: Hook) -> Hook:
    """A hook that counts by a rule, and drops what has been counted since `_begin`."""

    def count(module: nn.Module, input: Any, output: Any) -> None:
        if begin := module.__dict__.pop("_ptflops_begin", None):
            collector, length = begin
            del collector[length:]
        hook(module, input, output)

    return count


def _operator(inputs: Any, outputs: Any) -> int:
    """The multiply-adds of a layer that runs as an operator, and an addition for each element of a bias."""
    _, x, _, _, weights, *_ = inputs
    return int(x.shape[0] * sum(weight.numel() for weight in weights))


pytorch_engine.start_flops_count = _start_flops_count
MODULES_MAPPING.update({ours: _without_inside(hook) for ours, hook in rules(MODULES_MAPPING).items()})
ATEN_OPS_MAPPING[torch.ops.torchlstm.lstm] = _operator
