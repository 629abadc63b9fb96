"""Compiles a class's kernels into Triton's cache without running them, for the process that tries the class later."""

from .. import LSTM
from ..engines.cuda.launch import compiling
from .evidence import calls, case_of, inferred, only, products
from .wanted import Job

# A program does not depend on T, except that a single step is not run by a fused loop.
_STEPS = 3


def compile_all(job: Job) -> None:
    """Compile forward and backward of a class at all its sizes, for inference and training."""
    with products(job.kind), only(job.kind), compiling():
        for size in job.sizes:
            case = case_of(job.kind, size, _STEPS, size[0])
            next(calls(case, job.device, job.kind.trace))
            if not job.kind.trace:
                inferred(case, LSTM, case.dtype, job.device)
