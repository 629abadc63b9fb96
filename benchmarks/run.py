"""A run: the environment, then every workload, one row each."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from torchlstm import use_engine
from torchlstm.command.progress import progress

from .environment import environment, product_peak
from .measure import Settings, measure
from .record import SCHEMA, Row, Run
from .workloads import Workload


def start(settings: Settings, workloads: Sequence[Workload], left_out: dict[str, str]) -> Run:
    """A run without rows: where and how it will be measured."""
    dtypes = {torch.float32} | ({w.case.dtype for w in workloads} if settings.device == "cuda" else set())
    place = environment(settings.device)  # the load before, that is
    peaks = {
        str(dtype).removeprefix("torch."): product_peak(settings.device, dtype, settings.quick)
        for dtype in sorted(dtypes, key=str)
    }
    return {
        "schema": SCHEMA,
        "environment": place | {"product_gflops": peaks},
        "settings": asdict(settings) | {"peers": list(settings.peers)},
        "left_out": left_out,
        "rows": [],
    }


def measure_all(run: Run, settings: Settings, workloads: Sequence[Workload], show: Callable[[Row], None]) -> None:
    """Add every workload's row to the run, showing each as soon as it is there."""
    peaks: dict[str, float] = run["environment"]["product_gflops"]
    with use_engine(settings.engine), warnings.catch_warnings():
        # What nn.LSTM has to say of itself is known.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported")
        for workload in progress(workloads, len(workloads), "benchmarks"):
            row = measure(workload, settings, peaks)
            run["rows"].append(row)
            show(row)
