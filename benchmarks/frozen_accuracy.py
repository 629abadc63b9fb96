"""Errors of frozen LSTMs and of torch.ao's against float64, and the loss of the demo's model in each format.

    python -m benchmarks.frozen_accuracy --save benchmarks/results/frozen-accuracy.json

An error is the absolute error of the output over all steps: its mean, and its largest.  Everything is seeded.
"""

import argparse
import copy
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import torchlstm
from torchlstm.command import demo
from torchlstm.command.progress import progress

from .environment import environment
from .frozen import title
from .report import geometric_mean, markdown_table
from .rivals import FORMATS, freeze, torch_ao

HIDDEN = (64, 128, 256, 512, 1024)
STEPS = (1, 100, 1000)
# A single step has few numbers, so more of them are drawn.
_SEEDS = {1: (0, 1, 2, 3), 100: (0, 1), 1000: (0,)}
_BATCH = 4

# The factor on nn.LSTM's own weights with which most gates are near 0 or 1, and cells at +-1 and beyond.
_SATURATING = 6.0

# Training steps of the demo's model, and the share of the text that is held out.
_TRAINING = 400
_TEXT, _TEXTS = 64, 32  # steps and batch
_HELD_OUT = 0.1

# Bounds on our error over torch.ao's: our format, theirs, the largest allowed ratio.
BOUNDS = (("int8", "ao-qint8", 0.5), ("float16", "ao-float16", 1.0), ("bfloat16", "ao-float16", 8.0))

_AO = {"ao-float16": torch.float16, "ao-qint8": torch.qint8}
NAMES = ("nn", *FORMATS, *_AO)


@dataclass(frozen=True)
class Case:
    """One module and one call of it: where the weights come from, H, T, and the seed of weights and input."""

    weights: str
    hidden: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Error:
    """The absolute error of an output against float64."""

    mean: float
    largest: float


def lower(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of a torch.nn model with its LSTMs in the format that one of NAMES says."""
    model = copy.deepcopy(model).eval()
    if name == "nn":
        return model
    return torch_ao(model, _AO[name]) if name in _AO else freeze(model, FORMATS[name])


@torch.no_grad()
def errors(lstm: nn.LSTM, x: Tensor, hx: tuple[Tensor, Tensor]) -> dict[str, Error]:
    """The error of each of NAMES on x (T, B, I) and states (L, B, H)."""
    model = nn.Sequential(lstm).eval()
    truth = copy.deepcopy(lstm).double()(x.double(), (hx[0].double(), hx[1].double()))[0]
    found = {}
    for name in NAMES:
        [module] = lower(model, name).children()
        gap = (module(x, hx)[0].double() - truth).abs()
        found[name] = Error(gap.mean().item(), gap.max().item())
    return found


def _drawn(case: Case) -> dict[str, Error]:
    """Return errors with random states, on weights as nn.LSTM draws them or a multiple of them."""
    torch.manual_seed(1000 * case.hidden + case.seed)
    lstm = nn.LSTM(case.hidden, case.hidden)
    if case.weights == "saturating":
        with torch.no_grad():
            for parameter in lstm.parameters():
                parameter.mul_(_SATURATING)
    x = torch.randn(case.steps, _BATCH, case.hidden)
    return errors(lstm, x, (torch.randn(1, _BATCH, case.hidden).tanh(), torch.randn(1, _BATCH, case.hidden)))


class Trained:
    """The demo's model after some training steps on the first part of its text."""

    def __init__(self, steps: int) -> None:
        text = demo.load_text()
        alphabet = sorted(set(text))
        index = {character: i for i, character in enumerate(alphabet)}
        data = torch.tensor([index[character] for character in text])
        held = int(len(data) * (1 - _HELD_OUT))
        self.rest = data[held:]
        torch.manual_seed(666)
        self.model = demo.CharModel(len(alphabet), dropout=0.0)
        run = demo.Run("trained", torchlstm.swap(self.model))
        places = torch.Generator().manual_seed(1)
        for step in progress(range(steps), steps, "training the demo's model"):
            starts = torch.randint(0, held - _TEXT - 1, (_TEXTS,), generator=places)
            run.step(torch.stack([data[s : s + _TEXT + 1] for s in starts.tolist()], dim=1), seed=step)
        torchlstm.restore(self.model)
        self.model.eval()

    def batch(self, steps: int, batch: int, seed: int) -> Tensor:
        """Held-out text (steps, batch)."""
        places = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, len(self.rest) - steps, (batch,), generator=places)
        return torch.stack([self.rest[s : s + steps] for s in starts.tolist()], dim=1)

    @torch.no_grad()
    def errors(self, case: Case) -> dict[str, Error]:
        """Return the LSTM's errors on held-out text, which starts from the states that earlier text left."""
        _, hx = self.model(self.batch(50, _BATCH, 100 + case.seed))
        return errors(self.model.lstm, self.model.embedding(self.batch(case.steps, _BATCH, case.seed)), hx)

    @torch.no_grad()
    def loss(self, name: str, steps: int) -> dict[str, float]:
        """Bits per character on held-out text, and the bytes of the LSTM's file."""
        model = lower(self.model, name)
        text = self.batch(steps + 1, 32, 7)
        logits, _ = model(text[:-1])
        bits = nn.functional.cross_entropy(logits.flatten(0, 1), text[1:].flatten()).item() / math.log(2)
        file = BytesIO()
        torch.save(model.get_submodule("lstm").state_dict(), file)
        return {"bits": bits, "bytes": len(file.getvalue())}


