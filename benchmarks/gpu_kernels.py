"""Which kernels torch.nn.LSTM and torchlstm.LSTM launch on a GPU, by dtype and shape.

Run on a GPU: `python -m benchmarks.gpu_kernels`.
"""

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from torchlstm import LSTM, use_engine

from .gpu_device import device_of, wait

_SHAPES = ((16, 64), (16, 160), (16, 512), (16, 1024), (1, 512))  # B and H = I
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STEPS = 64


def kernels(module: nn.Module, x: torch.Tensor, engine: AbstractContextManager[None]) -> list[str]:
    """Return names and counts of the kernels of a training step, the longest-running first; on a CPU, of operations."""
    gpu = x.device.type == "cuda"
    with engine:
        output, _ = module(x)
        output.sum().backward()
        wait(x.device)
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
            output, _ = module(x)
            output.sum().backward()
            wait(x.device)
    times = {
        event: event.self_device_time_total if gpu else event.self_cpu_time_total for event in found.key_averages()
    }
    events = sorted(times, key=lambda event: -times[event])
    return [f"{event.count:5} x {event.key[:100]}" for event in events if times[event] > 0]


def main() -> int:
    """Print a list for every dtype and shape."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_kernels", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="one tiny shape, in Triton's interpreter")
    arguments = parser.parse_args()
    device = device_of(parser, arguments.dry_run)
    dtypes, shapes, steps = (_DTYPES[:1], ((2, 4),), 2) if arguments.dry_run else (_DTYPES, _SHAPES, _STEPS)
    for dtype in dtypes:
        for batch, size in shapes:
            x = torch.randn(steps, batch, size, device=device, dtype=dtype, requires_grad=True)
            for kind, engine in ((nn.LSTM, ""), (LSTM, "cuda"), (LSTM, "reference")):
                module = kind(size, size, device=device, dtype=dtype)
                print(f"\n{kind.__module__.split('.')[0]} {engine} {dtype} T={steps} B={batch} I=H={size}")
                lines = kernels(module, x, use_engine(engine) if engine else nullcontext())
                print("\n".join(lines[:6]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
