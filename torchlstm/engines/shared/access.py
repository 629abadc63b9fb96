"""How a kernel may access the tensors of a call: directly in memory, as an opaque operator, or not at all."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .torch_private import (
    FakeTensor,
    forward_ad,
    has_storage,
    has_torch_function_unary,
    len_torch_dispatch_stack,
    may_be_dual,
    peek_interpreter_stack,
)


class Access(NamedTuple):
    """How a kernel accesses tensors.

    direct       in memory, by their addresses
    transformed  a torch.func transform is active; tensors that it differentiates need not have `requires_grad`
    refusal      why a kernel cannot run even as an operator, or None
    subclass     some are of a subclass of Tensor that stores numbers as Tensor does: see `as_plain`
    """

    direct: bool
    transformed: bool = False
    refusal: str | None = None
    subclass: bool = False


DIRECT = Access(direct=True)
# A subclass that inherits this does not redefine what operations do to memory.
_NO_DISPATCH = Tensor.__torch_dispatch__

OPERATOR = Access(direct=False)
TRANSFORM = Access(direct=False, transformed=True)


def access_of(tensors: Iterable[Tensor | None]) -> Access:
    """How a kernel may access these tensors.

    Inside a transform, a trace or a mode a tensor is only a stand-in: its address is null or holds other numbers, and a
    kernel called on it would be silently wrong.  torch calls an operator with the tensors behind it.
    """
    if torch.compiler.is_compiling():
        return OPERATOR
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return Access(direct=False, refusal="torch.jit is tracing this call")
    if forward_ad._current_level >= 0 and may_be_dual(tensors := tuple(tensors)):
        return Access(direct=False, refusal="forward-mode differentiation is active")
    access, subclass = DIRECT, False
    if peek_interpreter_stack() is not None:
        access = TRANSFORM
    elif len_torch_dispatch_stack():
        access = OPERATOR
    for tensor in tensors:
        if tensor is None or (kind := type(tensor)) is Parameter:
            continue
        if kind is FakeTensor:
            access = OPERATOR if access is DIRECT else access
        elif kind is not Tensor and kind.__torch_dispatch__ is not _NO_DISPATCH:
            return Access(direct=False, refusal=f"a tensor is a {kind.__name__}")
        elif kind is not Tensor:
            subclass = True
        if access is DIRECT and (tensor.is_neg() or tensor.is_conj()):
            access = OPERATOR  # torch resolves the lazy negation or conjugation before it calls one
        if access is DIRECT and not has_storage(tensor):
            # As in autograd's own vmap (`is_grads_batched`), which supports only torch's own operators.
            return Access(direct=False, refusal="a tensor has no memory of its own")
    return access._replace(subclass=True) if subclass else access


def sees_functions(tensor: object) -> bool:
    """Whether this is a tensor of a subclass that stores numbers as Tensor does and has `__torch_function__`.

    To such a class a module's call is one operation.  Otherwise the class would see, and slow down, each inner one.
    """
    if not isinstance(tensor, Tensor) or type(tensor) in (Tensor, Parameter):
        return False
    if type(tensor).__torch_dispatch__ is not _NO_DISPATCH:
        return False
    return not torch.compiler.is_compiling() and has_torch_function_unary(tensor)


def as_plain(tensor: Tensor) -> Tensor:
    """A tensor of such a subclass (`Access.subclass`) as a plain Tensor: the same memory, differentiable."""
    return tensor if type(tensor) in (Tensor, Parameter) else tensor.as_subclass(Tensor)