def table(rows: list[dict[str, Any]], what: str) -> str:
    """The mean or the largest errors in Markdown, over the seeds the mean of means or the largest of all."""
    cells = []
    for weights, hidden, steps in dict.fromkeys((r["weights"], r["hidden"], r["steps"]) for r in rows):
        same = [r for r in rows if (r["weights"], r["hidden"], r["steps"]) == (weights, hidden, steps)]
        found = {name: _over([r["errors"][name][what] for r in same], what) for name in NAMES}
        cells.append([weights, str(hidden), str(steps), *(f"{found[name]:.1e}" for name in NAMES)])
    return markdown_table(["weights", "H", "T", *NAMES], cells, 1)


def _over(values: list[float], what: str) -> float:
    return max(values) if what == "largest" else sum(values) / len(values)


def judged(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each bound on each kind of weights: our error over torch.ao's, its mean, its largest, and that case.

    A bound is on the mean error, by the geometric mean over the cases, to two digits.  Two formats that differ only in
    bits of the significand scatter around their ratio from case to case, and the largest error is a single number.
    """
    for ours, theirs, most in BOUNDS:
        for weights in dict.fromkeys(row["weights"] for row in rows):
            for what in ("mean", "largest"):
                ratios = {
                    f"H{row['hidden']}-T{row['steps']}-seed{row['seed']}": row["errors"][ours][what]
                    / row["errors"][theirs][what]
                    for row in rows
                    if row["weights"] == weights
                }
                worst, mean = max(ratios, key=ratios.__getitem__), geometric_mean(list(ratios.values()))
                yield {"ours": ours, "theirs": theirs, "weights": weights, "what": what, "at_most": most,
                       "ratio": mean, "largest": ratios[worst], "of": worst, "cases": len(ratios),
                       "holds": float(f"{mean:.2g}") <= most if what == "mean" else None}  # fmt: skip


def main(given: list[str] | None = None) -> int:
    """Measure, and print the tables as Markdown; 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frozen_accuracy", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--save", metavar="FILE", help="write the figures here, in JSON")
    options = parser.parse_args(given)
    hidden, steps = ((8,), (1, 5)) if options.quick else (HIDDEN, STEPS)
    drawn = [(t, s) for t in steps for s in ((0,) if options.quick else _SEEDS[t])]
    trained = Trained(2 if options.quick else _TRAINING)
    cases = [Case(w, h, t, s) for w in ("random", "saturating") for h in hidden for t, s in drawn]
    cases += [Case("trained", trained.model.lstm.hidden_size, t, s) for t, s in drawn]
    rows = []
    for case in progress(cases, len(cases), "errors"):
        found = trained.errors(case) if case.weights == "trained" else _drawn(case)
        rows.append(asdict(case) | {"errors": {name: asdict(error) for name, error in found.items()}})
    losses = {name: trained.loss(name, 20 if options.quick else 500) for name in NAMES}
    bounds, place = list(judged(rows)), environment("cpu")
    print(title(place) + ("; QUICK: the figures say nothing" if options.quick else ""))
    for what in ("mean", "largest"):
        print(f"\n{what.capitalize()} error of the output:\n\n{table(rows, what)}")
    print("\nThe demo's model:\n\n" + _losses(losses))
    print("\nOur errors over torch.ao's:\n\n" + _bounds(bounds))
    if options.save:
        record = {"environment": place, "rows": rows, "losses": losses, "bounds": bounds}
        Path(options.save).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any(each["holds"] is False for each in bounds) and not options.quick else 0


def _losses(losses: dict[str, dict[str, float]]) -> str:
    base = losses["nn"]["bits"]
    cells = [[name, f"{loss['bits']:.5f}", f"{loss['bits'] - base:+.5f}", f"{loss['bytes'] / 1e6:.2f}"]
             for name, loss in losses.items()]  # fmt: skip
    return markdown_table(["weights", "bits per character", "more than nn", "MB of the LSTM's file"], cells, 1)


def _bounds(bounds: list[dict[str, Any]]) -> str:
    cells = [[f"{b['ours']} / {b['theirs']}", b["weights"], b["what"], {None: "", True: "yes", False: "NO"}[b["holds"]],
              f"{b['ratio']:.2f}", f"{b['at_most']:g}", f"{b['largest']:.2f}", b["of"]] for b in bounds]  # fmt: skip
    return markdown_table(
        ["errors", "weights", "of", "holds", "geometric mean", "bound", "largest ratio", "of case"], cells, 4
    )


if __name__ == "__main__":
    sys.exit(main())
