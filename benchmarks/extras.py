"""Rows of another kind than the times of one process against another's: each group of them is a table of its own.

A new kind is a program with a tuple of `Extra`, which `selection.py` lists: its rows are chosen by `--workloads`, kept
in the JSON and shown below the workloads.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .measure import Settings
from .record import ExtraRow
from .unfit import first_line

# By the name of a column, which says the unit; rows of a group share their columns, but need not have all.
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Extra:
    """One row.

    group    rows of a table
    measure  its figures; `Settings.seconds` is the time of one measurement
    devices  where it is measured
    """

    name: str
    group: str
    measure: Callable[[Settings], Figures]
    devices: tuple[str, ...] = ("cpu",)


def measure_extra(extra: Extra, settings: Settings) -> ExtraRow:
    """The row; one that fails has a note why, and no figures."""
    try:
        return {"name": extra.name, "group": extra.group, "figures": extra.measure(settings), "note": None}
    except Exception as error:  # one row's failure is not the end of the run
        return {"name": extra.name, "group": extra.group, "figures": {}, "note": first_line(error)}
