"""Arguments that a backward does not read: kept for gradients of gradients, and guarded when these are asked for."""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .access import Access
from .torch_private import HAS_VERSIONS
from .torch_private import version as version_of

# An argument that the backward does not read: its place among the arguments, itself, and its version then.  It is kept
# for the gradients of gradients only, and whoever changes it in place is told when they are asked for.
Unread: TypeAlias = tuple[int, Tensor, int]


def _unchanged(tensor: Tensor, version: int) -> Tensor:
    """The tensor, or torch's own error if it has been changed in place."""
    if (now := version_of(tensor)) != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a tensor {list(tensor.shape)} of an LSTM is at version {now}; "
            f"expected version {version} instead, to compute gradients of gradients"
        )
    return tensor


@functools.cache
def read_by_backward(
    needs: tuple[bool, ...], directions: int, bias: bool, projected: bool, single: bool
) -> tuple[bool, ...]:
    """Which arguments (x, h_0, c_0 and all weights by `flatten`) the backward of a layer without chunks reads.

    needs   which of them want a gradient
    single  whether the layer has one step
    """
    if not HAS_VERSIONS:
        return (True,) * len(needs)
    # The gradient at h_0 of a single step is the only one that w_hh has a part in.
    each = [needs[0], needs[1] or not single, *([False, False] if bias else []), *([True] if projected else [])]
    of_ih, of_hh = (needs[3 + index :: len(each)] for index in (0, 1))
    return any(of_ih), any(of_hh), True, *each * directions


def separate(arguments: Sequence[Any], read: Sequence[bool]) -> tuple[list[Any], list[Unread]]:
    """The arguments that the backward reads, None in the place of others, and those others that there are."""
    kept = [tensor if wanted else None for tensor, wanted in zip(arguments, read, strict=True)]
    rest = [(place, arguments[place]) for place, wanted in enumerate(read) if not wanted]
    return kept, [(place, tensor, version_of(tensor)) for place, tensor in rest if tensor is not None]


def completed(arguments: Sequence[Any], unread: Sequence[Unread], access: Access) -> list[Any]:
    """All arguments of a forward: those that were saved and those that are not read, checked if they are now.

    access  how a kernel gets at the cotangents
    """
    full, read = list(arguments), torch.is_grad_enabled() or not access.direct
    for place, tensor, version in unread:
        full[place] = _unchanged(tensor, version) if read else tensor
    return full
