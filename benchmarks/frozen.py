"""Times of frozen LSTMs against the module before freezing, torch.ao and ONNX Runtime, and the bounds they must meet.

    python -m benchmarks.frozen --threads 1
    python -m benchmarks.frozen --only 'frozen-int8-*' --seconds 0.1

A rival and ours take turns in one process; a bound is over the rows that it names.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from torchlstm.command.progress import progress
from torchlstm.parity import Case
from torchlstm.parity.timing import Pairs, interleave

from .environment import environment
from .extras import Extra, Figures, measure_extra
from .measure import SHORTEST, Settings, apart
from .record import ExtraRow
from .report import aligned, extras_text, geometric_mean
from .rivals import RIVALS, Rival, Subject, check, ours, truth_of
from .workloads import Workload

# Seconds for one rival on one row: a run has some 190 of them.
_SECONDS = 0.3
_QUICK_SECONDS = 0.002

# T, B, H; I = H.
Sizes = tuple[int, int, int]
_SIZES = (128, 256, 512, 1024)
FEW = tuple((steps, 1, hidden) for hidden in (256, 512) for steps in (1, 2, 3, 4, 8, 16))
SINGLE = tuple((steps, 1, hidden) for steps in (1, 100) for hidden in (64, *_SIZES))
ONE = tuple((steps, 1, hidden) for steps in (1, 100) for hidden in _SIZES)
SIXTEEN = tuple((steps, 16, hidden) for steps in (1, 100) for hidden in _SIZES)

_ROWS: dict[str, tuple[Sizes, ...]] = {
    "as-is": tuple(dict.fromkeys((*FEW, *SINGLE))),
    "bfloat16": ONE,
    "float16": ONE,
    "int8": (*ONE, *SIXTEEN),
}
_RIVALS = {
    "as-is": ("nn", "unfrozen", "ort"),
    "bfloat16": ("nn", "unfrozen", "ao-float16"),
    "float16": ("nn", "unfrozen", "ao-float16"),
    "int8": ("nn", "unfrozen", "ao-qint8", "ort-int8"),
}


@dataclass(frozen=True)
class Bound:
    """What the ratios of a rival's time to ours must reach: their geometric mean, and the lowest of them."""

    weights: str
    rival: str
    sizes: tuple[Sizes, ...]
    of: str
    mean: float | None
    least: float | None

    def rows(self) -> list[str]:
        """The names of the rows it covers."""
        return [_name(self.weights, sizes) for sizes in self.sizes]


_LONG = "T 1, 100; B 1; H 128-1024"
BOUNDS = (
    Bound("as-is", "unfrozen", FEW, "T 1-16; B 1; H 256, 512", 1.5, 1.0),
    Bound("as-is", "ort", SINGLE, "T 1, 100; B 1; H 64-1024", None, 1.1),
    Bound("bfloat16", "ao-float16", ONE, _LONG, 1.3, 1.0),
    Bound("float16", "ao-float16", ONE, _LONG, 1.3, 1.0),
    Bound("int8", "ao-qint8", (*ONE, *SIXTEEN), _LONG.replace("B 1", "B 1, 16"), 1.5, 1.0),
    Bound("int8", "ort-int8", (*ONE, *SIXTEEN), _LONG.replace("B 1", "B 1, 16"), 1.2, None),
)


def _name(weights: str, sizes: Sizes) -> str:
    return "frozen-{}-T{}-B{}-H{}".format(weights, *sizes)


def workload(sizes: Sizes, quick: bool = False) -> Workload:
    """An LSTM of one layer; a single step is given the states of the call before, as in a stream."""
    steps, batch, hidden = sizes
    case = Case("T{}-B{}-H{}".format(*sizes), steps=steps, batch=batch, input_size=hidden, hidden_size=hidden,
                dtype=torch.float32, hx="given" if steps == 1 else "none")  # fmt: skip
    found = Workload(case.name, "frozen", case)
    return found.shrunk() if quick else found


def _pairs(rival: Rival, found: Workload, mine: Subject, settings: Settings) -> Pairs:
    """Time the rival's calls in turns with ours, after checking its results."""
    inputs, truth = found.inputs(), truth_of(found, found.inputs())
    theirs = rival.prepare(found, inputs)
    check(rival.name, rival.bits, theirs.results, truth)
    if rival.spins and settings.threads > 1:
        del theirs
        return apart(lambda: rival.prepare(found, inputs).call, mine.call, settings)
    return interleave(theirs.call, mine.call, settings.device, settings.seconds, shortest=SHORTEST)


