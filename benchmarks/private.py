"""Per-sample gradients: a step with opacus over torchlstm and over its own DPLSTM, vmap(grad), and a plain step."""

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import torchlstm
from torchlstm.parity.timing import interleave

from .calls import Call, arguments, module_of, tensors
from .memory import peak_of
from .workloads import WORKLOADS, Workload

NAMES = (
    "T128-B16-I128-H256",
    "T100-B32-I256-H512",
    "T512-B8-I128-H128",
    "T50-B256-I64-H128",
    "T37-B5-I53-H77",
    "bi2-T100-B16-I128-H256",
    "ragged-T200-B64-I128-H256",
)
WHO = ("plain", "ours", "ghost", "vmap", "dplstm")


def step_of(workload: Workload, who: str) -> Call:
    """One forward and backward that leaves or returns the gradients of each sample; in the plain step, of the batch."""
    import opacus.grad_sample as gs
    from opacus.layers import DPLSTM

    import torchlstm.integrations.opacus  # noqa: F401 - for its effect: opacus then knows LSTM

    inputs = workload.inputs().to(torch.device("cpu"), workload.case.dtype)
    input, _, _ = arguments(inputs, grad=False)
    module = module_of(workload, who != "dplstm")
    if who == "dplstm":
        theirs = DPLSTM(workload.case.input_size, workload.case.hidden_size, **workload.case.options)
        theirs.load_state_dict(module.state_dict())
        module = theirs
    module.train()
    if who == "vmap":
        return _vmapped(module, input)
    run: Any = module
    if who != "plain":
        wrap = gs.GradSampleModuleFastGradientClipping if who == "ghost" else gs.GradSampleModule
        run = wrap(module, loss_reduction="sum")

    def step() -> tuple[Tensor, ...]:
        for weight in module.parameters():
            weight.grad = weight.grad_sample = None  # type: ignore[attr-defined]  # opacus's own attribute
        seen = tensors(run(input))
        loss: Tensor = torch.stack([(seen[name] * inputs.cotangents[name]).sum() for name in seen]).sum()
        loss.backward(retain_graph=who == "ghost")
        if who == "ghost":
            # The second backward is that of the clipped loss; the factors do not change its work.
            run.disable_hooks()
            module.zero_grad()
            loss.backward()
            run.enable_hooks()
        return tuple(weight.grad for weight in module.parameters() if weight.grad is not None)

    return step


def _vmapped(module: nn.Module, input: Tensor) -> Call:
    """The gradients of each sample by torch.func, for dense batches."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        output, (h_n, c_n) = functional_call(module, weights, (sample.unsqueeze(1),))
        total: Tensor = output.pow(2).sum() + h_n.sum() + c_n.sum()
        return total

    each = vmap(grad(loss), in_dims=(None, 1))
    return lambda: each(weights, input)


def row(name: str, threads: int, seconds: float, quick: bool) -> dict[str, float | None]:
    """The figures of one workload: milliseconds, and peak MB of a step."""
    workload = WORKLOADS[name].shrunk() if quick else WORKLOADS[name]
    ours, found = step_of(workload, "ours"), dict[str, float | None]()
    for who in WHO:
        if who == "ours" or (who == "vmap" and workload.lengths is not None):
            continue
        pairs = interleave(step_of(workload, who), ours, seconds=seconds, least=3 if quick else 5)
        found[who], found["ours"] = 1e3 * pairs.first, 1e3 * pairs.second
        found[f"{who}/ours"] = pairs.ratio
    for who in () if quick else ("plain", "ours", "ghost", "dplstm"):
        command = [sys.executable, "-m", "benchmarks.private", "--peak", who, "--only", name, "--threads", str(threads)]
        done = subprocess.run(
            command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True, timeout=300
        )
        found[f"{who} MB"] = json.loads(done.stdout)
    return found


def table(rows: dict[str, dict[str, float | None]]) -> str:
    """The rows in Markdown."""

    def show(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    heads = (
        "workload", "plain ms", "ours ms", "ghost ms", "vmap ms", "DPLSTM ms", "ours/plain", "vmap/plain",
        "DPLSTM/ours", "plain MB", "ours MB", "ghost MB", "DPLSTM MB",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name, found in rows.items():
        plain, vmapped = found["plain"], found.get("vmap")
        assert plain
        cells = [found.get(who) for who in ("plain", "ours", "ghost", "vmap", "dplstm")]
        cells += [1 / (found["plain/ours"] or 1), vmapped and vmapped / plain, found["dplstm/ours"]]
        cells += [found.get(f"{who} MB") for who in ("plain", "ours", "ghost", "dplstm")]
        lines.append("| " + " | ".join([name, *map(show, cells)]) + " |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> int:
    """Measure and print a table, or with --peak one figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private", description=__doc__)
    parser.add_argument("--only", help="names of workloads, separated by commas", default=",".join(NAMES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="of each comparison")
    parser.add_argument("--quick", action="store_true", help="shrunk workloads, no memory: does it run?")
    parser.add_argument("--save", help="a file for the figures, in JSON")
    parser.add_argument("--peak", choices=WHO, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # on hooks of modules whose input needs no gradient
    names = options.only.split(",")
    if options.peak:
        small = WORKLOADS[names[0]].shrunk()
        step_of(small, options.peak)()  # what a first call loads and sets up is not the step's
        print(json.dumps(peak_of(step_of(WORKLOADS[names[0]], options.peak), "cpu")))
        return 0
    rows = {name: row(name, options.threads, options.seconds, options.quick) for name in names}
    print(f"torchlstm {torchlstm.__version__} against torch {torch.__version__}, {options.threads} threads\n")
    print(table(rows))
    if options.save:
        Path(options.save).write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
