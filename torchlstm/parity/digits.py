"""Measures our rounding error over nn.LSTM's, on random shapes."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import LSTM, LSTMCell, use_engine
from .cases import Case
from .observe import Observation, build, draw, observe

SHAPES = 40
MOST = 2e7  # multiplications of a forward


class Ratio(NamedTuple):
    """The error of torchlstm's tensor divided by nn.LSTM's, over all shapes; below 1 torchlstm's is smaller.

    Attributes:
        mean: The geometric mean.
        high: The 90th percentile.
    """

    mean: float
    high: float


def shapes() -> Iterator[Case]:
    """Cases in float32 with one layer, a quarter of them projected; the same at every call."""
    chance = random.Random(5)

    def size(least: float, most: float) -> int:
        return round(2 ** chance.uniform(least, most))

    for number in range(SHAPES):
        batch, input_size, hidden = size(0, 6), size(2, 9), size(3, 9)
        steps = min(size(0, 7), max(1, int(MOST / (4 * batch * hidden * (input_size + hidden)))))
        options = {"proj_size": max(1, hidden // 3)} if number % 4 == 3 else {}
        sizes = {"steps": steps, "batch": batch, "input_size": input_size, "hidden_size": hidden}
        yield Case(f"shape-{number}", dtype=torch.float32, options=options, **sizes)  # type: ignore[arg-type]


def digits(engine: str = "auto") -> dict[str, Ratio]:
    """Compare rounding errors: torchlstm's over nn.LSTM's, root mean square against nn.LSTM in float64, on the CPU.

    Takes a few seconds.

    Args:
        engine: The name of the engine that computes torchlstm's results, or "auto".

    Returns:
        The `Ratio` of every named result and gradient, over all shapes that have one.

    Raises:
        EngineRefusal: The engine does not run float32 on the CPU.

    Examples:
        >>> from torchlstm.parity import digits
        >>> digits()["output"].mean < 2
        True
    """
    ratios: dict[str, list[float]] = {}
    for case in shapes():

        def run(lstm: type[nn.Module], dtype: torch.dtype, case: Case = case) -> Observation:
            device = torch.device("cpu")
            return observe(build(case, lstm, LSTMCell, dtype), case, draw(case).to(device, dtype))

        with use_engine(engine):
            ours = run(LSTM, torch.float32)
        truth, theirs = run(nn.LSTM, torch.float64), run(nn.LSTM, torch.float32)
        for name, true in truth.items():
            error, rival_error = (_error(found[name], true) for found in (ours, theirs))
            if error and rival_error:
                ratios.setdefault(name, []).append(error / rival_error)
    return {name: _summary(sorted(found)) for name, found in ratios.items()}


def _error(found: Tensor | None, true: Tensor | None) -> float:
    assert found is not None  # every tensor of these cases has a gradient
    assert true is not None
    return (found.double() - true).square().mean().sqrt().item()


def _summary(ratios: list[float]) -> Ratio:
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    return Ratio(mean, ratios[math.ceil(0.9 * len(ratios)) - 1])
