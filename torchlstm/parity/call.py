"""Calls a user's own model on copies of its tensors under a fixed seed, and names its outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.shared.torch_private import pytree

SEED = 17


def leaves(call: tuple[Any, Any], grad: bool) -> tuple[Any, Any]:
    """The arguments with their tensors copied, so that no model can change another's input."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        copied = value.detach().clone()
        return copied.requires_grad_(grad) if is_floating(copied) else copied

    result: tuple[Any, Any] = pytree.tree_map(leaf, call)
    return result


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor is floating-point, real or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def forward(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a call, without gradients."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        return module(*args, **kwargs)


def outputs_of(module: nn.Module, result: Any) -> dict[str, Tensor]:
    """The floating-point tensors in a module's result by name; raises ValueError if there is none."""
    outputs = {
        f"output{pytree.keystr(path)}": value
        for path, value in pytree.tree_flatten_with_path(result)[0]
        if isinstance(value, Tensor) and is_floating(value)
    }
    if not outputs:
        raise ValueError(f"{type(module).__name__} returned no floating tensor to compare, but {type(result).__name__}")
    return outputs
