"""Compiles what a class runs without running it: from Triton's cache the process that tries it then takes it."""

from .. import LSTM
from ..engines.cuda.launch import compiling
from .evidence import calls, case_of, inferred, only, products
from .wanted import Job

# Steps are no part of a program, but those of which there is one are none of a fused loop.
_STEPS = 3


def compile_all(job: Job) -> None:
    """Compile forward and backward of a class at all its sizes, for inference and training."""
    with products(job.kind), only(job.kind), compiling():
        for size in job.sizes:
            case = case_of(job.kind, size, _STEPS, size[0])
            next(calls(case, job.device, job.kind.trace))
            if not job.kind.trace:
                inferred(case, LSTM, case.dtype, job.device)
