"""Weights rounded to fewer bits, as a frozen LSTM keeps them, and back to the float matrices that they represent."""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# None: not rounded.
Format: TypeAlias = torch.dtype | None
FORMATS: tuple[Format, ...] = (None, torch.bfloat16, torch.float16, torch.int8)

# The largest integer of a symmetric int8 row: -128 is not used.
MOST = 127
# The last bits of a float32 that are zero in a scale: with 17 bits left, 127 times a scale is exact.
_SPARE = (1 << 7) - 1


class Rounded(NamedTuple):
    """A weight (rows, columns) in a format.

    values  (rows, columns) of the format's dtype; if the format is None, the weight itself
    scale   (rows,) float32, the scale of each row of int8; else None
    """

    values: Tensor
    scale: Tensor | None = None


def check_format(format: object) -> None:
    """Raise ValueError unless this is a format."""
    if format not in FORMATS:
        raise ValueError(f"Expected weights to be one of {', '.join(map(str, FORMATS))}, got {format!r}")


def rounded(weight: Tensor, format: Format, name: str = "weight") -> Rounded:
    """A weight (rows, columns) of float32 in a format, rounded to nearest, ties to even.

    A row of int8 has the scale max |w| / 127, rounded up to 17 bits.  So values times scale are exact in float32, and
    rounding them again gives the same.  A row of zeros has scale 0 and values 0.

    Raises ValueError, with the parameter's name, for a weight that the format cannot represent: NaN, infinity, or too
    large.  If the format is None, every weight is kept as it is.
    """
    weight = weight.detach()
    if format is None:
        return Rounded(weight)
    if format is not torch.int8:
        values = weight.to(format)
        _check_finite(values, weight, format, name)
        return Rounded(values)
    bits = (weight.abs().amax(1) / MOST).view(torch.int32)
    scale = ((bits + _SPARE) & ~_SPARE).view(torch.float32)
    _check_finite(scale * MOST, weight, format, name)
    divisor = torch.where(scale == 0, 1.0, scale)
    return Rounded((weight / divisor.unsqueeze(1)).round().to(torch.int8), scale)


def as_float(weight: Rounded) -> Tensor:
    """The float32 weight (rows, columns) that a rounded one represents, exactly."""
    values = weight.values.float()
    return values if weight.scale is None else values * weight.scale.unsqueeze(1)


def _check_finite(values: Tensor, weight: Tensor, format: torch.dtype, name: str) -> None:
    if bool(values.isfinite().all()):
        return
    most = torch.finfo(torch.float32 if format is torch.int8 else format).max
    got = float(weight.abs().max())
    raise ValueError(f"{name}: Expected finite weights of at most {most:.4g} for {format}, got one of {got:.4g}")
