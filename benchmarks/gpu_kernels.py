"""Which kernels torch.nn.LSTM and torchlstm.LSTM launch on a GPU, by dtype and shape: what is it that is compared?

Run on a GPU: `python -m benchmarks.gpu_kernels`.
"""

import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from torchlstm import LSTM, use_engine

_SHAPES = ((16, 64), (16, 160), (16, 512), (16, 1024), (1, 512))  # B and H = I
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STEPS = 64


def kernels(module: nn.Module, x: torch.Tensor, engine: AbstractContextManager[None]) -> list[str]:
    """Names and counts of the kernels of a training step, the longest-running first."""
    with engine:
        output, _ = module(x)
        output.sum().backward()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            output, _ = module(x)
            output.sum().backward()
            torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    return [f"{event.count:5} x {event.key[:100]}" for event in events if event.self_device_time_total > 0]


def main() -> int:
    """Print a list for every dtype and shape."""
    if not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} sees none", file=sys.stderr)
        return 2
    for dtype in _DTYPES:
        for batch, size in _SHAPES:
            x = torch.randn(_STEPS, batch, size, device="cuda", dtype=dtype, requires_grad=True)
            for kind, engine in ((nn.LSTM, nullcontext()), (LSTM, use_engine("cuda"))):
                module = kind(size, size, device="cuda", dtype=dtype)
                print(f"\n{kind.__module__.split('.')[0]} {dtype} T={_STEPS} B={batch} I=H={size}")
                print("\n".join(kernels(module, x, engine)[:6]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
