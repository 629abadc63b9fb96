"""Features that nn.LSTM does not have, measured: training with `checkpoint_every`, and `LSTM.trace`.

python -m benchmarks.beyond [THREADS]
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchlstm import LSTM
from torchlstm.parity.timing import interleave

from .memory import peak_of

# T, B, I, H, D
LONG = ((20_000, 8, 64, 128, 1), (20_000, 8, 64, 128, 2), (20_000, 1, 64, 256, 1))
EVERY = (None, 45, 141, 450)  # about sqrt(T) / 3, sqrt(T) and 3 sqrt(T)
TRACED = ((128, 16, 128, 256, 1), (100, 32, 256, 512, 1), (100, 16, 128, 256, 2))


def _module(sizes: tuple[int, ...], every: int | None = None) -> tuple[LSTM, Tensor]:
    steps, batch, features, hidden, directions = sizes
    torch.manual_seed(0)
    module = LSTM(features, hidden, bidirectional=directions == 2, checkpoint_every=every)
    return module, torch.randn(steps, batch, features, requires_grad=True)


def _training(sizes: tuple[int, ...], every: int | None) -> Callable[[], Any]:
    module, x = _module(sizes, every)

    def step() -> tuple[Tensor, ...]:
        output, (h_n, c_n) = module(x)
        cotangents = [torch.ones_like(tensor) for tensor in (output, h_n, c_n)]
        return torch.autograd.grad([output, h_n, c_n], [x, *module.parameters()], cotangents)

    return step


def long_sequence(sizes: tuple[int, ...], every: int | None) -> tuple[float, float]:
    """Return the peak MB of the first training step, and the seconds of the fastest of three later steps."""
    _training((30, *sizes[1:]), every)()
    step = _training(sizes, every)
    peak, seconds = peak_of(step, "cpu"), []
    for _ in range(3):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return peak, min(seconds)


def trace_ratios(sizes: tuple[int, ...], seconds: float = 2.0) -> tuple[float, float]:
    """Return two ratios of a trace to a plain call: of a forward in training, and of a step with cotangents on all."""
    module, x = _module(sizes)

    def values(run: Callable[[Tensor], Any]) -> list[Tensor]:
        output, state, *layers = run(x)
        return [output, *state, *(value for layer in layers for each in layer for one in each for value in one)]

    def step(run: Callable[[Tensor], Any]) -> Callable[[], Any]:
        cotangents = [torch.randn_like(value) for value in values(run)]
        return lambda: torch.autograd.grad(values(run), [x, *module.parameters()], cotangents)

    forward = interleave(lambda: module.trace(x), lambda: module(x), seconds=seconds)
    training = interleave(step(module.trace), step(module), seconds=seconds)
    return forward.ratio, training.ratio


def main(arguments: list[str]) -> None:
    """Print both tables; every long sequence runs in a process of its own."""
    if len(arguments) == 3:
        torch.set_num_threads(int(arguments[0]))
        print(json.dumps(long_sequence(tuple(json.loads(arguments[1])), json.loads(arguments[2]))))
        return
    threads = arguments[0] if arguments else str(torch.get_num_threads())
    torch.set_num_threads(int(threads))
    print("| T, B, I, H, D | k | peak MB | training s |\n|---|---:|---:|---:|")
    for sizes in LONG:
        for every in EVERY:
            command = [sys.executable, "-m", "benchmarks.beyond", threads, json.dumps(sizes), json.dumps(every)]
            root = Path(__file__).parent.parent
            found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
            peak, seconds = json.loads(found)
            print(f"| {', '.join(map(str, sizes))} | {every or '-'} | {peak:.0f} | {seconds:.2f} |", flush=True)
    print("\n| T, B, I, H, D | trace / forward | training step on all of a trace / plain |\n|---|---:|---:|")
    for sizes in TRACED:
        forward, training = trace_ratios(sizes)
        print(f"| {', '.join(map(str, sizes))} | {forward:.2f} | {training:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
