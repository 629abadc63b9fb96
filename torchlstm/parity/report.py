"""Formats the results of parity runs as text."""

from collections.abc import Mapping, Sequence

from .digits import Ratio
from .run import Result


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with left-aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def line(result: Result, width: int) -> str:
    """Return one case as one line: outcome, name, and the tensor that came closest to its bound."""
    name = result.case.name.ljust(width)
    if result.skipped:
        return f"skip  {name}  {result.skipped}"
    worst = result.worst
    text = f"{'pass' if result.passed else 'FAIL'}  {name}"
    if worst is not None:
        text += f"  {worst.name}: error {worst.error:.1e}, nn {worst.rival_error:.1e}, {worst.used:.0%} of the bound"
        text += f"  ({worst.reason})" if worst.reason else ""
    return text + (f"  [{result.note}]" if result.note else "")


def digits_line(ratios: Mapping[str, Ratio]) -> str:
    """Return the ratios of rounding errors, torchlstm's over nn.LSTM's, as one line."""
    each = ", ".join(f"{name} {ratio.mean:.2f} / {ratio.high:.2f}" for name, ratio in ratios.items())
    return f"rounding error over nn.LSTM's (float32, geometric mean / 90th percentile of random shapes): {each}"
