"""How fast this machine can multiply: in registers, the limit of every product, and in a large torch.mm."""

import time
from collections.abc import Callable
from typing import Any

import torch

from torchlstm.engines.cpu.calls import load
from torchlstm.engines.cpu.engine import ISAS

# The kernel's number for pairs of AVX512-BF16; see kernel.h.
_PAIRS = 4

# Rounds per measurement: some milliseconds, so that the start of the threads does not count.
_ROUNDS = 1 << 20


def _best(run: Callable[[], float], seconds: float) -> float:
    """Return the GF/s of the fastest of at least three runs; each run returns its number of operations."""
    best, done, end = 0.0, 0, time.perf_counter() + seconds
    while done < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        operations = run()
        best, done = max(best, operations / (time.perf_counter() - start) / 1e9), done + 1
    return best


def register_limits(threads: int, quick: bool) -> dict[str, dict[str, float]] | None:
    """Return GF/s of multiply-adds in registers, by the machine's instruction sets and by dtype; None without kernel.

    bfloat16 is listed under AVX-512: one instruction makes the two products of a pair and their sum.
    """
    kernel, missing = load()
    if missing is not None:
        return None
    rounds, seconds = (_ROUNDS >> 8, 0.0) if quick else (_ROUNDS, 0.2)

    def rate(isa: int, element: int) -> float:
        return _best(lambda: kernel.peak(isa=isa, threads=threads, element=element, rounds=rounds), seconds)

    found = {
        name: {"float32": rate(isa, 4), "float64": rate(isa, 8)}
        for name, isa in ISAS.items()
        if name != "best" and kernel.isa(isa) == isa
    }
    if kernel.isa(_PAIRS) == _PAIRS:
        found["avx512"]["bfloat16"] = rate(_PAIRS, 4)
    return found


def product_speed(device: str, dtype: torch.dtype, quick: bool) -> float:
    """Return the GF/s of the fastest of many large matrix products of torch."""
    size = 256 if quick else 8192 if device == "cuda" else 2048
    a, b, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))

    def product() -> float:
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        return 2.0 * size**3

    return _best(product, 0.02 if quick else 2.0)


def peak_of(environment: dict[str, Any], device: str, dtype: str) -> float | None:
    """Return the GF/s that are a workload's 100 %: of the kernel's instruction set, on CUDA of torch's product.

    Half precision is float32 inside where there are no instructions for it.  Without a kernel it is torch's product.
    """
    products: dict[str, float] = environment["product_gflops"]
    limits: dict[str, dict[str, float]] | None = environment["limit_gflops"]
    if device == "cuda":
        return products.get(dtype)
    if limits is None or environment["isa"] is None:
        return products["float32"]
    used = limits[environment["isa"]]
    return used.get(dtype, used["float32"])


def threads_used() -> int | None:
    """Return how many threads the latest call of the CPU engine used; None where it does not tell."""
    from torchlstm.engines.cpu import engine

    latest = getattr(engine, "latest_threads", None)
    return None if latest is None else int(latest().used)
