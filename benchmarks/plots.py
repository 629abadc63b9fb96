"""A run as pictures, PNG and SVG each: ratios by workload, time against T, B and H, and the roofline."""

from pathlib import Path
from typing import Any

import matplotlib

from .record import Row, Run
from .report import rows_of, threads
from .workloads import MODES, is_short

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Okabe and Ito's palette, which the colour-blind can tell apart.
_COLOURS = {"inference": "#0072B2", "training": "#E69F00"}
_RIVAL = "#555555"
_MARKERS = {"inference": "o", "training": "s"}
_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "font.size": 9.5,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "torchlstm",
}


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw what the run has figures for; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with pyplot.rc_context(_STYLE):
        for name, make in (("ratio", _ratios), ("short", _short), ("scaling", _scaling), ("roofline", _roofline)):
            figure = make(run)
            if figure is None:
                continue
            for kind in ("png", "svg"):
                files.append(folder / f"{name}.{kind}")
                figure.savefig(files[-1], dpi=150, metadata={"Date": None} if kind == "svg" else None)
            pyplot.close(figure)
    return files


def _subtitle(run: Run) -> str:
    environment, settings = run["environment"], run["settings"]
    quick = "QUICK RUN, figures say nothing; " if settings["quick"] else ""
    many = "" if settings["device"] == "cuda" else f", {threads(run)}"
    return f"{quick}{environment['machine']}{many}, torch {environment['torch']}, torchlstm {environment['commit']}"


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}"


def _ratios(run: Run) -> Figure | None:
    """The ratios of all workloads except short calls, which have a picture of their own."""
    return _bars(run, [row for row in rows_of(run) if not is_short(row["group"])])


def _short(run: Run) -> Figure | None:
    """The ratios of short calls."""
    return _bars(run, [row for row in rows_of(run) if is_short(row["group"])])


