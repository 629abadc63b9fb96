"""The interface of a kernel: the time loop of a layer, forward and backward."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from ..contract import Problem, Weights

# accumulate(direction, rows, dgates, before, dh, raw): the backward loop calls it for each part that it has computed.
#   rows    the slice of [0, P) that this part covers; the parts of a direction together cover [0, P)
#   dgates  (n, 4H) gradient of the pre-activation gates
#   before  (n, R) h of the step before, h_0 included
#   dh, raw (n, R), (n, H) gradient at h_t, and o * tanh(c_t); with a projection only, else None
# The tensors are valid only during the call.
Accumulate: TypeAlias = Callable[[int, slice, Tensor, Tensor, Tensor | None, Tensor | None], None]


class Kernel(Protocol):
    """The time loop of one layer, all its directions, on plain tensors.

    name  by which the operators find the kernel; unique
    Shapes as in `contract.Layer`.  `saved` is the activated gates (D, P, 4H) and c (D, P, H) of every row.  h is not
    saved, since it is o * tanh(c); for a projected layer the backward gets h (P, D*R) as a third tensor.
    A problem of one direction may be the reverse one: `Problem.reverse`.
    """

    name: str

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return y, h_n, c_n and saved: gates and cells, or () unless `save`."""

    def backward(
        self,
        problem: Problem,
        saved: tuple[Tensor, ...],
        h_0: Tensor,
        c_0: Tensor,
        weights: tuple[Weights, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        dacts: Tensor | None,
        dcells: Tensor | None,
        accumulate: Accumulate,
        needs_h_0: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dh_0, dc_0 and db (D, 4H), the gradient of each bias; dh_0 is undefined unless `needs_h_0`.

        dacts, dcells  (D, P, 4H), (D, P, H) cotangents of `saved`, if a trace returned it; None for zeros
        `saved` must not be written, since a graph may be kept and run again.
        """

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        """Write left @ right to `out`, or add it to `out`."""

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Return an uninitialised tensor of another's dtype and device."""


class Call(NamedTuple):
    """What a forward and its backward share besides tensors."""

    kernel: Kernel
    problem: Problem


def spread(needs: Sequence[bool], grads: Iterable[Tensor | None]) -> list[Tensor | None]:
    """The gradients of those arguments that need one, with None for the others."""
    rest = iter(grads)
    return [next(rest) if needed else None for needed in needs]


def flatten(weights: Iterable[Weights]) -> list[Tensor]:
    """The weights of all directions as one list, without the missing ones."""
    return [tensor for direction in weights for tensor in direction if tensor is not None]


def unflatten(flat: Sequence[Tensor], directions: int) -> tuple[Weights, ...]:
    """The inverse of `flatten`."""
    each = len(flat) // directions
    bias, projected = each >= 4, each % 2 == 1
    result: list[Weights] = []
    for start in range(0, len(flat), each):
        w_ih, w_hh, *rest = flat[start : start + each]
        b_ih, b_hh = (rest[0], rest[1]) if bias else (None, None)
        result.append((w_ih, w_hh, b_ih, b_hh, rest[-1] if projected else None))
    return tuple(result)
