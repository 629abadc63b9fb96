"""Whether a call's tensors may be read through their addresses, as a kernel does."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def not_plain(tensors: Iterable[Tensor | None]) -> str | None:
    """Why these tensors are more than memory in this call, or None where they are not.

    Inside a transform, a trace or a mode, what looks like a tensor stands for something else: its address is null or
    holds other numbers, and a kernel called on it would be silently wrong.
    """
    if torch.compiler.is_compiling():
        return "torch.compile is tracing this call"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit is tracing this call"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active"
    for tensor in tensors:
        kind = type(tensor)
        if tensor is None or kind is Parameter:
            continue
        if kind is not Tensor:
            return f"a tensor is a {kind.__name__}"
        if not torch._C._has_storage(tensor):
            # As inside the vmap by which autograd differentiates a batch of cotangents.
            return "a tensor has no memory of its own"
        if tensor.is_neg() or tensor.is_conj():
            return "a tensor is a lazy negation or conjugation"
    return None
