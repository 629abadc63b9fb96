"""How long a step takes: ours, `reference` and torch.nn.LSTM in turns, timed by a GPU's own events."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Clock = Callable[[Callable[[], Any]], float]  # seconds of one run

# The least that a low percentile of reference's time over ours has to be: less is within what clocks of GPUs vary by.
GAIN = 1.05
LOW = 0.2  # of the rounds are below the low percentile


def by_events(run: Callable[[], Any]) -> float:
    """Seconds between two events on the current stream around a run."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def in_turns(runs: Mapping[str, Callable[[], Any]], clock: Clock, least: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each run in every round: at least so many rounds, and for about so long.

    Each runs once before, unmeasured; each round begins with another one, so that whatever slows the GPU slows all.
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
    """The low percentile of how many times faster the second was, round by round."""
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    return ratios[int(LOW * len(ratios))]


def row(steps: int, training: Mapping[str, list[float]], inference: Mapping[str, list[float]]) -> dict[str, float]:
    """One number of steps as a record has it: see `records.Measured.speed`; both calls have to gain."""
    low = min(low_ratio(each["reference"], each["ours"]) for each in (training, inference))
    told = {name: statistics.median(times) / steps * 1e6 for name, times in training.items()}
    return {"steps": steps, **told, "low": low}


def least_of(rows: list[dict[str, float]]) -> int | None:
    """From how many steps on all that were measured gain enough; None: not even the most do."""
    least = None
    for each in sorted(rows, key=lambda each: -each["steps"]):
        if each["low"] < GAIN:
            break
        least = int(each["steps"])
    return least
