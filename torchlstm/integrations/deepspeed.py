"""Once this is imported, DeepSpeed's flops profiler counts LSTM and LSTMCell by its rules for nn.LSTM and nn.LSTMCell.

Examples:
    >>> import torch, torchlstm
    >>> import torchlstm.integrations.deepspeed
    >>> from deepspeed.profiling.flops_profiler import get_model_profile
    >>> x = torch.randn(10, 4, 8)
    >>> flops, macs, parameters = get_model_profile(
    ...     torchlstm.LSTM(8, 16), args=[x], print_profile=False, as_string=False
    ... )
    >>> parameters
    1664
"""

from typing import Any

from deepspeed.profiling.flops_profiler import profiler
from torch import nn

from .as_nn import OURS, Hook, rules

_start = profiler.FlopsProfiler.start_profile


def _start_profile(self: Any, ignore_list: Any = None) -> None:
    """Start as DeepSpeed does, and add a hook before each module of ours."""
    _start(self, ignore_list)
    for module in self.model.modules():
        if type(module) in OURS and hasattr(module, "__flops_handle__") and not hasattr(module, "__pre_hook_handle__"):
            # DeepSpeed removes the hook that has this name.
            module.__pre_hook_handle__ = module.register_forward_pre_hook(_begin)


def _begin(module: nn.Module, input: Any) -> None:
    # DeepSpeed also counts calls of torch's functions, into the last of these lists. The rule already counts an
    # engine's calls.
    profiler.module_flop_count.append([])
    profiler.module_mac_count.append([])


def _without_inside(hook: Hook) -> Hook:
    """A hook that counts by a rule, and drops what has been counted since `_begin`."""

    def count(module: nn.Module, input: Any, output: Any) -> None:
        if hasattr(module, "__pre_hook_handle__"):
            profiler.module_flop_count.pop()
            profiler.module_mac_count.pop()
        hook(module, input, output)

    return count


profiler.FlopsProfiler.start_profile = _start_profile
profiler.MODULE_HOOK_MAPPING.update(
    {ours: _without_inside(hook) for ours, hook in rules(profiler.MODULE_HOOK_MAPPING).items()}
)
