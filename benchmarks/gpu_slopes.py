"""Microseconds per step and per call on a GPU: the slope and the intercept of the time over T.

Run on a GPU: `python -m benchmarks.gpu_slopes --json FILE`.  FILE holds one line of JSON per shape; times are measured
by CUDA events, the shortest of several calls.  Parity is not checked here: another step of `gpu_check.sh` does it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from torchlstm import LSTM, use_engine

from .gpu_device import device_of, wait

_SHAPES = tuple((size, batch) for size in (64, 128, 160, 512, 1024) for batch in (1, 16, 64))
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # float32 as torch has it: nn.LSTM may round to TF32
_STEPS = (256, 1024)
_CALLS = 4
# The module, and the engine that is forced, by name.
_WHO: dict[str, tuple[type[nn.Module], str | None]] = {
    "nn": (nn.LSTM, None),
    "cuda": (LSTM, "cuda"),
    "reference": (LSTM, "reference"),
}


def least_ms(call: Callable[[], Any], device: torch.device, calls: int) -> float:
    """Return the milliseconds of the fastest of several calls, after one that is not measured."""
    call()
    times = []
    for _ in range(calls):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            wait(device)
            times.append(float(start.elapsed_time(end)))
        else:
            begin = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - begin))
    return min(times)


def line(steps: tuple[int, int], times: tuple[float, float]) -> dict[str, float]:
    """Return microseconds per step and per call, from the milliseconds of a call at two values of T."""
    slope = (times[1] - times[0]) / (steps[1] - steps[0])
    return {"us_a_step": 1e3 * slope, "us_a_call": 1e3 * (times[0] - slope * steps[0])}


def shape(size: int, batch: int, dtype: torch.dtype, steps: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Time all three computations of one shape, I = H, in inference and in a training step."""
    row: dict[str, Any] = {"H": size, "B": batch, "dtype": str(dtype).removeprefix("torch.")}
    for name, (kind, engine) in _WHO.items():
        module = kind(size, size, device=device, dtype=dtype)
        times: dict[str, list[float]] = {"forward": [], "training": []}
        with use_engine(engine) if engine else nullcontext():
            for count in steps:
                x = torch.randn(count, batch, size, device=device, dtype=dtype, requires_grad=True)
                dy, wanted = torch.randn_like(x), [x, *module.parameters()]

                def forward(x: torch.Tensor = x, module: nn.Module = module) -> None:
                    with torch.no_grad():
                        module(x)

                def training(
                    x: torch.Tensor = x,
                    dy: torch.Tensor = dy,
                    wanted: list[torch.Tensor] = wanted,
                    module: nn.Module = module,
                ) -> None:
                    torch.autograd.grad(module(x)[0], wanted, dy)

                # The reference engine is limited by the host: its times hardly vary.
                calls = 2 if name == "reference" else _CALLS
                times["forward"].append(least_ms(forward, device, calls))
                times["training"].append(least_ms(training, device, calls))
        row[name] = {mode: line(steps, (found[0], found[1])) for mode, found in times.items()}
    return row


def main() -> int:
    """Print and write one line for every shape and dtype."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_slopes", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="a line for each shape")
    parser.add_argument("--dry-run", action="store_true", help="one tiny shape, in Triton's interpreter")
    arguments = parser.parse_args()
    device = device_of(parser, arguments.dry_run)
    dtypes, shapes, steps = list(_DTYPES), list(_SHAPES), _STEPS
    if arguments.dry_run:
        dtypes, shapes, steps = dtypes[:1], [(4, 2)], (2, 3)
    print("us a step, and of a call: forward, training")
    for dtype in dtypes:
        for size, batch in shapes:
            row = shape(size, batch, dtype, steps, device)
            figures = "   ".join(
                f"{name} " + ", ".join(f"{f['us_a_step']:.2f} + {f['us_a_call']:.0f}" for f in row[name].values())
                for name in _WHO
            )
            print(f"{row['dtype']:9} H={size:<5} B={batch:<4} {figures}", flush=True)
            if arguments.json:
                with open(arguments.json, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
