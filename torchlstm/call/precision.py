"""Autocast: in which dtype a module computes, and which dtypes its results have."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.shared.torch_private import constant

# Autocast leaves every other dtype alone.
_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)


class Precision(NamedTuple):
    """The dtype of the arithmetic, of the output and h_n, and of c_n."""

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
    """Whether autocast, as it is set now, would cast this tensor."""
    kind = tensor.device.type
    return tensor.dtype in _CASTABLE and _has_autocast(kind) and torch.is_autocast_enabled(kind)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a device as it is set now, or None."""
    kind = device.type
    if not _has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast_precision(input: Tensor, c_0: Tensor | None, projected: bool, fused: bool) -> Precision | None:
    """What autocast asks of a module that is called with this input, or None where it asks nothing.

    input      a tensor of any shape
    c_0        the initial cell state, or None for zeros of the input's dtype
    projected  whether h is a projection
    fused      whether torch.nn runs its fused oneDNN layer for such a call on CPU: nn.LSTM, dense input, no projection

    The results get the dtypes that torch.nn gives them.  There, CUDA and the fused CPU layer cast everything to the
    autocast dtype; the other CPU paths cast only the operands of products, so that c keeps the wider of its own
    dtype and autocast's.  Where c stays wide, so does our arithmetic.
    """
    if not autocasts(input):
        return None
    kind = input.device.type
    cast = torch.get_autocast_dtype(kind)
    if kind != "cpu" or fused:
        return Precision(cast, cast, cast)
    c = torch.promote_types(cast, input.dtype if c_0 is None else c_0.dtype)
    return Precision(c, cast if projected else c, c)
