"""Rows of another kind, whose figures are not a peer's time over ours; each group of them is a table of its own.

A new kind is a tuple of `Extra` in a program, listed in `selection.py`: `--workloads` chooses its rows, the JSON keeps
them, and the report shows them below the workloads.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .measure import Settings
from .record import ExtraRow
from .unfit import first_line

# Keys are columns, whose names say the unit; the rows of a group share columns, but need not have all of them.
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
    """Measure the row; one that fails has no figures, and a note that says why."""
    try:
        return {"name": extra.name, "group": extra.group, "figures": extra.measure(settings), "note": None}
    except Exception as error:  # one row's failure is not the end of the run
        return {"name": extra.name, "group": extra.group, "figures": {}, "note": first_line(error)}
