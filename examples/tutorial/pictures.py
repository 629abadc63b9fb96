"""The pictures of the tutorial; without matplotlib the programs run all the same and say that they draw none."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

possible = find_spec("matplotlib") is not None
FOLDER = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = "#4c78a8", "#f58518", "#54a24b", "#888888"


def save(figure: Any, name: str, dpi: int = 110) -> None:
    """Write a picture beside this file."""
    figure.savefig(FOLDER / name, dpi=dpi)
    print(f"picture: {name}")


def _canvas(width: float, height: float) -> Any:
    """A figure of so many inches, or None without matplotlib."""
    if not possible:
        print("no picture: matplotlib is not installed (pip install matplotlib)")
        return None
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.3}
    axes.annotate("", end, start, arrowprops=style)


def _box(axes: Any, x: float, y: float, text: str, colour: str, size: tuple[float, float] = (0.8, 0.6)) -> None:
    from matplotlib.patches import FancyBboxPatch

    width, height = size
    corner = (x - width / 2 + 0.08, y - height / 2 + 0.08)
    shape = FancyBboxPatch(corner, width - 0.16, height - 0.16, "round,pad=0.08", facecolor=colour, edgecolor="none")
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", color="white", fontsize=12)


def _dot(axes: Any, x: float, y: float, text: str) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((x, y), 0.23, facecolor="white", edgecolor="black", linewidth=1.3, zorder=3))
    axes.text(x, y - 0.01, text, ha="center", va="center", fontsize=13, zorder=4)


def cell(name: str) -> None:
    """The data flow of one cell."""
    if (figure := _canvas(7.6, 4.1)) is None:
        return
    axes = figure.subplots()
    axes.set(xlim=(-0.7, 8.6), ylim=(-0.3, 4.6), aspect="equal")
    axes.axis("off")
    gates = (("f", r"$\sigma$", BLUE, 1.6), ("i", r"$\sigma$", BLUE, 2.8), ("g", "tanh", ORANGE, 4.2))
    for gate, function, colour, x in (*gates, ("o", r"$\sigma$", BLUE, 5.4)):
        _arrow(axes, (x, 1.0), (x, 1.7))
        _box(axes, x, 2.0, function, colour)
        place = (x + 0.1, 2.6) if gate != "o" else (6.05, 2.2)
        axes.text(*place, f"${gate}$", fontsize=15, ha="left", va="center")
    axes.plot([0.0, 5.4], [1.0, 1.0], color="black", linewidth=1.3)
    _arrow(axes, (0.6, 0.2), (0.6, 1.0))
    axes.text(0.6, 0.0, "$x_t$", fontsize=15, ha="center", va="center")
    axes.text(-0.1, 1.0, "$h_{t-1}$", fontsize=15, ha="right", va="center")
    axes.text(-0.1, 4.2, "$c_{t-1}$", fontsize=15, ha="right", va="center")

    for start, end in ((0.0, 1.37), (1.83, 3.27), (3.73, 8.0)):
        _arrow(axes, (start, 4.2), (end, 4.2))
    _arrow(axes, (1.6, 2.3), (1.6, 3.97))
    axes.plot([2.8, 2.8], [2.3, 3.2], color="black", linewidth=1.3)
    _arrow(axes, (2.8, 3.2), (3.27, 3.2))
    axes.plot([4.2, 4.2], [2.3, 3.2], color="black", linewidth=1.3)
    _arrow(axes, (4.2, 3.2), (3.73, 3.2))
    _arrow(axes, (3.5, 3.43), (3.5, 3.97))
    for x, y, sign in ((1.6, 4.2, r"$\times$"), (3.5, 4.2, "$+$"), (3.5, 3.2, r"$\times$")):
        _dot(axes, x, y, sign)

    _arrow(axes, (6.8, 4.2), (6.8, 3.7))
    _box(axes, 6.8, 3.4, "tanh", GREY)
    _arrow(axes, (6.8, 3.1), (6.8, 2.23))
    _arrow(axes, (5.8, 2.0), (6.57, 2.0))
    axes.plot([6.8, 6.8], [1.77, 1.0], color="black", linewidth=1.3)
    _arrow(axes, (6.8, 1.0), (8.0, 1.0))
    _dot(axes, 6.8, 2.0, r"$\times$")
    axes.text(8.1, 4.2, "$c_t$", fontsize=15, va="center")
    axes.text(8.1, 1.0, "$h_t$", fontsize=15, va="center")
    save(figure, name)


def layer(name: str) -> None:
    """Two layers in two directions; three sequences as packed rows."""
    if (figure := _canvas(11, 4.9)) is None:
        return
    stack, rows = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _stack(stack)
    _rows(rows)
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.93))
    figure.text(0.28, 0.96, "two layers, two directions", ha="center", va="center", fontsize=12)
    figure.text(0.78, 0.96, "sequences of 5, 3 and 2 steps", ha="center", va="center", fontsize=12)
    save(figure, name)


def _stack(axes: Any) -> None:
    axes.set(xlim=(-1.9, 7.2), ylim=(-0.4, 6.4), aspect="equal")
    axes.axis("off")
    places = (0.0, 1.9, 3.8, 5.7)
    side, small = 0.42, (0.62, 0.5)
    for level, y in enumerate((1.2, 4.0)):
        for column, x in enumerate(places):
            for x_cell, y_cell in ((x - side, y), (x + side, y + 0.8)):
                _arrow(axes, (x, y - 0.95), (x_cell, y_cell - 0.26), GREY)
                axes.plot([x_cell, x], [y_cell + 0.26, y + 1.85], color=GREY, linewidth=1.3)
            axes.plot(x, y + 1.85, "o", color=GREY, markersize=5)
            if column:
                _arrow(axes, (places[column - 1] - side + 0.32, y), (x - side - 0.32, y), BLUE)
                _arrow(axes, (x + side - 0.32, y + 0.8), (places[column - 1] + side + 0.32, y + 0.8), ORANGE)
        for x in places:
            _box(axes, x - side, y, r"$\rightarrow$", BLUE, small)
            _box(axes, x + side, y + 0.8, r"$\leftarrow$", ORANGE, small)
        axes.text(-1.2, y + 0.4, f"layer {level}", ha="right", va="center", fontsize=11)
    for t, x in enumerate(places):
        axes.text(x, 0.0, f"$x_{t}$", ha="center", va="center", fontsize=14)
        axes.text(x, 6.2, f"$y_{t}$", ha="center", va="center", fontsize=14)


def _rows(axes: Any) -> None:
    from matplotlib.patches import Rectangle

    axes.set(xlim=(-2.9, 10.3), ylim=(-1.2, 8.0), aspect="equal")
    axes.axis("off")
    place = 0
    for t in range(5):
        there = 0
        for row, (sequence, length, colour) in enumerate((("b", 5, BLUE), ("c", 3, ORANGE), ("a", 2, GREEN))):
            if t >= length:
                continue
            there += 1
            for x, y in ((1.5 * t + 0.3, 6.3 - 1.1 * row), (float(place), 0.8)):
                axes.add_patch(Rectangle((x, y), 0.92, 0.92, facecolor=colour))
                axes.text(x + 0.46, y + 0.44, f"${sequence}_{t}$", ha="center", va="center", color="white", fontsize=12)
            place += 1
        axes.text(1.5 * t + 0.76, 3.4, str(there), ha="center", va="center", fontsize=12)
        axes.text(1.5 * t + 0.76, 7.6, f"step {t}", ha="center", va="center", fontsize=9, color=GREY)
        axes.plot([place - there + 0.05, place - 0.13], [0.55, 0.55], color="black", linewidth=1.3)
        axes.text(place - there / 2 - 0.04, 0.05, str(there), ha="center", va="center", fontsize=12)
    axes.text(-0.2, 3.4, "batch sizes", ha="right", va="center", fontsize=10)
    axes.text(-0.2, 1.26, "packed rows", ha="right", va="center", fontsize=10)
    axes.text(-0.2, 5.66, "longest\nfirst", ha="right", va="center", fontsize=10)


def losses(name: str, theirs: Sequence[float], ours: Sequence[float]) -> None:
    """Two loss curves, one above the other, and what is between them."""
    if (figure := _canvas(9, 3.4)) is None:
        return
    curves, gaps = figure.subplots(1, 2)
    curves.plot(theirs, color=BLUE, linewidth=4, alpha=0.4, label="nn.LSTM")
    curves.plot(ours, color="black", linewidth=0.9, label="torchlstm.LSTM")
    curves.set(xlabel="step", ylabel="loss (nats a character)", title="two loss curves")
    curves.legend(frameon=False)
    # A logarithm has no zero: what is equal to the last bit is drawn on the lowest line.
    apart = [max(abs(a - b), 1e-8) for a, b in zip(theirs, ours, strict=True)]
    gaps.semilogy(apart, ".", color=ORANGE, markersize=3)
    gaps.set(xlabel="step", ylabel="difference of the losses", title="what lies between them", ylim=(5e-9, 1e-2))
    gaps.set_yticks([10.0**power for power in range(-8, -1)])
    gaps.set_yticklabels(["0", *(f"$10^{{{power}}}$" for power in range(-7, -1))])
    for axes in (curves, gaps):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, name)


def units(name: str, text: str, curves: dict[str, Sequence[float]], shade: Sequence[float]) -> None:
    """What units say over a text, one panel each; shaded where `shade` is 1."""
    if (figure := _canvas(14, 2.3 * len(curves))) is None:
        return
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    places = range(len(text))
    for axes, colour, (title, values) in zip(panels, (BLUE, ORANGE, GREEN), curves.items(), strict=False):
        inside = [value > 0 for value in shade]
        margin = 0.05 * (max(values) - min(values))
        low, high = min(values) - margin, max(values) + margin
        axes.fill_between(places, low, high, where=inside, step="mid", color="0.9", linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.plot(places, values, ".-", color=colour, linewidth=1.2, markersize=4)
        axes.set(ylim=(low, high), xlim=(-0.5, len(text) - 0.5))
        axes.set_title(title, fontsize=11, loc="left")
        axes.tick_params(axis="x", length=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xticks(places, readable(text), fontfamily="monospace", fontsize=9)
    save(figure, name, dpi=90)


def readable(text: str) -> list[str]:
    """A label for each character."""
    return ["\u21b5" if character == "\n" else character for character in text]
