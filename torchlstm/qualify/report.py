"""The results of `torchlstm qualify` as a table and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..engines.cuda.records import Measured
from ..parity.report import table
from .wanted import Job

_HEADER = ("class", "H", "B", "right", "us a step: ours", "reference", "nn.LSTM", "chosen")


def rows_of(jobs: Sequence[Job], classes: Mapping[str, Sequence[Measured]]) -> Iterator[tuple[Job, Measured]]:
    """The rows of a record for these jobs."""
    for job in jobs:
        for row in classes.get(str(job.kind), ()):
            if (row.hidden, row.batch) in job.sizes:
                yield job, row


def lines(jobs: Sequence[Job], classes: Mapping[str, Sequence[Measured]]) -> list[str]:
    """The table: a row for each class and size, with times of training steps at the largest T that was timed."""
    cells = []
    for job, row in rows_of(jobs, classes):
        last = row.speed[-1] if row.speed else {}
        times = [f"{last[name]:.1f}" if name in last else "-" for name in ("ours", "reference", "nn")]
        bad = any(each.reason for each in classes[str(job.kind)])
        cells.append((str(job.kind), str(row.hidden), str(row.batch), row.reason or "yes", *times, _chosen(row, bad)))
    return table(_HEADER, cells)


def _chosen(row: Measured, bad: bool) -> str:
    if row.reason:
        return "no"
    if bad:
        return "no: wrong at another size"
    if row.least is None:
        return "no: not faster than reference"
    return f"from T={row.least} on" if row.speed else "yes: speed is not asked here"


def summary(jobs: Sequence[Job], classes: Mapping[str, Sequence[Measured]]) -> tuple[int, int, int]:
    """The numbers of classes that qualify at any size, that were wrong, and that were right but not faster."""
    good = wrong = slow = 0
    for job in jobs:
        rows = classes.get(str(job.kind), ())
        if any(row.reason for row in rows):
            wrong += 1
        elif any(row.least is not None for row in rows):
            good += 1
        elif rows:
            slow += 1
    return good, wrong, slow


def plain(jobs: Sequence[Job], classes: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """The table as plain data."""
    return [{"class": str(job.kind), **row._asdict()} for job, row in rows_of(jobs, classes)]