def _bars(run: Run, rows: list[Row]) -> Figure | None:
    """How many times faster than nn.LSTM, a pair of bars a workload."""
    rows = [
        row
        for row in rows
        if row["outcome"] == "measured" and any(mode["peers"]["nn"]["ratio"] for mode in row["modes"].values())
    ]
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(8.5, 1.9 + 0.36 * len(rows)), layout="constrained")
    lowest, highest = 0.8, 1.25
    for shift, name in zip((-0.2, 0.2), MODES, strict=True):
        for place, row in enumerate(rows):
            timing = row["modes"][name]["peers"]["nn"]
            ratio, low, high = timing["ratio"], timing["low"], timing["high"]
            if ratio is None or low is None or high is None:
                continue
            # Bars begin at 1, where neither is faster.
            axes.barh(place + shift, ratio - 1, 0.38, left=1, color=_COLOURS[name])
            axes.plot((low, high), (place + shift,) * 2, color="#222222", linewidth=1, marker="|", markersize=4)
            label = f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.3g}"
            end = (max(1.0, ratio, high), place + shift)
            axes.annotate(label, end, (5, 0), textcoords="offset points", va="center", fontsize=7.5)
            lowest, highest = min(lowest, low), max(highest, high)
    axes.axvline(1, color="#222222", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.95 * lowest, 1.25 * highest)
    axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(-8, 12)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_yticks(range(len(rows)), [row["workload"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times as fast as torch.nn, logarithmic (bar: median of pairs; whisker: p20 to p80)")
    bars = [Patch(color=_COLOURS[name], label=name) for name in MODES]
    figure.legend(handles=bars, loc="outside lower center", ncols=2)
    figure.suptitle(f"torchlstm against torch.nn.LSTM\n{_subtitle(run)}", fontsize=11)
    return figure


def _scaling(run: Run) -> Figure | None:
    """Time of a call against T, B and H, one axis each, nn.LSTM dashed."""
    sweeps: dict[str, list[Row]] = {letter: [] for letter in "TBH"}
    for row in run["rows"]:
        letter = row["group"].removeprefix("sweep-")
        if row["outcome"] == "measured" and letter in sweeps:
            sweeps[letter].append(row)
    if not any(sweeps.values()):
        return None
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    names = {"T": "steps T", "B": "batch B", "H": "input and hidden size I = H"}
    for axes, (letter, rows) in zip(panels, sweeps.items(), strict=True):
        rows.sort(key=lambda row: int(row["sizes"][letter]))
        for mode in MODES:
            points = [
                (row["sizes"][letter], timing["ms"], timing["ours_ms"])
                for row in rows
                if (timing := row["modes"][mode]["peers"]["nn"])["ms"] is not None
            ]
            if points:
                x, theirs, ours = zip(*points, strict=True)
                style: dict[str, Any] = {"color": _COLOURS[mode], "marker": _MARKERS[mode], "markersize": 5}
                axes.plot(x, theirs, "--", markerfacecolor="white", label=f"torch.nn, {mode}", **style)
                axes.plot(x, ours, "-", label=f"torchlstm, {mode}", **style)
        others = [f"{other}={rows[0]['sizes'][other]}" for other in "TBIH" if rows and other not in letter]
        if letter == "H":
            others = [other for other in others if not other.startswith("I=")]
        axes.set(xscale="log", yscale="log", xlabel=f"{names[letter]}   ({', '.join(others)})")
        axes.xaxis.set_major_locator(FixedLocator(sorted({row["sizes"][letter] for row in rows})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.grid()
    panels[0].set_ylabel("milliseconds a call")
    panels[0].legend(loc="upper left", fontsize=8)
    figure.suptitle(f"time of one call, float32\n{_subtitle(run)}", fontsize=11)
    return figure


def _peaks(run: Run) -> dict[str, float]:
    """The lines of the roofline by name, in GF/s."""
    environment = run["environment"]
    peaks = {f"torch.mm, {dtype}": speed for dtype, speed in environment["product_gflops"].items()}
    dtypes = {row["sizes"]["dtype"] for row in rows_of(run)}
    for dtype, speed in (environment["limit_gflops"] or {}).get(environment["isa"], {}).items():
        if dtype in dtypes:
            peaks[f"multiply-adds in registers, {environment['isa']}, {dtype}"] = speed
    return peaks


def _roofline(run: Run) -> Figure | None:
    """Achieved GF/s against arithmetic intensity, under the speed of multiply-adds in registers and of torch.mm."""
    rows = [row for row in rows_of(run) if row["outcome"] == "measured"]
    peaks = _peaks(run)
    if not rows:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 5.6), layout="constrained")
    for mode in MODES:
        intensity = [row["intensity"][mode] for row in rows]
        ours = [row["modes"][mode]["gflops"] for row in rows]
        theirs = [
            (at, row["flops"][mode] / timing["ms"] / 1e6)
            for at, row in zip(intensity, rows, strict=True)
            if (timing := row["modes"][mode]["peers"]["nn"])["ms"]
        ]
        if theirs:
            x, y = zip(*theirs, strict=True)
            axes.scatter(x, y, 26, facecolors="white", edgecolors=_COLOURS[mode], marker=_MARKERS[mode],
                         label=f"torch.nn, {mode}")  # fmt: skip
        axes.scatter(intensity, ours, 32, color=_COLOURS[mode], edgecolors="white", linewidths=0.6,
                     marker=_MARKERS[mode], label=f"torchlstm, {mode}")  # fmt: skip
    for name, peak in peaks.items():
        axes.axhline(peak, color=_RIVAL, linewidth=1.2)
        axes.annotate(f"{name}: {peak:.0f} GF/s", (0.01, peak), (0, 3),
                      xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8.5)  # fmt: skip
    axes.set(xscale="log", yscale="log", ylabel="GF/s achieved",
             xlabel="arithmetic intensity, FLOP per byte, recurrent weights read at every step")  # fmt: skip
    axes.set_ylim(top=2 * max(peaks.values()))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
    axes.grid()
    figure.legend(loc="outside lower center", ncols=4)
    figure.suptitle(f"how much of the machine is used\n{_subtitle(run)}", fontsize=11)
    return figure
