"""A stream of single steps, T = B = 1: how often a call asks for memory, and its time beside that of the bare kernel.

    python -m benchmarks.frozen_stream

Calls of the allocator are counted by a library that is preloaded, which needs a C compiler and glibc.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from torchlstm import LSTM, Stream
from torchlstm.parity.timing import interleave

from .environment import environment
from .extras import Extra, Figures, measure_extra
from .frozen import title
from .measure import SHORTEST, Settings
from .report import extras_text
from .rivals import FORMATS, freeze
from .unfit import Unfit

HIDDEN = 64

_HERE = Path(__file__).parent
_CALLS = 1000

# By name: nn.LSTM with its state handed on, a Stream over ours, and one over a frozen module that is given its output.
WHO = ("nn", "unfrozen", *FORMATS)


def call_of(who: str, hidden: int = HIDDEN) -> Callable[[], Any]:
    """The next step of a stream, as a function without arguments; to be called without gradients."""
    torch.manual_seed(0)
    x, state = torch.randn(1, 1, hidden), (torch.zeros(1, 1, hidden), torch.zeros(1, 1, hidden))
    if who == "nn":
        module = nn.LSTM(hidden, hidden).eval()

        def step() -> None:
            nonlocal state
            state = module(x, state)[1]

        return step
    lstm = LSTM(hidden, hidden).eval()
    if who == "unfrozen":
        stream = Stream(lstm, state)
        return lambda: stream(x)
    [frozen] = freeze(nn.Sequential(lstm), FORMATS[who]).children()
    into: Any = Stream(frozen, state)
    out = torch.empty(1, 1, hidden)
    return lambda: into(x, out=out)


def _library(folder: str) -> Path:
    """The counting library, built."""
    if not sys.platform.startswith("linux"):
        raise Unfit("allocations are counted on Linux only")
    library = Path(folder) / "allocations.so"
    command = ["cc", "-shared", "-fPIC", "-O2", str(_HERE / "allocations.c"), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unfit(f"no C compiler to count allocations with: {error}") from error
    if done.returncode:
        raise Unfit(f"the counting library is not built: {done.stderr.strip()[:120]}")
    return library


@cache
def allocations(python_too: bool = False) -> dict[str, float]:
    """How many calls of the allocator a step of each of WHO makes, in a process of its own.

    python_too  whether Python's own small objects count, which else come from Python's pools
    """
    with TemporaryDirectory() as folder:
        library = _library(folder)
        variables = os.environ | {"LD_PRELOAD": str(library)} | ({"PYTHONMALLOC": "malloc"} if python_too else {})
        command = [sys.executable, "-m", "benchmarks.frozen_stream", "--count", str(library)]
        done = subprocess.run(command, cwd=_HERE.parent, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _count(library: str) -> dict[str, float]:
    """What the process of `allocations` does."""
    torch.set_num_threads(1)
    counter, found = ctypes.CDLL(library).allocations, {}
    with torch.inference_mode():
        for who in WHO:
            call = call_of(who)
            for _ in repeat(None, _CALLS):
                call()
            counter(1)
            for _ in repeat(None, _CALLS):
                call()
            found[who] = int(counter(0)) / _CALLS
    return found


def measure(who: str, settings: Settings) -> Figures:
    """Microseconds of a step beside nn.LSTM's, and the calls of the allocator."""
    with torch.no_grad():
        pairs = interleave(call_of("nn"), call_of(who), "cpu", settings.seconds, shortest=SHORTEST)
    return {
        "us": 1e6 * pairs.second,
        "nn/it": pairs.ratio,
        "allocations": allocations()[who],
        "Python's too": allocations(python_too=True)[who],
    }


def _row(who: str) -> Extra:
    return Extra(f"frozen-stream-{who}", "frozen-stream", lambda settings: measure(who, settings))


EXTRAS = tuple(_row(who) for who in WHO)


def main(given: list[str] | None = None) -> int:
    """Print the table; or be the process that counts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frozen_stream", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--count", metavar="LIBRARY", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    options = parser.parse_args(given)
    if options.count:
        print(json.dumps(_count(options.count)))
        return 0
    torch.set_num_threads(options.threads)
    rows = [measure_extra(extra, Settings(threads=options.threads, seconds=options.seconds)) for extra in EXTRAS]
    print(title(environment("cpu")) + "\n" + "\n".join(extras_text(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
