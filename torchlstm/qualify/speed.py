"""Times a step of ours, of `reference` and of torch.nn.LSTM in turns, by the GPU's events."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Clock = Callable[[Callable[[], Any]], float]  # seconds of one run

# The low percentile of reference's time over ours must be at least this; less is within the variation of GPU clocks.
GAIN = 1.05
LOW = 0.2  # the fraction of rounds below the low percentile


def by_events(run: Callable[[], Any]) -> float:
    """Seconds between two events on the current stream around a run."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def in_turns(runs: Mapping[str, Callable[[], Any]], clock: Clock, least: int, seconds: float) -> dict[str, list[float]]:
    """The seconds of each run in every round: at least `least` rounds, and for about `seconds`.

    Each runs once before, unmeasured.  Each round begins with another one, so that what slows the GPU slows all alike.
    """
    for run in runs.values():
        clock(run)
    names, times = list(runs), {name: list[float]() for name in runs}
    end = time.monotonic() + seconds
    while len(times[names[0]]) < least or time.monotonic() < end:
        turn = len(times[names[0]]) % len(names)
        for name in (*names[turn:], *names[:turn]):
            times[name].append(clock(runs[name]))
    return times


def low_ratio(slower: list[float], faster: list[float]) -> float:
    """The low percentile of slower / faster over the rounds."""
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    return ratios[int(LOW * len(ratios))]


def row(steps: int, training: Mapping[str, list[float]], inference: Mapping[str, list[float]]) -> dict[str, float]:
    """One T as a record has it: see `records.Measured.speed`; `low` is the worse of training and inference."""
    low = min(low_ratio(each["reference"], each["ours"]) for each in (training, inference))
    told = {name: statistics.median(times) / steps * 1e6 for name, times in training.items()}
    return {"steps": steps, **told, "low": low}


def least_of(rows: list[dict[str, float]]) -> int | None:
    """The least T from which on all measured T gain enough; None if the largest does not."""
    least = None
    for each in sorted(rows, key=lambda each: -each["steps"]):
        if each["low"] < GAIN:
            break
        least = int(each["steps"])
    return least
