"""The command line: `python -m benchmarks`."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from torchlstm import use_engine

from .extras import Extra
from .measure import Settings
from .peers import PEERS, choose
from .record import Row, Run, dump, load, slug
from .report import Table, extras_text, text, write_markdown
from .run import measure_all, measure_extras, start
from .selection import select
from .workloads import Workload, is_sweep, sweeps

_RESULTS = Path(__file__).parent / "results"
_QUICK_SECONDS = 0.01


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(prog="benchmarks", description="torchlstm against torch.nn.LSTM and others: time and memory")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch and of the peers (default: torch's)")
    parser.add_argument("--engine", default="auto", metavar="NAME", help="an engine of `torchlstm info`")
    parser.add_argument("--peers", default="nn", metavar="A,B", help=f"of {', '.join(PEERS)}, or all (default: nn)")
    parser.add_argument("--workloads", metavar="PATTERN", help="names or groups, shell patterns, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the workloads of the device and stop")
    parser.add_argument("--quick", action="store_true", help="shrunk workloads, seconds in all: does it run?")
    parser.add_argument("--seconds", type=float, metavar="S", help="time of one measurement (default: 1)")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True,
                        help="peak memory of a training step, a process for each (default: yes)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the run here")
    parser.add_argument("--save", action="store_true", help=f"write the run into {_RESULTS.parent.name}/results/")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here, or between the marks of a page")
    parser.add_argument("--plot", metavar="DIR", help="measure the sweeps too, and draw PNG and SVG here")
    parser.add_argument("--render", metavar="FILE", nargs="+", help="show, write and draw these saved runs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or render; returns 0, 1 if a workload's parity is red or nothing was measured, 2 if called wrongly."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    try:
        if arguments.render:
            runs = [load(file) for file in arguments.render]
            print("\n\n".join(map(text, runs)))
            _write(runs, arguments)
            return 0
        if arguments.list:
            return _list(*select(arguments.workloads, arguments.device))
        if arguments.device == "cuda" and not torch.cuda.is_available():
            parser.error(f"no CUDA device: torch {torch.__version__} sees none")
        workloads, extras = select(arguments.workloads, arguments.device)
        if arguments.plot:
            workloads += [workload for workload in sweeps(arguments.device) if workload not in workloads]
        peers, left_out = choose(arguments.peers)
        with use_engine(arguments.engine):  # an unknown or missing one raises here
            pass
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(str(error))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    seconds = arguments.seconds or (_QUICK_SECONDS if arguments.quick else 1.0)
    settings = Settings(arguments.device, torch.get_num_threads(), arguments.engine, tuple(peers), seconds,
                        arguments.quick, arguments.memory)  # fmt: skip
    run = _measure(settings, workloads, extras, left_out, arguments.json)
    if arguments.json:
        dump(run, arguments.json)
    if arguments.save:
        _RESULTS.mkdir(exist_ok=True)
        file = _RESULTS / f"{slug(run)}.json"
        dump(run, file)
        print(f"saved: {file}")
    _write([run], arguments)
    outcomes = [row["outcome"] for row in run["rows"]]
    measured = "measured" in outcomes or any(row["figures"] for row in run["extras"])
    return 1 if "red" in outcomes or not measured else 0


def _check(parser: _Parser, arguments: argparse.Namespace) -> None:
    """Report errors that can be seen now, before minutes of work."""
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.seconds is not None and not arguments.seconds > 0:
        parser.error(f"--seconds must be above 0, got {arguments.seconds:g}")
    if arguments.save and arguments.quick:
        parser.error("--save keeps figures, and those of --quick say nothing")
    if arguments.render and (arguments.json or arguments.save or arguments.list):
        parser.error("--render measures nothing: it cannot be combined with --json, --save or --list")
    if arguments.plot and find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install -c constraints.txt -e ".[bench]"')
    for path in (arguments.json, arguments.markdown):
        if path and (Path(path).is_dir() or not os.access(Path(path).absolute().parent, os.W_OK)):
            parser.error(f"cannot write {path}")
    if arguments.plot:
        try:
            Path(arguments.plot).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"cannot write into {arguments.plot}: {error.strerror}")


def _list(workloads: list[Workload], extras: list[Extra]) -> int:
    width = max(len(name) for name in [*(w.name for w in workloads), *(e.name for e in extras)])
    for workload in workloads:
        sizes = " ".join(f"{key}={value}" for key, value in workload.sizes().items() if key != "kind" and value)
        print(f"{workload.name:<{width}}  {workload.group:<14}  {sizes}")
    for extra in extras:
        print(f"{extra.name:<{width}}  {extra.group}")
    return 0


def _measure(
    settings: Settings, workloads: list[Workload], extras: list[Extra], left_out: dict[str, str], file: str | None
) -> Run:
    """Measure; print each row and write the run so far as soon as the row is finished."""
    run = start(settings, workloads, left_out)
    table = Table(run)
    print("\n".join(table.title()), flush=True)
    if workloads:
        print("\n" + table.header(), flush=True)
    clear = "\r\033[K" if sys.stdout.isatty() and sys.stderr.isatty() else ""

    def show(row: Row) -> None:
        if not is_sweep(row["group"]):
            print(clear + table.line(row), flush=True)
        if file:
            dump(run, file)

    measure_all(run, settings, workloads, show)
    measure_extras(run, settings, extras)
    print(clear + "\n".join([*extras_text(run["extras"]), "", *table.below()]))
    return run


def _write(runs: list[Run], arguments: argparse.Namespace) -> None:
    """Write the Markdown and the plots of one or several runs; of several, each gets a folder for its plots."""
    if arguments.markdown:
        write_markdown(runs, arguments.markdown)
    if arguments.plot:
        from .plots import draw

        for run in runs:
            folder = Path(arguments.plot) / (slug(run) if len(runs) > 1 else "")
            for file in draw(run, folder):
                print(f"plot: {file}")


if __name__ == "__main__":
    sys.exit(main())
