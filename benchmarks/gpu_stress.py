"""Stress test of the CUDA engine's fused kernels: no hang, the same bits every time, NaN only where it belongs.

Run on a GPU: `python -m benchmarks.gpu_stress --json FILE`; with `--once` each kernel runs once on small shapes, for
compute-sanitizer.  FILE holds one line of JSON per trial.  Trials run in a child process: a kernel that fails makes
CUDA unusable in its process, and the next trial begins in a new one.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchlstm import LSTM, use_engine
from torchlstm.engines.cuda import fused
from torchlstm.parity import Case
from torchlstm.parity.observe import Observation, build, draw, observe

from .calls import call_of
from .gpu_device import captured, device_of, streams, wait

_SIZES: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    # Each loop, forward and backward, with one and with several products per program; odd sizes; both directions.
    "slices": (24, 16, 64, 512, {}),
    "slices-tiles": (24, 64, 64, 1024, {}),
    "slices-odd": (24, 5, 33, 251, {"bidirectional": True}),
    "rows": (24, 16, 64, 64, {}),
    "rows-bi": (24, 33, 17, 100, {"bidirectional": True}),
    "projected": (24, 16, 64, 512, {"proj_size": 96, "num_layers": 2}),
}
_SMALL: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "rows": (5, 3, 7, 20, {}),
    "slices": (5, 17, 7, 136, {"bidirectional": True}),
    "projected": (4, 3, 5, 144, {"proj_size": 7}),
}
_TINY: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {"rows": (2, 2, 2, 2, {})}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The bound on reads in a first call of slices: if they do not see each other, the call ends quickly.
_SOON = 1 << 16
_PRODUCTS = 20  # that another stream has to do first
_LONG = 2000
_LEAST = 2  # calls that are compared
_GOOD = ("same bits", "its own sequence only")


@dataclass
class Found:
    """The result of one trial."""

    name: str
    repeats: int
    seconds: float
    outcome: str


@dataclass(frozen=True)
class Trial:
    """One case, and what is tried with it."""

    name: str
    case: Case
    run: Callable[[Case, torch.device, float], Found]


def cases(small: bool, sizes: dict[str, tuple[int, int, int, int, dict[str, Any]]] | None = None) -> Iterator[Case]:
    """Every shape in every dtype, dense and ragged."""
    for name, (steps, batch, features, hidden, options) in (sizes or (_SMALL if small else _SIZES)).items():
        for dtype in _DTYPES:
            for form in ("dense", "unsorted"):
                yield Case(
                    f"{name}-{str(dtype).removeprefix('torch.')}-{form}",
                    steps=steps, batch=batch, input_size=features, hidden_size=hidden,
                    options=options, dtype=dtype, form=form,
                )  # fmt: skip


def trials(chosen: Sequence[Case]) -> list[Trial]:
    """Return all trials, the most telling first: a first call of slices, the same bits alone, beside other work."""
    first = Case("first-call", steps=5, batch=5, input_size=7, hidden_size=min(136, chosen[0].hidden_size),
                 dtype=torch.float32)  # fmt: skip
    found = [Trial("first-call", first, cautious)]
    # A dry run has one dtype.
    chosen = [case for case in chosen if case.dtype == torch.float32] if chosen[0].steps < 4 else chosen
    found += [Trial(f"{case.name}-idle", case, idle) for case in chosen]
    found += [Trial(f"{case.name}-busy", case, busy) for case in chosen]
    dense = [case for case in chosen if case.form == "dense"]
    for value in ("nan", "inf"):
        found += [Trial(f"{case.name}-{value}", replace(case, poison=float(value)), poisoned) for case in dense]
    slices = [case for case in chosen if case.name.startswith(chosen[0].name.split("-")[0] + "-")]
    found += [Trial(f"{case.name}-two-streams", case, together) for case in slices]
    found += [Trial(f"{case.name}-graph", case, replayed) for case in slices]
    long = [replace(case, steps=_LONG if case.steps > 4 else 3) for case in dense if case.batch <= 16]
    return found + [Trial(f"{case.name}-T{case.steps}", case, idle) for case in long]


def results(case: Case, repeats: int, device: torch.device) -> Iterator[Observation]:
    """Results and gradients of the same call, repeated."""
    module = build(case, LSTM, LSTM, case.dtype).to(device)
    inputs = draw(case)
    for _ in range(repeats):
        module.zero_grad(set_to_none=True)
        yield observe(module, case, inputs.to(device, case.dtype))


def repeat(case: Case, device: torch.device, seconds: float, between: Callable[[], Any] = lambda: None) -> Found:
    """Run a case for some seconds, at least twice; `between` is called before each run."""
    start, first, outcome, index = time.perf_counter(), None, "same bits", 0
    for index, found in enumerate(results(case, sys.maxsize, device), 1):
        if first is None:
            first = found
            if any(t is not None and not bool(t.isfinite().all()) for t in found.values()):
                outcome = "not finite"
                break
        elif different := _different(found, first):
            outcome = f"call {index} differs in {', '.join(different)}"
            break
        if index >= _LEAST and time.perf_counter() - start > seconds:
            break
        between()
    wait(device)
    return Found(case.name, index, time.perf_counter() - start, outcome)


def _different(found: Observation, first: Observation) -> list[str]:
    def same(one: Tensor | None, other: Tensor | None) -> bool:
        return one is other if one is None or other is None else torch.equal(one, other)

    return [name for name, tensor in found.items() if not same(tensor, first[name])]


def cautious(case: Case, device: torch.device, seconds: float) -> Found:
    """Make a first call, which waits only briefly for a program that never arrives."""
    before, fused.LIMIT = fused.LIMIT, _SOON
    try:
        return repeat(case, device, seconds)
    finally:
        fused.LIMIT = before


def idle(case: Case, device: torch.device, seconds: float) -> Found:
    """Run a case while nothing else runs."""
    return repeat(case, device, seconds)


def busy(case: Case, device: torch.device, seconds: float) -> Found:
    """Run a case while another stream multiplies, so that part of the GPU is taken when a call is launched."""
    (other,) = streams(device, 1)
    load = torch.randn(2048 if device.type == "cuda" else 8, 2048 if device.type == "cuda" else 8, device=device)

    def queue() -> None:
        with other:
            for _ in range(_PRODUCTS):
                torch.mm(load, load)

    return repeat(case, device, seconds, queue)


def together(case: Case, device: torch.device, seconds: float) -> Found:
    """Run two layers at once, each on its own stream; their programs may not all fit on the GPU."""
    start, outcome, count = time.perf_counter(), "same bits", 0
    modules = [build(case, LSTM, LSTM, case.dtype).to(device) for _ in range(2)]
    both, inputs = streams(device, 2), draw(case)
    (first,) = results(case, 1, device)
    while count < _LEAST or time.perf_counter() - start < seconds:
        count += 1
        given = [inputs.to(device, case.dtype) for _ in modules]
        wait(device)
        found = []
        for stream, module, each in zip(both, modules, given, strict=True):
            module.zero_grad(set_to_none=True)
            with stream:
                found.append(observe(module, case, each))
        wait(device)
        if different := [name for seen in found for name in _different(seen, first)]:
            outcome = f"call {count} differs in {', '.join(different)}"
            break
    return Found(case.name, count, time.perf_counter() - start, outcome)


def replayed(case: Case, device: torch.device, seconds: float) -> Found:
    """Replay a forward and a training step as CUDA graphs."""
    start, total = time.perf_counter(), 0
    module, inputs = build(case, LSTM, LSTM, case.dtype).to(device), draw(case).to(device, case.dtype)
    # A state handed from call to call would be a different input at every replay.
    inputs = replace(inputs, h_0=None, c_0=None)
    for mode in ("inference", "training"):
        with torch.set_grad_enabled(mode == "training"):
            call = call_of(mode, module, inputs)
            expected = _tensors(call())
            replay, found = captured(device, call)
        count, until = 0, time.perf_counter() + seconds / 2
        while count < _LEAST or time.perf_counter() < until:
            count, total = count + 1, total + 1
            replay()
            wait(device)
            if not all(torch.equal(*pair) for pair in zip(_tensors(found), expected, strict=True)):
                return Found(case.name, total, time.perf_counter() - start, f"replay {count} of {mode} differs")
    return Found(case.name, total, time.perf_counter() - start, "same bits")


def _tensors(result: Any) -> list[Tensor]:
    """The tensors of a result of any form."""
    if isinstance(result, Tensor):
        return [result.clone()] if result.is_floating_point() else []
    return [] if result is None else [tensor for part in result for tensor in _tensors(part)]


def poisoned(case: Case, device: torch.device, _: float = 0.0) -> Found:
    """Check that a NaN, or an infinity that becomes one, stays in its sequence."""
    start = time.perf_counter()
    case = replace(case, poison=float("nan") if case.poison is None else case.poison)
    case = replace(case, loss=("output",), frozen=("input", "hx"))
    output = next(results(case, 1, device))["output"]
    assert output is not None
    forward = case.options.get("proj_size") or case.hidden_size  # in reverse the poisoned step is the last
    alone = bool(output[:, 1:].isfinite().all())
    if math.isnan(case.poison or 0.0):  # of an Inf gates are shut or open, or NaN
        alone &= bool(output[:, 0, :forward].isnan().all())
    outcome = "its own sequence only" if alone else f"{case.poison} elsewhere"
    return Found(case.name, 1, time.perf_counter() - start, outcome)


def run_here(chosen: Sequence[Trial], device: torch.device, seconds: float, write: Callable[[Found], None]) -> None:
    """Run trials in this process for some seconds in all, or until CUDA is unusable here."""
    end = time.perf_counter() + seconds
    with use_engine("cuda"):
        for index, trial in enumerate(chosen):
            start = time.perf_counter()
            try:
                found = trial.run(trial.case, device, max(end - start, 0) / (len(chosen) - index))
            except Exception as error:  # one trial's failure is its own
                found = Found(trial.name, 0, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:300])
            write(replace(found, name=trial.name))
            try:
                wait(device)
            except RuntimeError:
                return


def run_in_children(command: list[str], names: list[str], file: Path, seconds: float) -> list[Found]:
    """Run all trials in child processes: a new one starts where the last one died.

    command  runs those after a name, `--after NAME`, and adds their lines to the file
    """
    end = time.perf_counter() + seconds
    while len(found := _read(file)) < len(names):
        left = ["--seconds", str(max(0.0, end - time.perf_counter()))]
        done = subprocess.run([*command, *left, *(["--after", found[-1].name] if found else [])], check=False)
        if len(_read(file)) == len(found):
            lost = Found(names[len(found)], 0, 0.0, f"the process ended with exit code {done.returncode}")
            _add(lost, file)
    return found


def _read(file: Path) -> list[Found]:
    return [Found(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _add(found: Found, file: Path) -> None:
    print(f"{found.name:40} {found.repeats:5} {found.seconds:7.2f} s  {found.outcome}", flush=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(found)) + "\n")


def main() -> int:
    """Run everything; returns 1 if a trial failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_stress", description=__doc__)
    parser.add_argument("--once", action="store_true", help="small shapes, each once: for compute-sanitizer")
    parser.add_argument("--seconds", type=float, default=60, help="for so long in all (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="a line for each trial")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, in Triton's interpreter")
    parser.add_argument("--here", action="store_true", help="in this process, until a trial ends it")
    parser.add_argument("--after", metavar="NAME", help="only the trials that follow this one")
    arguments = parser.parse_args()
    sizes = _TINY if arguments.dry_run else _SMALL if arguments.once else _SIZES
    chosen = trials(list(cases(arguments.once, sizes)))
    if arguments.once:
        chosen = [trial for trial in chosen if trial.run is idle]
    if arguments.once or arguments.dry_run:
        arguments.seconds = 0.0
    names = [trial.name for trial in chosen]
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.json or Path(folder) / "stress.jsonl"
        if not arguments.after:
            file.write_text("", encoding="utf-8")
        if arguments.once or arguments.here:
            device = device_of(parser, arguments.dry_run)
            rest = chosen[names.index(arguments.after) + 1 :] if arguments.after else chosen
            run_here(rest, device, arguments.seconds, lambda found: _add(found, file))
            found = _read(file)
        else:
            command = [sys.executable, "-m", "benchmarks.gpu_stress", "--here", "--json", str(file)]
            command += ["--dry-run"] * arguments.dry_run
            found = run_in_children(command, names, file, arguments.seconds)
    bad = [one for one in found if one.outcome not in _GOOD]
    print(f"{len(found) - len(bad)} good, {len(bad)} bad of {len(names)}")
    return 1 if bad or len(found) < len(names) else 0


if __name__ == "__main__":
    sys.exit(main())
