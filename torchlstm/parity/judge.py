"""The tolerance rule, and what it says of two observations."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .observe import Observation

# How much further from float64 we may be than nn.LSTM in the same dtype.  Measured need over the case table: below 2
# in float32, below 3.4 in bfloat16 (`python -m torchlstm parity` prints the worst of every case).
FACTOR = 4.0
ROUNDINGS = 8.0  # and this many units of the last place of the largest element besides
TF32 = 2.0**-11  # the unit of the last place where products may round float32 to TF32
FLOAT64 = 1e-10  # the bound for float64 and complex128, times the largest element, or 1 if that is smaller


class Verdict(NamedTuple):
    """The comparison of one tensor.

    Attributes:
        name: The name of the tensor.
        error: Its largest error against the true value.
        rival_error: The same of nn.LSTM in the same dtype, or of the control.
        bound: The largest error that passes.
        reason: Why it fails, or None.
    """

    name: str
    error: float
    rival_error: float
    bound: float
    reason: str | None

    @property
    def used(self) -> float:
        """The error as a part of the bound; above 1 is a failure.

        Returns:
            error / bound.
        """
        return self.error / self.bound if self.bound else (0.0 if self.error == 0 else math.inf)


def judge(
    ours: Observation, rival: Observation | None, truth: Observation, precision: torch.dtype, tf32: bool = False
) -> list[Verdict]:
    """Compare every named tensor with its true value; the bound follows from the error of `rival`.

    Args:
        ours: Tensors by name.
        rival: The same of nn.LSTM in the same dtype, or None if it cannot run: the truth, rounded once, takes its
            place.
        truth: The same of nn.LSTM in float64.
        precision: The dtype of the arithmetic.
        tf32: Whether products of float32 may round to TF32.

    Returns:
        One `Verdict` for each tensor.

    Examples:
        >>> import torch
        >>> from torchlstm.parity import judge
        >>> (verdict,) = judge({"h": torch.ones(3)}, None, {"h": torch.ones(3).double()}, torch.float32)
        >>> verdict.reason is None
        True
    """
    unit = TF32 if tf32 and precision == torch.float32 else torch.finfo(precision).eps
    verdicts = []
    for name, true in truth.items():
        mine = ours.get(name)
        theirs = (rival or _rounded(truth, ours)).get(name)
        if mine is None or true is None or theirs is None:
            missing = [who for who, value in (("ours", mine), ("nn.LSTM's", theirs)) if value is None]
            reason = None if mine is theirs else f"{' and '.join(missing)} is None"
            verdicts.append(Verdict(name, math.inf if reason else 0.0, 0.0, 0.0, reason))
        elif mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            reason = f"{mine.dtype}{list(mine.shape)}, nn.LSTM's {theirs.dtype}{list(theirs.shape)}"
            verdicts.append(Verdict(name, math.inf, 0.0, 0.0, reason))
        else:
            verdicts.append(_judge(name, mine, theirs, true, precision, unit))
    if extra := set(ours) - set(truth):
        verdicts.append(Verdict(", ".join(sorted(extra)), math.inf, 0.0, 0.0, "nn.LSTM has no such tensor"))
    return verdicts


def _judge(name: str, mine: Tensor, theirs: Tensor, true: Tensor, precision: torch.dtype, unit: float) -> Verdict:
    mine, theirs, true = (_wide(tensor) for tensor in (mine, theirs, true))
    if not _same_pattern(mine, theirs):
        return Verdict(name, math.inf, 0.0, 0.0, "NaN or Inf in other places than nn.LSTM")
    finite = theirs.isfinite() & true.isfinite()
    scale = _largest(true[finite])
    error, rival_error = _largest((mine - true)[finite]), _largest((theirs - true)[finite])
    if precision in (torch.float64, torch.complex128):
        bound = FLOAT64 * max(1.0, scale)
    else:
        bound = FACTOR * rival_error + ROUNDINGS * unit * scale
    reason = None if error <= bound else f"error {error:.2e} exceeds {bound:.2e}"
    return Verdict(name, error, rival_error, bound, reason)


def _rounded(truth: Observation, ours: Observation) -> Observation:
    """The true values in the dtypes that we gave."""
    return {
        name: None if true is None or (mine := ours.get(name)) is None else true.to(mine.dtype)
        for name, true in truth.items()
    }


def _wide(tensor: Tensor) -> Tensor:
    return tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _same_pattern(mine: Tensor, theirs: Tensor) -> bool:
    """Whether NaN, +Inf and -Inf stand in the same places."""
    infinite = theirs.isinf()
    return (
        torch.equal(mine.isnan(), theirs.isnan())
        and torch.equal(mine.isinf(), infinite)
        and torch.equal(mine[infinite], theirs[infinite])
    )


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
