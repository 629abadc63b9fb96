"""A stream of single steps, T = B = 1: calls of the allocator per step, and the time beside the bare kernel's.

    python -m benchmarks.frozen_stream

A preloaded library counts the calls of the allocator, and C code calls the kernel inside the loaded extension: both
need Linux and a C compiler.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from torchlstm import LSTM, Stream
from torchlstm.engines.cpu.engine import ISAS
from torchlstm.engines.cpu.frozen import Sizes, pack
from torchlstm.engines.shared.rounding import rounded
from torchlstm.parity.timing import interleave

from .environment import environment
from .extras import Extra, Figures, measure_extra
from .frozen import title
from .measure import SHORTEST, Settings
from .report import extras_text
from .rivals import FORMATS, check, freeze
from .unfit import Unfit

HIDDEN = 64

_HERE = Path(__file__).parent
_KERNEL = _HERE.parent / "torchlstm" / "engines" / "cpu" / "kernel"
_CALLS = 1000

# Steps that the stream and the bare kernel make per turn, and the fewest turns.
_BLOCK, _LEAST = 200, 9

# nn.LSTM with its state handed on, a Stream over ours, and a Stream over a frozen module that writes into `out`.
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


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise Unfit(f"this needs {command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise Unfit(f"{command[0]} fails: {(error.stderr.strip() or 'no message').splitlines()[-1]}") from error


def library(name: str, folder: str) -> Path:
    """A C file of this folder, built as a library."""
    if not sys.platform.startswith("linux"):
        raise Unfit("allocations are counted, and the bare kernel is called, on Linux only")
    file = Path(folder) / f"{name}.so"
    _output("cc", "-shared", "-fPIC", "-O2", f"-I{_KERNEL}", str(_HERE / f"{name}.c"), "-o", str(file))
    return file


def _addresses() -> dict[str, int]:
    """Return the addresses of the loaded extension's functions by name; it exports only the one that Python calls."""
    from torchlstm.engines.cpu.engine import _kernel

    extension: Any = _kernel
    lines = (line.split() for line in _output("nm", extension.__file__).splitlines())
    found = {line[2]: int(line[0], 16) for line in lines if len(line) == 3}
    if "torchlstm_forward" not in found:
        raise Unfit("the extension was stripped of the names of its functions")
    exported = ctypes.cast(ctypes.CDLL(extension.__file__).PyInit__kernel, ctypes.c_void_p).value or 0
    return {name: exported + at - found["PyInit__kernel"] for name, at in found.items()}


def bare(weights: str, hidden: int = HIDDEN) -> Callable[[int], float]:
    """Return a function from a number of steps to the seconds per step of the kernel, on the weights of `call_of`."""
    torch.manual_seed(0)
    lstm = LSTM(hidden, hidden).eval()
    matrices = [rounded(lstm.get_parameter(name), FORMATS[weights]) for name in ("weight_ih_l0", "weight_hh_l0")]
    bias = (lstm.get_parameter("bias_ih_l0") + lstm.get_parameter("bias_hh_l0")).detach()
    packed = pack(Sizes(hidden, hidden), [((matrices[0], matrices[1], bias, None),)])
    if packed is None:
        raise Unfit("the kernel has no packed weights here")
    at = _addresses()
    with TemporaryDirectory() as folder:
        steps = ctypes.CDLL(str(library("bare", folder))).bare_steps
    steps.restype = ctypes.c_double
    x, y, state = torch.randn(hidden), torch.empty(hidden), torch.zeros(4, hidden)

    def seconds(count: int) -> float:
        tensors = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, state)]
        functions = [ctypes.c_void_p(at[name]) for name in ("torchlstm_forward_scratch", "torchlstm_forward")]
        found: float = steps(*functions, ctypes.c_void_p(packed.data.data_ptr()), 1 + list(FORMATS).index(weights),
                             ISAS[packed.isa], ctypes.c_long(hidden), *tensors, torch.get_num_threads(),
                             ctypes.c_long(count))  # fmt: skip
        if found < 0:
            raise MemoryError("no memory for the kernel's scratch")
        return found / count

    seconds(1)
    check("the bare kernel", weights, {"output": y}, {"output": lstm.double()(x.double()[None])[0][0].detach()})
    return seconds


@cache
def allocations(python_too: bool = False) -> dict[str, float]:
    """Count the calls of the allocator per step of each of WHO, in a process of its own.

    python_too  whether to count Python's own small objects, which otherwise come from Python's pools
    """
    with TemporaryDirectory() as folder:
        counter = library("allocations", folder)
        variables = os.environ | {"LD_PRELOAD": str(counter)} | ({"PYTHONMALLOC": "malloc"} if python_too else {})
        command = [sys.executable, "-m", "benchmarks.frozen_stream", "--count", str(counter)]
        done = subprocess.run(command, cwd=_HERE.parent, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _count(library: str) -> dict[str, float]:
    """Run as the process that `allocations` starts."""
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


def over_bare(who: str, settings: Settings) -> tuple[float, float]:
    """Return medians in seconds: a step of a stream minus the bare kernel's, and the bare kernel's."""
    call, kernel = call_of(who), bare(who)

    def stream() -> float:
        start = time.perf_counter()
        for _ in repeat(None, _BLOCK):
            call()
        return (time.perf_counter() - start) / _BLOCK

    stream(), kernel(_BLOCK)
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + settings.seconds
    while len(found) < _LEAST or time.perf_counter() < end:
        alone = kernel(_BLOCK)
        found.append((stream() - alone, alone))
    return statistics.median(over for over, _ in found), statistics.median(alone for _, alone in found)


def measure(who: str, settings: Settings) -> Figures:
    """Microseconds of a step beside nn.LSTM's and the bare kernel's, and the calls of the allocator."""
    figures: Figures = {}
    with torch.no_grad():
        pairs = interleave(call_of("nn"), call_of(who), "cpu", settings.seconds, shortest=SHORTEST)
        figures |= {"us": 1e6 * pairs.second, "nn/it": pairs.ratio}
        if who in FORMATS:
            over, alone = over_bare(who, settings)
            figures |= {"bare kernel us": 1e6 * alone, "us over it": 1e6 * over}
    allocated = {"allocations": allocations()[who], "and Python's": allocations(python_too=True)[who]}
    return figures | allocated


def _row(who: str) -> Extra:
    return Extra(f"frozen-stream-{who}", "frozen-stream", lambda settings: measure(who, settings))


EXTRAS = tuple(_row(who) for who in WHO)


def main(given: list[str] | None = None) -> int:
    """Print the table, or run as the process that counts."""
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
