"""The README's picture: typical workloads of one saved run in plain words, each as times as fast as nn.LSTM.

    python -m benchmarks.picture

It reads `benchmarks/results` and writes `docs/images/speed.svg`; nothing is measured.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from .record import Run, load
from .report import threads
from .workloads import MODES

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "amd-epyc-2t-3892caf38a.json"
PICTURE = _ROOT / "docs" / "images" / "speed.svg"

# Each workload in words: what it is, and its sizes.
WORDS = {
    "ragged-T200-B64-I128-H256": ("Ragged batch (PackedSequence)", "64 sequences of up to 200 steps"),
    "proj64-T100-B16-I128-H256": ("With proj_size=64", "16 sequences of 100 steps"),
    "T1-B1-I256-H256": ("A single step", "1 sequence, 256 units"),
    "T32-B1-I64-H64": ("A short sequence", "1 sequence of 32 steps, 64 units"),
    "cell-B32-H256": ("LSTMCell", "32 sequences, 256 units"),
    "T1000-B1-I128-H512": ("A long sequence", "1 sequence of 1,000 steps, 512 units"),
    "bi2-T100-B16-I128-H256": ("Two layers, bidirectional", "16 sequences of 100 steps"),
    "T128-B16-I128-H256": ("Dense batch", "16 sequences of 128 steps, 256 units"),
    "T20-B128-I1024-H1024": ("Large dense batch: a tie", "128 sequences of 20 steps, 1,024 units"),
}

# Okabe and Ito's blue and vermilion: the colour-blind can tell them apart, and both stand out on white.
_COLOURS = {"inference": "#0072B2", "training": "#D55E00"}
_INK, _PALE, _LINE, _CARD = "#1F2328", "#59636E", "#D1D9E0", "#FFFFFF"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "torchlstm",
}


def in_words(ratio: float) -> str:
    """A ratio with two digits that count."""
    places = 0 if ratio >= 9.95 else 1 if ratio >= 1 else 2
    return f"{ratio:.{places}f}\N{MULTIPLICATION SIGN}"


def ratios(run: Run) -> dict[str, dict[str, float]]:
    """Times as fast as nn.LSTM, by workload and mode; raises ValueError for a workload without a figure."""
    rows, found = {row["workload"]: row for row in run["rows"]}, {}
    for name in WORDS:
        if name not in rows or rows[name]["outcome"] != "measured":
            raise ValueError(f"the run has no figures of {name}")
        timings = {mode: rows[name]["modes"][mode]["peers"]["nn"]["ratio"] for mode in MODES}
        found[name] = {mode: ratio for mode, ratio in timings.items() if ratio is not None}
    return found


def draw(run: Run) -> Figure:
    """Draw the picture: a pair of bars a workload, from the line at 1 on, along a logarithmic axis."""
    found, environment = ratios(run), run["environment"]
    with pyplot.rc_context(_STYLE):
        figure = pyplot.figure(figsize=(8.6, 5.5))
        # A card of its own colour: the page behind it may be white or dark.
        figure.patch.set_alpha(0)
        rounded = "round,pad=0,rounding_size=0.012"
        card = FancyBboxPatch((0.012, 0.018), 0.976, 0.964, rounded, facecolor=_CARD, edgecolor=_LINE, zorder=-1)
        card.set_transform(figure.transFigure)
        figure.add_artist(card)
        axes = figure.add_axes((0.37, 0.12, 0.57, 0.70))
        axes.patch.set_alpha(0)
        for place, (name, (what, sizes)) in enumerate(WORDS.items()):
            for shift, (mode, ratio) in zip((-0.19, 0.19), found[name].items(), strict=True):
                (bar,) = axes.barh(place + shift, ratio - 1, 0.34, left=1, color=_COLOURS[mode])
                bar.set_gid(f"{mode}:{name}")
                axes.annotate(in_words(ratio), (max(1.0, ratio), place + shift), (4, 0), textcoords="offset points",
                              va="center", fontsize=9)  # fmt: skip
            side: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
            axes.annotate(what, (0, place), (-8, 1), va="bottom", fontweight="bold", **side)
            axes.annotate(sizes, (0, place), (-8, -1), va="top", fontsize=8.5, color=_PALE, **side)
        _axis(axes, len(WORDS), max(ratio for each in found.values() for ratio in each.values()))
        figure.text(
            0.04, 0.935, "torchlstm against torch.nn.LSTM on a CPU", fontsize=14, fontweight="bold", va="center"
        )
        figure.text(0.04, 0.885, "How many times as fast as nn.LSTM. Longer is faster.", color=_PALE, va="center")
        patches = [Patch(color=_COLOURS[mode], label=mode) for mode in MODES]
        figure.legend(handles=patches, loc="center right", bbox_to_anchor=(0.955, 0.91), ncols=2, frameon=False)
        where = f"{environment['machine']}, {threads(run)}, float32, torch {environment['torch'].split('+')[0]}"
        figure.text(0.04, 0.045, f"{where}, {environment['date'][:10]}; median of pairs of calls; logarithmic axis",
                    fontsize=8.5, color=_PALE, va="center")  # fmt: skip
    return figure


def _axis(axes: Any, rows: int, highest: float) -> None:
    """A logarithmic axis in powers of two, with a line at 1."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.92, 1.2 * highest)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(FixedLocator([2.0**power for power in range(math.ceil(math.log2(highest)) + 1)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "1 = nn.LSTM" if x == 1 else f"{x:g}"))
    axes.tick_params(axis="x", length=0, colors=_PALE, labelsize=9)
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.axvline(1, color=_INK, linewidth=1.4)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture; returns 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.picture", description="draw the README's picture of a saved run")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help=f"a saved run ({RESULTS.name})")
    parser.add_argument("--out", type=Path, default=PICTURE, metavar="FILE", help="SVG, or PNG by its ending")
    arguments = parser.parse_args(argv)
    figure = draw(load(arguments.results))
    with pyplot.rc_context(_STYLE):
        metadata = {"Date": None} if arguments.out.suffix == ".svg" else None
        figure.savefig(arguments.out, dpi=150, metadata=metadata)
    pyplot.close(figure)
    print(f"drawn: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
