"""What a kernel brings: the time loop of a layer, forward and backward."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from ..contract import Problem, Weights

# accumulate(direction, rows, dgates, before, dh, raw): what the time loop backward hands over, part by part.
#   rows    the slice of [0, P) that this part covers; all parts of a direction make up [0, P)
#   dgates  (n, 4H) gradient of the gates before activation
#   before  (n, R) h of the step before, h_0 included
#   dh, raw (n, R), (n, H) gradient at h_t, and o * tanh(c_t); with a projection only, else None
# The tensors are valid during the call only.
Accumulate: TypeAlias = Callable[[int, slice, Tensor, Tensor, Tensor | None, Tensor | None], None]


class Kernel(Protocol):
    """The time loop of one layer, all its directions, on plain tensors.

    name  what the operators call it: another name for another kernel
    Shapes as in `contract.Layer`; `saved` is the activated gates (D, P, 4H) and c (D, P, H) of every row.  h of a row
    is o * tanh(c), and is not saved; of a projected layer the backward is given h (P, D*R) as a third tensor.
    The one direction of a problem may be the reverse one: `Problem.reverse`.
    """

    name: str

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Return y, h_n, c_n and saved, gates and cells, which is () unless `save`."""

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
        """Return dh_0, dc_0 and db (D, 4H), the gradient of either bias; dh_0 may be anything unless `needs_h_0`.

        dacts, dcells  (D, P, 4H), (D, P, H) gradients of `saved` beyond those of the recurrence itself; None for zero
        `saved` is not written: a graph may be kept and run again.
        """

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        """Write left @ right to `out`, or add it."""

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Make a tensor that is not initialised yet, of the dtype and on the device of another."""


class Call(NamedTuple):
    """What a forward and its backward have in common besides tensors."""

    kernel: Kernel
    problem: Problem


def flatten(weights: Iterable[Weights]) -> list[Tensor]:
    """The weights of all directions in a row, those that there are."""
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
