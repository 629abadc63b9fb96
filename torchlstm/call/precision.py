"""Autocast: the dtype in which a module computes, and the dtypes of its results."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.shared.torch_private import constant

# Autocast leaves every other dtype alone.
_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)


class Precision(NamedTuple):
    """The dtypes of the arithmetic, of output and h_n, and of c_n."""

    compute: torch.dtype
    h: torch.dtype
    c: torch.dtype

    def cast(self, tensors: Sequence[Any]) -> tuple[Any, ...]:
        """These tensors in the dtype of the arithmetic; None stays None."""
        return tuple(None if tensor is None else tensor.to(self.compute) for tensor in tensors)

    def results(self, y: Tensor, h_n: Tensor, c_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The results in their own dtypes."""
        return y.to(self.h), h_n.to(self.h), c_n.to(self.c)


@constant
def _has_autocast(kind: str) -> bool:
    """Whether a type of device has autocast: the meta device, for one, has none to ask about.

    Torch 2.11's compiler cannot trace the question.
    """
    return torch.amp.is_autocast_available(kind)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on and would cast this tensor."""
    kind = tensor.device.type
    return tensor.dtype in _CASTABLE and _has_autocast(kind) and torch.is_autocast_enabled(kind)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a device, or None if it is off."""
    kind = device.type
    if not _has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast_precision(input: Tensor, c_0: Tensor | None, projected: bool, fused: bool) -> Precision | None:
    """The dtypes of a module's call under autocast, or None where autocast does not apply.

    input      a tensor of any shape
    c_0        the initial cell state, or None for zeros of the input's dtype
    projected  whether the layer has a projection
    fused      whether torch.nn runs its fused oneDNN layer for such a call on the CPU: nn.LSTM, dense, no projection

    The results get the dtypes that torch.nn gives them.  On CUDA, and in the fused layer of the CPU, torch.nn casts
    everything to the autocast dtype.  Its other paths on the CPU cast only the operands of products, so c keeps the
    wider of its own dtype and autocast's.  Where c stays wide, our arithmetic is wide too.
    """
    if not autocasts(input):
        return None
    kind = input.device.type
    cast = torch.get_autocast_dtype(kind)
    if kind != "cpu" or fused:
        return Precision(cast, cast, cast)
    c = torch.promote_types(cast, input.dtype if c_0 is None else c_0.dtype)
    return Precision(c, cast if projected else c, c)
