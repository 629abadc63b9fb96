"""Arguments that a backward does not read: kept for gradients of gradients, and checked only when it computes those."""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .access import Access
from .torch_private import HAS_VERSIONS
from .torch_private import version as version_of

# An argument that the backward does not read: its index among the arguments, the tensor, and its version in the
# forward.  It is kept only for gradients of gradients; a change in place raises when they are computed.
Unread: TypeAlias = tuple[int, Tensor, int]


def _unchanged(tensor: Tensor, version: int) -> Tensor:
    """The tensor; raises torch's own error if it was changed in place."""
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
    """For each argument (x, h_0, c_0, all weights by `flatten`): does the backward of a layer without chunks read it?

    needs   which of them need a gradient
    single  whether the layer has one step
    """
    if not HAS_VERSIONS:
        return (True,) * len(needs)
    # In a single step w_hh is used for the gradient of h_0 only.
    each = [needs[0], needs[1] or not single, *([False, False] if bias else []), *([True] if projected else [])]
    of_ih, of_hh = (needs[3 + index :: len(each)] for index in (0, 1))
    return any(of_ih), any(of_hh), True, *each * directions


def separate(arguments: Sequence[Any], read: Sequence[bool]) -> tuple[list[Any], list[Unread]]:
    """The arguments with None for those that the backward does not read, and the `Unread` ones that are not None."""
    kept = [tensor if wanted else None for tensor, wanted in zip(arguments, read, strict=True)]
    rest = [(place, arguments[place]) for place, wanted in enumerate(read) if not wanted]
    return kept, [(place, tensor, version_of(tensor)) for place, tensor in rest if tensor is not None]


def completed(arguments: Sequence[Any], unread: Sequence[Unread], access: Access) -> list[Any]:
    """All arguments of a forward: the saved ones and the unread ones, which are checked if they are read now.

    access  how a kernel may access the cotangents
    """
    full, read = list(arguments), torch.is_grad_enabled() or not access.direct
    for place, tensor, version in unread:
        full[place] = _unchanged(tensor, version) if read else tensor
    return full
