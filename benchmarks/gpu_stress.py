"""The CUDA engine's fused kernels again and again: no hang, the same bits every time, and NaN where NaN belongs.

Run on a GPU: `python -m benchmarks.gpu_stress --json FILE`; with `--once` each kernel runs once on small shapes, for
compute-sanitizer.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchlstm import LSTM, use_engine
from torchlstm.parity import Case
from torchlstm.parity.observe import build, draw, observe

_SIZES: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    # Each of the loops, forward and backward, with one and with several products a program; odd sizes; both directions.
    "rows": (24, 16, 64, 64, {}),
    "rows-bi": (24, 33, 17, 100, {"bidirectional": True}),
    "slices": (24, 16, 64, 512, {}),
    "slices-tiles": (24, 64, 64, 1024, {}),
    "slices-odd": (24, 5, 33, 251, {"bidirectional": True}),
    "projected": (24, 16, 64, 512, {"proj_size": 96, "num_layers": 2}),
}
_SMALL: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "rows": (5, 3, 7, 20, {}),
    "slices": (5, 17, 7, 136, {"bidirectional": True}),
    "projected": (4, 3, 5, 144, {"proj_size": 7}),
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Found:
    """What became of one kernel's repeats."""

    name: str
    repeats: int
    seconds: float
    outcome: str


def cases(small: bool) -> Iterator[Case]:
    """Every shape in every dtype, dense and ragged."""
    for name, (steps, batch, features, hidden, options) in (_SMALL if small else _SIZES).items():
        for dtype in _DTYPES:
            for form in ("dense", "unsorted"):
                yield Case(
                    f"{name}-{str(dtype).removeprefix('torch.')}-{form}",
                    steps=steps, batch=batch, input_size=features, hidden_size=hidden,
                    options=options, dtype=dtype, form=form,
                )  # fmt: skip


def results(case: Case, repeats: int, device: torch.device) -> Iterator[dict[str, Tensor | None]]:
    """Results and gradients of the same call, again and again."""
    module = build(case, LSTM, LSTM, case.dtype).to(device)
    inputs = draw(case)
    for _ in range(repeats):
        module.zero_grad(set_to_none=True)
        yield observe(module, case, inputs.to(device, case.dtype))


def repeat(case: Case, repeats: int, device: torch.device, busy: bool) -> Found:
    """Run one case many times; `busy`: while another stream multiplies, so that the GPU is not free at every launch."""
    start = time.perf_counter()
    first: dict[str, Tensor | None] | None = None
    outcome = "same bits"
    other = torch.cuda.Stream(device) if busy else None
    load = torch.randn(2048, 2048, device=device)
    for index, found in enumerate(results(case, repeats, device)):
        if other is not None:
            with torch.cuda.stream(other):
                torch.mm(load, load)
        if first is None:
            first = found
            if any(t is not None and not bool(t.isfinite().all()) for t in found.values()):
                outcome = "not finite"
                break
            continue
        different = [name for name, tensor in found.items() if not _same(tensor, first[name])]
        if different:
            outcome = f"call {index} differs in {', '.join(different)}"
            break
    torch.cuda.synchronize(device)
    return Found(case.name, repeats, time.perf_counter() - start, outcome)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def poisoned(case: Case, device: torch.device) -> Found:
    """A NaN in one sequence makes that sequence NaN from its step on, and no other."""
    start = time.perf_counter()
    if case.form != "dense":
        return Found(f"{case.name}-nan", 0, 0.0, "left out: rows of a ragged batch are in another order")
    case = replace(case, poison=float("nan"), loss=("output",), frozen=("input", "hx"))
    output = next(results(case, 1, device))["output"]
    assert output is not None
    forward = case.options.get("proj_size") or case.hidden_size  # in reverse the poisoned step is the last
    alone = bool(output[:, 0, :forward].isnan().all()) and not bool(output[:, 1:].isnan().any())
    return Found(
        f"{case.name}-nan", 1, time.perf_counter() - start, "its own sequence only" if alone else "NaN elsewhere"
    )


def main() -> int:
    """Run everything; returns 1 if anything moved."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_stress", description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--once", action="store_true", help="small shapes, each once: for compute-sanitizer")
    parser.add_argument("--seconds", type=float, default=150, help="stop asking for more repeats after so long in all")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(f"no CUDA device: torch {torch.__version__} sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    chosen = list(cases(arguments.once))
    found: list[Found] = []
    end = time.perf_counter() + arguments.seconds
    with use_engine("cuda"):
        for index, case in enumerate(chosen):
            if arguments.once:
                found.append(repeat(case, 1, device, busy=False))
            else:
                left = (end - time.perf_counter()) / (len(chosen) - index)
                start = time.perf_counter()
                repeat(case, 3, device, busy=False)  # compiles
                each = (time.perf_counter() - start) / 3
                count = max(3, min(arguments.repeats, int(left / max(each, 1e-4))))
                found.append(repeat(case, count, device, busy=index % 2 == 1))
                found.append(poisoned(case, device))
            for one in found[-2:]:
                print(f"{one.name:36} {one.repeats:5} {one.seconds:7.2f} s  {one.outcome}", flush=True)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([vars(one) for one in found], file, indent=1)
    bad = [one for one in found if not _good(one)]
    print(f"{len(found) - len(bad)} good, {len(bad)} bad")
    return 1 if bad else 0


def _good(found: Found) -> bool:
    return found.outcome in ("same bits", "its own sequence only") or found.outcome.startswith("left out")


if __name__ == "__main__":
    sys.exit(main())
