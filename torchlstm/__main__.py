"""The command line, `python -m torchlstm`: the commands info, parity, qualify and demo."""

import argparse
import json
import math
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import torch

from . import LSTM, __version__, engines, use_engine
from .call.dispatch import forced_engine
from .command import demo
from .command.progress import progress
from .engines import ENGINES
from .engines.contract import only_if_asked
from .engines.cpu.engine import latest_threads
from .engines.cuda import told
from .engines.cuda.launch import INTERPRETED
from .engines.shared.threads import quota
from .parity import Ratio, Result, Verdict, digits, run_case, select
from .parity.report import digits_line, line
from .qualify import command as qualify


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(prog="torchlstm", description="torchlstm, a drop-in for torch.nn.LSTM")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("info", help="versions, devices, engines and why one is unavailable")
    parity = commands.add_parser("parity", help="compare with torch.nn.LSTM, outputs and all gradients")
    parity.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parity.add_argument("--engine", default="auto", help="an engine of `torchlstm info` (default: automatic)")
    parity.add_argument("--case", metavar="PATTERN", help="only cases whose name contains or matches this")
    parity.add_argument("--json", metavar="FILE", help="write every tensor's error here")
    qualify.add(commands)
    example = commands.add_parser("demo", help="train a character model on real text with nn.LSTM and with torchlstm")
    example.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    example.add_argument("--steps", type=int, default=demo.STEPS, help="training steps (default: %(default)s)")
    example.add_argument("--picture", metavar="FILE", default="torchlstm_demo.png", help="where the plot goes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 success, 1 a comparison failed, 2 wrong usage."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        return _info()
    if arguments.command == "qualify":
        return qualify.run(arguments, parser.error, progress)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"no CUDA device: torch {torch.__version__} sees none")
    if arguments.command == "demo":
        if arguments.steps < 1:
            parser.error(f"--steps must be at least 1, got {arguments.steps}")
        return demo.run(arguments.device, arguments.steps, arguments.picture)
    return _parity(parser, arguments)


def _info() -> int:
    lines = [
        f"torchlstm  {__version__}",
        f"torch      {torch.__version__}",
        f"python     {platform.python_version()} on {platform.platform()}",
        f"cpu        {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    ]
    lines.append(f"threads    {_threads()}")
    for index in range(torch.cuda.device_count()):
        lines.append(f"cuda:{index}     {torch.cuda.get_device_name(index)}, cuDNN {torch.backends.cudnn.version()}")
    if not torch.cuda.is_available():
        lines.append("cuda       none")
    for name, reason in engines().items():
        state = "opt-in" if ENGINES[name].automatic is only_if_asked else "available"
        state = f"unavailable: {reason}" if reason else state
        lines.append(f"engine     {name}: {state}")
    lines += _records()
    lines.append(f"forced     {forced_engine() or 'none: the first engine that does not refuse runs'}")
    print("\n".join(lines))
    return 0


def _records() -> list[str]:
    """For each GPU: which classes of the CUDA engine's programs automatic choice may use, by its record."""
    if ENGINES["cuda"].unavailable():
        return []
    if INTERPRETED:
        return [f"record     interpreter: {text}" for text in told.described(None)]
    return [
        f"record     cuda:{index}: {text}"
        for index in range(torch.cuda.device_count())
        for text in told.described(index)
    ]


def _threads() -> str:
    """The threads of torch, the limits of the process, and the threads that a small layer of the CPU engine uses."""
    limit = quota()
    text = f"torch {torch.get_num_threads()}, quota {'none' if limit is None else limit}"
    if ENGINES["cpu"].unavailable():
        return text
    layer, x = LSTM(64, 128), torch.zeros(30, 4, 64)
    calls = []
    with use_engine("cpu"), torch.no_grad():
        for _ in range(20):
            layer(x)
            calls.append(latest_threads())
    fewest = min(calls, key=lambda call: call.used)
    why = f" ({fewest.reason})" if fewest.reason else ""
    text += f", processors {fewest.processors}"
    return f"{text}; a layer of 64 to 128 features, 30 steps, 4 sequences: {fewest.used}{why}"


def _parity(parser: _Parser, arguments: argparse.Namespace) -> int:
    if arguments.engine != "auto" and arguments.engine not in ENGINES:
        parser.error(f"unknown engine {arguments.engine!r}; engines: {', '.join(ENGINES)}")
    if arguments.engine != "auto" and (reason := ENGINES[arguments.engine].unavailable()):
        parser.error(f"engine {arguments.engine!r} is not available: {reason}")
    if arguments.json:
        try:
            open(arguments.json, "a", encoding="utf-8").close()
        except OSError as error:  # before minutes of work
            parser.error(f"cannot write {arguments.json}: {error.strerror}")
    cases = select(arguments.case)
    if not cases:
        parser.error(f"no case matches {arguments.case!r}")
    width = max(len(case.name) for case in cases)
    large = all(case.large for case in cases)  # only if asked for by name
    results: list[Result] = []
    # Known warnings of nn.LSTM and of complex modules, which are not findings.
    warnings.filterwarnings("ignore", "LSTM with projections is not supported|Complex modules are a new feature")
    for case in progress(cases, len(cases), "parity"):
        try:
            result = run_case(case, arguments.device, arguments.engine, large)
        except Exception as error:  # a crash is the failure of its case
            result = Result(case, [Verdict("call", math.inf, 0.0, 0.0, f"{type(error).__name__}: {error}")])
        results.append(result)
        clear = "\r\033[K" if sys.stdout.isatty() and sys.stderr.isatty() else ""
        print(clear + line(result, width), flush=True)
    skipped = sum(result.skipped is not None for result in results)
    failed = sum(not result.passed for result in results) - skipped
    passed = len(results) - skipped - failed
    ratios = _digits(arguments)
    if ratios:
        print(digits_line(ratios))
    print(f"{passed} passed, {failed} failed, {skipped} skipped on {arguments.device}, engine {arguments.engine}")
    if arguments.json:
        rows = {"torch": torch.__version__, "torchlstm": __version__, "device": arguments.device,
                "engine": arguments.engine, "cases": [result.row() for result in results],
                "digits": {name: ratio._asdict() for name, ratio in ratios.items()}}  # fmt: skip
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    return 1 if failed or not passed else 0


def _digits(arguments: argparse.Namespace) -> dict[str, Ratio]:
    """The rounding errors over nn.LSTM's; empty on other devices, or if only some cases were selected."""
    if arguments.device != "cpu" or arguments.case:
        return {}
    try:
        return digits(arguments.engine)
    except Exception as error:  # an engine that cannot run it is not inexact
        print(f"rounding error over nn.LSTM's: not measured, {type(error).__name__}: {error}")
        return {}


if __name__ == "__main__":
    sys.exit(main())