def measure(weights: str, sizes: Sizes, settings: Settings) -> Figures:
    """Return the microseconds of a call, ours and each rival's, and the ratios; a missing rival has none."""
    found = workload(sizes, settings.quick)
    inputs = found.inputs()
    mine = ours(found, inputs, weights)
    check("ours", weights, mine.results, truth_of(found, inputs))
    figures: Figures = {"ours us": None}
    with torch.no_grad():
        for name in _RIVALS[weights]:
            pairs = _pairs(RIVALS[name], found, mine, settings) if RIVALS[name].is_here() else None
            figures["ours us"] = figures["ours us"] or (1e6 * pairs.second if pairs else None)
            figures[f"{name} us"] = 1e6 * pairs.first if pairs else None
            figures[f"{name}/ours"] = pairs.ratio if pairs else None
    return figures


def _row(weights: str, sizes: Sizes) -> Extra:
    def shorter(settings: Settings) -> Figures:
        seconds = min(settings.seconds, _SECONDS)
        return measure(weights, sizes, Settings(threads=settings.threads, seconds=seconds, quick=settings.quick))

    return Extra(_name(weights, sizes), f"frozen-{weights}", shorter)


EXTRAS = tuple(_row(weights, sizes) for weights, of in _ROWS.items() for sizes in of)


def judged(rows: Sequence[ExtraRow]) -> Iterator[dict[str, Any]]:
    """Yield each bound with its ratios and whether it holds, None where no row has a figure."""
    found = {row["name"]: row["figures"] for row in rows}
    for bound in BOUNDS:
        column = f"{bound.rival}/ours"
        ratios = {name: ratio for name in bound.rows() if (ratio := found.get(name, {}).get(column)) is not None}
        least = min(ratios, key=ratios.__getitem__, default=None)
        mean = geometric_mean(list(ratios.values())) if ratios else None
        holds = None
        if mean is not None and least is not None:
            holds = mean >= (bound.mean or 0.0) and ratios[least] >= (bound.least or 0.0)
        yield {
            "weights": bound.weights, "ratio": column, "of": bound.of, "rows": len(ratios), "asked": len(bound.sizes),
            "mean": mean, "least": ratios[least] if least else None, "least_row": least,
            "mean_bound": bound.mean, "least_bound": bound.least, "holds": holds,
            "below": {n: r for n, r in ratios.items() if bound.least is not None and r < bound.least},
        }  # fmt: skip


def bounds_table(rows: Sequence[ExtraRow]) -> list[list[str]]:
    """The bounds as cells, the names of the columns first."""
    cells = [["weights", "ratio", "of", "rows", "mean", "bound", "least", "bound", "least of", "holds"]]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    for each in judged(rows):
        verdict = {None: "-", True: "yes", False: "NO"}[each["holds"]]
        count = f"{each['rows']} of {each['asked']}" if each["rows"] < each["asked"] else f"{each['rows']}"
        cells.append([each["weights"], each["ratio"], each["of"], count, shown(each["mean"]),
                      shown(each["mean_bound"]), shown(each["least"]), shown(each["least_bound"]),
                      each["least_row"] or "-", verdict])  # fmt: skip
    return cells


def title(place: dict[str, Any]) -> str:
    """Say in one line what was measured where."""
    changes = ", with changes" if place["dirty"] else ""
    isa = place["isa"] or "no kernel"
    return (f"torchlstm {place['torchlstm']} ({place['commit']}{changes}), torch {place['torch']}, "
            f"{place['machine']}, kernel {isa}, threads: {place['threads']}, {place['date'][:10]}")  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Measure and print the rows and the bounds; returns 1 if a bound does not hold or nothing was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="*", help="rows whose names match")
    parser.add_argument("--threads", type=int, metavar="N", default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, metavar="S", help=f"of each rival on each row (default: {_SECONDS})")
    parser.add_argument("--quick", action="store_true", help="shrunk sizes: does it run?")
    parser.add_argument("--save", metavar="FILE", help="write the figures here, in JSON")
    options = parser.parse_args(given)
    chosen = [extra for extra in EXTRAS if fnmatch(extra.name, options.only)]
    if not chosen:
        parser.error(f"no row matches {options.only!r}")
    torch.set_num_threads(options.threads)
    seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS)
    settings = Settings(threads=options.threads, seconds=seconds, quick=options.quick)
    place = environment("cpu")
    print(title(place) + ("; QUICK: the figures say nothing" if options.quick else ""), flush=True)
    rows: list[ExtraRow] = []
    for extra in progress(chosen, len(chosen), "frozen"):
        rows.append(measure_extra(extra, settings))
        if options.save:  # what is there, should the rest be cut off
            record = {"environment": place, "settings": vars(options), "rows": rows, "bounds": list(judged(rows))}
            Path(options.save).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(extras_text(rows)))
    print("\n".join(["", *aligned(bounds_table(rows))]))
    if not any(row["figures"] for row in rows):
        return 1
    return 1 if any(each["holds"] is False for each in judged(rows)) and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
