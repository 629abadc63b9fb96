"""`check(..., freeze=...)`: compares a frozen copy of a user's own model with the model: results, size and speed."""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..freeze import freeze, plan_freeze
from .call import forward, leaves, outputs_of
from .report import table
from .timing import Pairs, interleave


class Difference(NamedTuple):
    """One output: the largest and the mean difference, and the largest element of the model's own output."""

    name: str
    largest: float  # infinite if NaN or Inf are at other places
    mean: float
    scale: float


class FrozenReport(NamedTuple):
    """The result of `check` with `freeze`; it prints as a table.

    There is no verdict: which difference is too large depends on the model.

    Attributes:
        weights: The format.
        differences: One entry for every output: its name, the largest and the mean difference, and the largest element.
        frozen: The names of the modules that were frozen.
        left_alone: "name: reason" of the modules that were not.
        bytes_before: The bytes of those modules' weights, as a state_dict has them.
        bytes_after: The same, of the frozen copy.
        forward: The time of a forward: the model as it is, and the frozen copy.
    """

    weights: torch.dtype | None
    differences: list[Difference]
    frozen: list[str]
    left_alone: list[str]
    bytes_before: int
    bytes_after: int
    forward: Pairs

    def __str__(self) -> str:
        rows = [[d.name, f"{d.largest:.1e}", f"{d.mean:.1e}", f"{d.scale:.1e}"] for d in self.differences]
        lines = table(["tensor", "largest difference", "mean", "largest element"], rows)
        what = "as they are" if self.weights is None else f"in {self.weights}"
        lines.append(f"frozen, weights {what}: {', '.join(name or '(the model itself)' for name in self.frozen)}")
        lines += [f"left alone: {line}" for line in self.left_alone]
        lines.append(f"weights: {self.bytes_before:,} bytes, frozen {self.bytes_after:,}")
        lines.append(
            f"forward: {1e3 * self.forward.first:.2f} ms, frozen {1e3 * self.forward.second:.2f} ms, "
            f"{self.forward.ratio:.2f}x as fast"
        )
        return "\n".join(lines)


def check_frozen(model: nn.Module, call: tuple[Any, Any], weights: torch.dtype | None, seconds: float) -> FrozenReport:
    """Compare a model with a frozen copy of itself, in its current mode; see `check`."""
    floats = copy.deepcopy(model)
    plan = plan_freeze(floats, weights)
    names = [name for name, _, reason in plan if reason is None]
    left_alone = [f"{name or '(the model itself)'}: {reason}" for name, _, reason in plan if reason]
    if not names:
        why = "; ".join(left_alone) or "it contains no LSTM and no LSTMCell that is not frozen"
        raise ValueError(f"nothing to freeze in {type(model).__name__}: {why}")
    frozen = copy.deepcopy(floats)
    before = _bytes(frozen, names)
    for name in names:
        freeze(frozen.get_submodule(name), weights)
    truth, found = (outputs_of(each, forward(each, *leaves(call, grad=False))) for each in (floats, frozen))
    pairs = interleave(
        lambda: forward(floats, *leaves(call, grad=False)),
        lambda: forward(frozen, *leaves(call, grad=False)),
        "cpu",
        seconds,
    )
    differences = [_difference(name, true, found[name]) for name, true in truth.items()]
    return FrozenReport(weights, differences, names, left_alone, before, _bytes(frozen, names), pairs)


def _bytes(model: nn.Module, names: list[str]) -> int:
    return sum(t.numel() * t.element_size() for name in names for t in model.get_submodule(name).state_dict().values())


def _difference(name: str, true: Tensor, found: Tensor) -> Difference:
    wide = torch.complex128 if true.is_complex() else torch.float64
    true, found = true.to(wide), found.to(wide)
    finite = true.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return Difference(name, math.inf, math.inf, math.nan)
    if not bool(finite.any()):
        return Difference(name, 0.0, 0.0, 0.0)
    gaps = (found - true)[finite].abs()
    return Difference(name, gaps.max().item(), gaps.mean().item(), true[finite].abs().max().item())
