"""A process that tries one class, `python -m torchlstm.qualify.child`, so that a trap or a hang hurts no other process.

It reads a job, one line of JSON, and writes lines of JSON: {"at": what comes next}, then {"found": a row of a record}
for each size.  It exits when its standard input closes, so that it does not outlive its parent.
"""

import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..engines.cuda.classes import Class
from ..engines.cuda.launch import INTERPRETED
from ..engines.cuda.loops import REFUSED
from ..engines.cuda.records import Measured
from . import card, compiled, probe
from .evidence import Wrong, calls, case_of, only, parity, products, same_bits
from .speed import least_of
from .wanted import Job, Size

Say = Callable[[str], None]

# T and I of the parity cases, odd and even; on a GPU one is long enough to reveal a lost message.
_SHAPES = [(7, 17), (64, 32)]
# In the interpreter a step takes a tenth of a second, so sizes take these in turn, and only the first has NaN and Inf.
_SHORT = [(3, 5), (2, 6)]
_STEPS = (16, 64, 512)  # T of the timed calls
# Repetitions of the same call, and its steps: many and long if programs wait for each other.
_WARM = 3  # calls until captured graphs are replayed
_TOGETHER, _TOGETHER_QUICK, _ALONE, _LONG, _SHORTER = 300, 50, 10, 512, 64


def evidence(job: Job, size: Size, say: Say) -> Measured:
    """All evidence for a class at one size."""
    kind, device, quick = job.kind, job.device, job.quick
    say("parity with torch.nn.LSTM")
    if INTERPRETED:
        number = job.sizes.index(size)
        parity(kind, size, device, [_SHORT[number % 2]], poisoned=number == 0)
        if number == 0:
            say("the same bits twice")
            same_bits(calls(case_of(kind, size, *_SHORT[0]), device, kind.trace), 2)
        return Measured(*size, None, 1)
    parity(kind, size, device, _SHAPES, times=_WARM)
    case = case_of(kind, size, _LONG if kind.cooperates else _SHORTER, size[0])
    repeats = (_TOGETHER_QUICK if quick else _TOGETHER) if kind.cooperates else _ALONE
    say(f"the same bits {repeats} times")
    same_bits(calls(case, device, kind.trace), repeats, warm=_WARM)
    say(f"the same bits {repeats} times beside other work")
    same_bits(calls(case, device, kind.trace), repeats, card.Load(device), " beside other work", _WARM)
    if kind.cooperates:
        say("two layers on two streams at once")
        card.side_by_side(case, kind, device)
    if not kind.trace and not kind.reverse:
        say("a CUDA graph")
        card.replayed(case_of(kind, size, 32, size[0]), device)
    rows = []
    for steps in numbers_of_steps(kind, quick):
        say(f"the time of {steps} steps")
        rows.append(card.timed(case_of(kind, size, steps, size[0]), kind, device, quick))
    return Measured(*size, None, least_of(rows), tuple(rows))


def numbers_of_steps(kind: Class, quick: bool) -> tuple[int, ...]:
    """The T that are timed, with T = 1 if a single step of a cell belongs to this class."""
    single = kind.loop == "steps" and not (kind.ragged or kind.reverse or kind.trace)
    return (*((1,) if single else ()), *(_STEPS[1:2] if quick else _STEPS))


def work(job: Job, tell: Callable[[dict[str, Any]], None]) -> None:
    """Try a class at all its sizes; stop at the first failure, which may have destroyed the CUDA context."""
    with products(job.kind), only(job.kind), warnings.catch_warnings():
        # After this warning other programs than this class's would run.
        warnings.filterwarnings("error", re.escape(REFUSED))
        for size in job.sizes:

            def say(what: str, size: Size = size) -> None:
                tell({"at": what, "H": size[0], "B": size[1]})

            try:
                found = evidence(job, size, say)
            except Wrong as wrong:
                found = Measured(*size, f"wrong: {wrong}", None)
            except Exception as error:
                text = str(error).strip().split("\n")[0]
                found = Measured(*size, f"failed: {type(error).__name__}: {text}", None)
            tell({"found": found._asdict()})
            if found.reason:
                return


def _end_with(stdin: Any) -> None:
    """Exit when standard input closes."""
    stdin.read()
    os._exit(3)


def main() -> None:
    """Read a job and run it."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    # Output of libraries must not mix with ours.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(line: dict[str, Any]) -> None:
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if "probe" in job:
        tell(probe.probe(job["probe"]))
    elif job["compile"]:
        compiled.compile_all(Job.of(job))
    else:
        work(Job.of(job), tell)


if __name__ == "__main__":
    main()
