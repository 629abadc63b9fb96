"""A run: the environment, then every workload, one row each."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from torchlstm import use_engine
from torchlstm.command.progress import progress

from .environment import environment
from .extras import Extra, measure_extra
from .limit import peak_of, product_speed, register_limits
from .measure import Settings, measure
from .record import SCHEMA, ExtraRow, Row, Run
from .workloads import Workload


def start(settings: Settings, workloads: Sequence[Workload], left_out: dict[str, str]) -> Run:
    """Return a run without rows: where and how it will be measured."""
    dtypes = {torch.float32} | ({w.case.dtype for w in workloads} if settings.device == "cuda" else set())
    place = environment(settings.device)  # the load before, that is
    products = {
        str(dtype).removeprefix("torch."): product_speed(settings.device, dtype, settings.quick)
        for dtype in sorted(dtypes, key=str)
    }
    limits = register_limits(settings.threads, settings.quick) if settings.device == "cpu" else None
    return {
        "schema": SCHEMA,
        "environment": place | {"product_gflops": products, "limit_gflops": limits},
        "settings": asdict(settings) | {"peers": list(settings.peers)},
        "left_out": left_out,
        "rows": [],
        "extras": [],
    }


def measure_all(run: Run, settings: Settings, workloads: Sequence[Workload], show: Callable[[Row], None]) -> None:
    """Add every workload's row to the run, and show each as soon as it is measured."""
    with use_engine(settings.engine), warnings.catch_warnings():
        # nn.LSTM's own warnings say nothing new here.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported")
        for workload in progress(workloads, len(workloads), "benchmarks"):
            peak = peak_of(run["environment"], settings.device, workload.sizes()["dtype"])
            row = measure(workload, settings, peak)
            run["rows"].append(row)
            show(row)


def measure_extras(run: Run, settings: Settings, extras: Sequence[Extra]) -> list[ExtraRow]:
    """Add the rows of another kind."""
    with use_engine(settings.engine):
        run["extras"] += [measure_extra(extra, settings) for extra in progress(extras, len(extras), "benchmarks")]
    return run["extras"]
