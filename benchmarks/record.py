"""The record of a run: plain data, written to JSON as it is; README.md describes every field."""

import json
from pathlib import Path
from typing import Any, TypedDict

# In files of schema 1, `peak` is the share of torch.mm's speed, and there are no rows of another kind.
SCHEMA = 2
_READABLE = (1, 2)


class Timing(TypedDict):
    """A peer against ours in one mode; without a ratio, the note says why."""

    ms: float | None
    ours_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int
    calls: int
    note: str | None


class Mode(TypedDict):
    """Inference or training of one workload."""

    ours_ms: float
    gflops: float
    peak: float | None
    threads: int | None
    peers: dict[str, Timing]


class Memory(TypedDict):
    """Peak memory of a training step, above what was there before it."""

    nn_mb: float | None
    ours_mb: float | None
    note: str | None


class Row(TypedDict):
    """One workload; if its parity failed it has no figures."""

    workload: str
    group: str
    sizes: dict[str, Any]
    flops: dict[str, int]
    intensity: dict[str, float]
    engine: str
    outcome: str  # measured, red or refused
    parity: str
    modes: dict[str, Mode]
    memory: Memory | None


class ExtraRow(TypedDict):
    """A row of another kind: figures by column, or a note that says why there are none."""

    name: str
    group: str
    figures: dict[str, float | None]
    note: str | None


class Run(TypedDict):
    """One run of the suite."""

    schema: int
    environment: dict[str, Any]
    settings: dict[str, Any]
    left_out: dict[str, str]
    rows: list[Row]
    extras: list[ExtraRow]


def load(path: str | Path) -> Run:
    """A run from its file; raises ValueError if the file holds none."""
    try:
        run: Run = json.loads(Path(path).read_text(encoding="utf-8"))
        schema = run["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no benchmark run: {type(error).__name__}: {error}") from None
    if schema not in _READABLE:
        raise ValueError(f"{path} has schema {schema}, this program reads {' and '.join(map(str, _READABLE))}")
    return run if schema == SCHEMA else _from_first(run)


def _from_first(run: Run) -> Run:
    """A run of schema 1, with the fields it did not have as None."""
    run["environment"] |= {"isa": None, "limit_gflops": None}
    run["extras"] = []
    for row in run["rows"]:
        for mode in row["modes"].values():
            mode["threads"] = None
    return run


def dump(run: Run, path: str | Path) -> None:
    """Write a run to its file."""
    Path(path).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def slug(run: Run) -> str:
    """The name of a run's file: machine, threads and commit."""
    environment = run["environment"]
    where = str(environment["machine_slug"])
    threads = "" if run["settings"]["device"] == "cuda" else f"-{environment['threads']}t"
    return f"{where}{threads}-{environment['commit']}"
