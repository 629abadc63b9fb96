"""A run as text: the table for the terminal, the same as Markdown, and the lines below both."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .peers import PEERS
from .record import ExtraRow, Mode, Row, Run
from .workloads import MODES, WORKLOADS, is_averaged, is_sweep

START, END = "<!-- table -->", "<!-- end table -->"

# Below this ratio ours is slower; between it and 1 lies the difference of two runs of the same program.
_TIE = 0.97

_NAME_WIDTH = max(len(name) for name in WORKLOADS if not is_sweep(WORKLOADS[name].group))


class Table:
    """The rows of one run as cells; notes are numbered in order of appearance and printed below the table."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.notes: list[str] = []
        self.columns: list[tuple[str, int]] = [("workload", _NAME_WIDTH), ("engine", 9)]
        for mode in MODES:
            self.columns += [(f"{mode} ms", 12), ("nn/ours (p20-p80)", 18), ("peak", 5)]
        self.columns += [("MB", 6), ("nn MB", 6)]
        self.others = [(peer, mode) for peer, mode in _columns(run) if peer != "nn"]
        self.columns += [(f"{peer}/ours {mode}", 18) for peer, mode in self.others]

    def cells(self, row: Row) -> list[str]:
        """A row's cells, one per column; a row without figures says why in the second cell."""
        if row["outcome"] != "measured":
            what = "PARITY FAILS" if row["outcome"] == "red" else "refused"
            return [row["workload"], f"{what}: {row['parity']}"] + [""] * (len(self.columns) - 2)
        found = [row["workload"], row["engine"]]
        for name in MODES:
            mode = row["modes"][name]
            peak = "" if mode["peak"] is None else f"{mode['peak']:.0%}"
            found += [number(mode["ours_ms"]), self._ratio(mode, "nn"), peak]
        memory = row["memory"]
        if memory is None:
            found += ["", ""]
        else:
            mark = self._mark(f"memory: {memory['note']}") if memory["note"] else ""
            found += [number(memory["ours_mb"]) or mark, number(memory["nn_mb"]) or mark]
        return found + [self._ratio(row["modes"][mode], peer) for peer, mode in self.others]

    def _ratio(self, mode: Mode, peer: str) -> str:
        timing = mode["peers"][peer]
        mark = self._mark(timing["note"]) if timing["note"] else ""
        if timing["ratio"] is None:
            return f"- {mark}".rstrip()
        return f"{timing['ratio']:.2f} ({timing['low']:.2f}-{timing['high']:.2f}) {mark}".rstrip()

    def _mark(self, note: str) -> str:
        if note not in self.notes:
            self.notes.append(note)
        return f"[{self.notes.index(note) + 1}]"

    def title(self) -> list[str]:
        """What was measured where."""
        environment, settings = self.run["environment"], self.run["settings"]
        dirty = ", with changes" if environment["dirty"] else ""
        isa = f", kernel {environment['isa']}" if environment["isa"] and settings["device"] == "cpu" else ""
        lines = [
            f"torchlstm {environment['torchlstm']} ({environment['commit']}{dirty}), engine {settings['engine']}, "
            f"against torch {environment['torch']}",
            f"{environment['machine']}{isa}, {threads(self.run)}, {environment['date'][:10]}",
            peak_in_words(self.run),
        ]
        if settings["quick"]:
            lines.append("QUICK: shrunk workloads, to see that it runs; the figures say nothing")
        return lines

    def header(self) -> str:
        """The names of the columns, for the terminal."""
        return self._pad([name for name, _ in self.columns])

    def line(self, row: Row) -> str:
        """A row, for the terminal."""
        cells = self.cells(row)
        if row["outcome"] != "measured":
            return f"{cells[0]:<{_NAME_WIDTH}}  {cells[1]}"
        return self._pad(cells)

    def _pad(self, cells: list[str]) -> str:
        wide = [cell.ljust(max(len(name), width)) for cell, (name, width) in zip(cells, self.columns, strict=True)]
        return "  ".join(wide).rstrip()

    def below(self) -> list[str]:
        """Means, workloads where ours is slower, peers left out, and the notes."""
        lines = list(_means(self.run))
        slow = [
            f"{row['workload']} {name} {timing['ratio']:.2f}"
            for row in rows_of(self.run)
            for name, mode in row["modes"].items()
            if (timing := mode["peers"]["nn"])["ratio"] is not None and timing["ratio"] < _TIE
        ]
        lines.append(f"slower than nn.LSTM (ratio below {_TIE}): {', '.join(slow) or 'none'}")
        lines += _fewer_threads(self.run)
        if points := len(self.run["rows"]) - len(rows_of(self.run)):
            lines.append(f"and {points} points of the sweeps against T, B and H, which the plots show")
        failed = [row["workload"] for row in self.run["rows"] if row["outcome"] == "red"]
        if failed:
            lines.append(f"PARITY FAILS, and so no figures: {', '.join(failed)}")
        lines += [f"left out: {peer}: {reason}" for peer, reason in self.run["left_out"].items()]
        return lines + [f"[{index}] {note}" for index, note in enumerate(self.notes, 1)]


def _columns(run: Run) -> list[tuple[str, str]]:
    """The peers of a run, each with the modes it is measured in."""
    return [(peer, mode) for peer in run["settings"]["peers"] for mode in PEERS[peer].modes]


