"""Compiles what a class runs without running it: from Triton's cache the process that tries it then takes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from torch import Tensor

from .. import LSTM
from ..engines.cuda import launch as launching
from .evidence import calls, case_of, inferred, only, products
from .wanted import Job

# Steps are no part of a program, but those of which there is one are none of a fused loop.
_STEPS = 3


@contextmanager
def compiling() -> Iterator[None]:
    """Compile every kernel instead of launching it; what it would have computed is left as it is."""

    def compile_only(
        file: str,
        name: str,
        grid: tuple[int, ...],
        warps: int,
        tensors: Sequence[Tensor | None],
        numbers: Sequence[int],
        together: bool = False,
        stages: int | None = None,
        **constants: Any,
    ) -> None:
        kernel = getattr(import_module(f"..engines.cuda.kernels.{file}", __package__), name)
        options = {"num_warps": warps, "launch_cooperative_grid": together, **launching.OPTIONS}
        options |= {} if stages is None else {"num_stages": stages}
        if 0 not in grid:
            kernel.warmup(*tensors, *numbers, grid=grid, **constants, **options)

    launch = launching.launch
    launching.launch = compile_only
    try:
        yield
    finally:
        launching.launch = launch


def compile_all(job: Job) -> None:
    """Compile forward and backward of a class at all its sizes, for inference and training."""
    with products(job.kind), only(job.kind), compiling():
        for size in job.sizes:
            case = case_of(job.kind, size, _STEPS, size[0])
            next(calls(case, job.device, job.kind.trace))
            if not job.kind.trace:
                inferred(case, LSTM, case.dtype, job.device)
