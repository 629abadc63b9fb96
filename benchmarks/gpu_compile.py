"""Compiles the CUDA engine's kernels into Triton's cache, in many processes at once, before anything is timed.

Run on a GPU: `python -m benchmarks.gpu_compile`.  It prints one line per module: how long its kernels took.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import NamedTuple

import torch

from torchlstm import LSTM, EngineRefusal, LSTMCell, use_engine
from torchlstm.engines.cuda.launch import compiling
from torchlstm.parity import CASES
from torchlstm.parity.observe import build, draw, observe

from .calls import call_of, module_of
from .gpu_device import device_of
from .gpu_stress import cases as stress_cases
from .workloads import MODES, Workload, select

# Triton's compiler uses one thread and some 200 MB; each process also has a CUDA context of half a gigabyte.
_MOST = 16


class Compiled(NamedTuple):
    """The result for one module: its seconds, and its error in one line, if any."""

    name: str
    seconds: float
    error: str | None


def modules(dry_run: bool) -> list[Workload]:
    """Return everything that is called later: parity table, stress test, workloads; the slowest to compile first.

    Cases of parity and stress have no group.
    """
    if dry_run:
        return [Workload(name, "", CASES[name]) for name in ("cell-float32",)]
    table = [Workload(case.name, "", case) for case in CASES.values() if not case.dtype.is_complex]
    table += [Workload(case.name, "", case) for small in (False, True) for case in stress_cases(small)]
    table += select(None, "cuda")
    # Other values of T and B hardly compile anything new: a kernel is compiled for H, tiles of B, dtype and form.
    short = [replace(each, case=replace(each.case, steps=min(each.case.steps, 4))) for each in table]
    return sorted(short, key=lambda each: -each.case.hidden_size)


def _begin() -> None:
    torch.set_num_threads(1)


def compile_one(workload: Workload) -> Compiled:
    """Call a module in inference and in training, to compile what it would launch; the results are garbage."""
    device, start, error = device_of(), time.perf_counter(), None
    try:
        case = workload.case
        inputs = (workload.inputs() if workload.group else draw(case)).to(device, case.dtype)
        with use_engine("cuda"), compiling():
            if not workload.group:
                observe(build(case, LSTM, LSTMCell, case.dtype).to(device), case, inputs)
            for mode in MODES if workload.group else ():
                with torch.set_grad_enabled(mode == "training"):
                    call_of(mode, module_of(workload, True, str(device)), inputs)()
    except EngineRefusal:
        pass
    except Exception as problem:  # one module's failure is its own; the steps that follow will show it again
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return Compiled(workload.name, time.perf_counter() - start, error)


def compile_all(workloads: Sequence[Workload], processes: int) -> Iterator[Compiled]:
    """Compile all modules; yield each result as soon as it is known."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        for future in as_completed([pool.submit(compile_one, workload) for workload in workloads]):
            yield future.result()


def main() -> int:
    """Compile everything; returns 1 if a module failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_compile", description=__doc__)
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, _MOST))
    parser.add_argument("--dry-run", action="store_true", help="one small module, in Triton's interpreter")
    arguments = parser.parse_args()
    device_of(parser, arguments.dry_run)
    start, failed = time.perf_counter(), 0
    for done in compile_all(modules(arguments.dry_run), 1 if arguments.dry_run else arguments.processes):
        failed += done.error is not None
        print(f"{done.name:44} {done.seconds:7.2f} s  {done.error or ''}".rstrip(), flush=True)
    print(f"{failed} failed; {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