def rows_of(run: Run) -> list[Row]:
    """The rows of the table: all except the points of the sweeps, which are for the plots."""
    return [row for row in run["rows"] if not is_sweep(row["group"])]


def peak_in_words(run: Run) -> str:
    """Say what the shares of the peak are relative to, and the speeds."""
    environment = run["environment"]
    products = _speeds(environment["product_gflops"])
    limits: dict[str, dict[str, float]] | None = environment["limit_gflops"]
    if limits is None:
        return f"peak: share of a large torch.mm, GF/s: {products}"
    others = [f"{isa} {_speeds(limits[isa])}" for isa in reversed(limits) if isa != environment["isa"]]
    used = f"{environment['isa']} {_speeds(limits[environment['isa']])}"
    return f"peak: share of multiply-adds in registers, GF/s: {used} ({'; '.join([*others, f'torch.mm {products}'])})"


def _speeds(by_dtype: dict[str, float]) -> str:
    return ", ".join(f"{dtype} {speed:.0f}" for dtype, speed in by_dtype.items())


def threads(run: Run) -> str:
    """How many threads a run had, in words."""
    count: int = run["environment"]["threads"]
    return f"{count} thread" + "s" * (count != 1)


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(places, 5)}f}"


def geometric_mean(values: list[float]) -> float:
    """The geometric mean of ratios."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _means(run: Run) -> Iterator[str]:
    """For each group, the geometric mean of its ratios and the lowest of them."""
    groups = dict.fromkeys(row["group"] for row in rows_of(run) if is_averaged(row["group"]))
    for group in groups:
        rows = [row for row in rows_of(run) if row["group"] == group]
        parts = []
        for peer, name in _columns(run):
            measured = [row for row in rows if row["outcome"] == "measured"]
            ratios = {
                row["workload"]: ratio
                for row in measured
                if (ratio := row["modes"][name]["peers"][peer]["ratio"]) is not None
            }
            if ratios:
                of = "" if len(ratios) == len(rows) else f" ({len(ratios)} of them)"
                least = min(ratios, key=ratios.__getitem__)
                mean = geometric_mean(list(ratios.values()))
                parts.append(f"{peer}/ours {name} {mean:.2f}{of}, least {ratios[least]:.2f} of {least}")
        if parts:
            yield f"geometric mean of {group} ({len(rows)} workloads): {'; '.join(parts)}"


def _fewer_threads(run: Run) -> Iterator[str]:
    """Which calls used fewer threads than there were."""
    for count in range(1, run["environment"]["threads"]):
        names = [
            f"{row['workload']} {name}"
            for row in rows_of(run)
            for name, mode in row["modes"].items()
            if mode["threads"] == count
        ]
        if names:
            yield f"used {count} of {threads(run)}: {', '.join(names)}"


def _extra_tables(extras: Sequence[ExtraRow]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """For each group of rows of another kind, the names of its columns and its cells."""
    for group in dict.fromkeys(row["group"] for row in extras):
        rows = [row for row in extras if row["group"] == group]
        columns = list(dict.fromkeys(column for row in rows for column in row["figures"]))
        cells = [[row["name"], *(number(row["figures"].get(column)) for column in columns)] for row in rows]
        for row, line in zip(rows, cells, strict=True):
            if row["note"]:
                line[0] += f" ({row['note']})"
        yield [group, *columns], cells


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines for the terminal, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def extras_text(extras: Sequence[ExtraRow]) -> list[str]:
    """The tables of another kind for the terminal, an empty line before each."""
    return [line for names, cells in _extra_tables(extras) for line in ("", *aligned([names, *cells]))]


def text(run: Run) -> str:
    """The whole report for the terminal."""
    table = Table(run)
    lines = ["", table.header(), *map(table.line, rows_of(run))] if run["rows"] else []
    return "\n".join([*table.title(), *lines, *extras_text(run["extras"]), "", *table.below()])


def markdown_table(names: list[str], cells: list[list[str]], left: int) -> str:
    """Cells as a table of Markdown; the first `left` columns are text, the others numbers."""
    lines = ["| " + " | ".join(names) + " |", "|---" * left + "|---:" * (len(names) - left) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
    return "\n".join(lines)


def markdown(run: Run) -> str:
    """The whole report as Markdown."""
    table = Table(run)
    parts = ["\n".join(table.title())]
    if run["rows"]:
        parts.append(markdown_table([name for name, _ in table.columns], list(map(table.cells, rows_of(run))), 2))
    parts += [markdown_table(names, cells, 1) for names, cells in _extra_tables(run["extras"])]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in table.below())])


def write_markdown(runs: list[Run], path: str | Path) -> None:
    """Write the tables to a file; a page with marked places keeps everything around them.

    The first place takes the first run, and so on; the last takes all remaining runs.  A place without a run stays.
    """
    file = Path(path)
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    # Every second part is a place.
    parts = re.split(f"({re.escape(START)}.*?{re.escape(END)})", old, flags=re.DOTALL)
    places = range(1, len(parts), 2)
    for first, place in enumerate(places):
        if here := runs[first:] if place == places[-1] else runs[first : first + 1]:
            parts[place] = f"{START}\n\n{_tables(here)}\n\n{END}"
    file.write_text("".join(parts) if places else _tables(runs) + "\n", encoding="utf-8")


def _tables(runs: list[Run]) -> str:
    return "\n\n".join(map(markdown, runs))
