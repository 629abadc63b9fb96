"""Times two computations in turns, so that what slows the machine slows both."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Pairs(NamedTuple):
    """Interleaved timings in seconds; the ratio is how many times faster the second is."""

    first: float  # median
    second: float
    ratio: float  # median of first / second over the pairs
    low: float  # its 20th and 80th percentile
    high: float
    pairs: int
    calls: int = 1  # in one measurement


def interleave(
    first: Callable[[], Any],
    second: Callable[[], Any],
    device: str = "cpu",
    seconds: float = 1.0,
    least: int = 5,
    shortest: float = 0.0,
) -> Pairs:
    """Time two computations in turns: at least `least` pairs, and for about `seconds`.

    Each runs once before, unmeasured.  Which of a pair runs first alternates.  A measurement repeats both equally
    often, until the faster takes at least `shortest` seconds, so that the time of reading the clock does not count.
    """
    calls = 1

    def measure(run: Callable[[], Any]) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        return (time.perf_counter() - start) / calls

    measure(first), measure(second)
    while shortest and calls * min(measure(first), measure(second)) < shortest:
        calls *= 2
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < least or time.perf_counter() < end:
        if len(pairs) % 2:
            later = measure(second)
            pairs.append((measure(first), later))
        else:
            pairs.append((measure(first), measure(second)))
    ratios = sorted(a / b for a, b in pairs)
    return Pairs(
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(ratios),
        ratios[len(ratios) // 5],
        ratios[len(ratios) - 1 - len(ratios) // 5],
        len(pairs),
        calls,
    )


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
