"""What a run measures: the workloads and other rows whose names or groups match the patterns."""

from . import busy, frozen, frozen_stream, overhead
from .extras import Extra
from .workloads import WORKLOADS, Workload, is_sweep, matching

EXTRAS: dict[str, Extra] = {
    extra.name: extra for module in (overhead, busy, frozen, frozen_stream) for extra in module.EXTRAS
}


def select(patterns: str | None, device: str) -> tuple[list[Workload], list[Extra]]:
    """As `workloads.matching`, for both kinds of rows; None means all except the sweeps."""
    if patterns is None:
        chosen: list[Workload | Extra] = [*WORKLOADS.values(), *EXTRAS.values()]
        chosen = [row for row in chosen if device in row.devices and not is_sweep(row.group)]
    else:
        chosen = matching(patterns, device, [*WORKLOADS.values(), *EXTRAS.values()])
    workloads = [row for row in chosen if isinstance(row, Workload)]
    return workloads, [row for row in chosen if isinstance(row, Extra)]
