"""The demo: a character language model on real text, trained with nn.LSTM and, after `swap`, with torchlstm.

Training is chaotic: two runs that differ by one rounding error drift apart.  So there is a third run, the control:
nn.LSTM with one weight moved by one unit in the last place.  The gap between nn.LSTM and torchlstm is compared with the
gap between nn.LSTM and the control.
"""

import copy
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..explain import explain
from ..lstm import LSTM
from ..swap import swap
from . import frozen
from .progress import progress

STEPS = 150
_BATCH, _LENGTH, _EMBEDDING, _HIDDEN, _DROPOUT = 32, 64, 64, 192, 0.2
_MODULES = (
    *("argparse", "ast", "calendar", "configparser", "csv", "datetime", "difflib", "doctest", "ftplib", "inspect"),
    *("locale", "mailbox", "optparse", "pdb", "pickle", "shutil", "tarfile", "textwrap", "turtle", "zipfile"),
)
# Gaps below this are in the last digits of the loss.
_FLOOR = 1e-6
_FACTOR = 10.0


class CharModel(nn.Module):
    """Predicts logits of the next character; uses torch.nn only."""

    def __init__(self, characters: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, _EMBEDDING)
        self.lstm = nn.LSTM(_EMBEDDING, _HIDDEN, num_layers=2, dropout=dropout)
        self.head = nn.Linear(_HIDDEN, characters)

    def forward(self, text: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """text (T, B) of character indices -> logits (T, B, characters), state."""
        output, state = self.lstm(self.embedding(text), state)
        return self.head(output), state


@dataclass
class Run:
    """One model in training."""

    name: str
    model: CharModel
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=3e-3)

    def step(self, text: Tensor, seed: int) -> None:
        """One step of training on text (T + 1, B)."""
        torch.manual_seed(seed)  # the same dropout masks for every run
        _synchronize(text)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        logits, _ = self.model(text[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), text[1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        _synchronize(text)
        self.seconds += time.perf_counter() - start
        self.losses.append(loss.item())

    @property
    def speed(self) -> float:
        """Characters per second."""
        return len(self.losses) * _BATCH * _LENGTH / self.seconds


def _synchronize(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def load_text() -> str:
    """The source of some of Python's own standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / f"{name}.py" for name in _MODULES] + [library / name / "__init__.py" for name in _MODULES]
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    if not text:
        raise RuntimeError(f"no source of the standard library in {library}")
    return text.encode("ascii", "ignore").decode()


def run(device: str, steps: int, picture: str) -> int:
    """Train, compare, print, draw; returns 0 if the loss curves agree, else 1."""
    text = load_text()
    alphabet = sorted(set(text))
    index = {character: i for i, character in enumerate(alphabet)}
    data = torch.tensor([index[character] for character in text], device=device)
    # cuDNN draws its own dropout masks, which cannot be reproduced.
    dropout = 0.0 if device == "cuda" else _DROPOUT
    torch.manual_seed(666)
    model = CharModel(len(alphabet), dropout).to(device)
    theirs, ours, control = (copy.deepcopy(model) for _ in range(3))
    swap(ours)
    with torch.no_grad():
        weight = control.get_parameter("lstm.weight_hh_l0")
        weight[0, 0] = torch.nextafter(weight[0, 0], weight.new_tensor(2.0))
    runs = [Run("torch.nn", theirs), Run("torchlstm", ours), Run("control", control)]
    print(f"{len(text):,} characters of Python's standard library, alphabet {len(alphabet)}, device {device}")
    print(f"{ours}\n")
    engine = _engine(ours, data[: _LENGTH * _BATCH].view(_LENGTH, _BATCH))
    places = torch.Generator().manual_seed(1)
    for step in progress(range(steps), steps, "training three models"):
        starts = torch.randint(0, len(text) - _LENGTH - 1, (_BATCH,), generator=places)
        batch = torch.stack([data[s : s + _LENGTH + 1] for s in starts.tolist()], dim=1)
        for each in runs[step % 3 :] + runs[: step % 3]:
            each.step(batch, seed=step)
    agreed = _report(runs, engine)
    print("\nthe swapped model frozen, on the CPU, one character at a time:")
    print("\n".join(frozen.rows(ours, data[: frozen.CHARACTERS + 1])))
    print(f"\nwhat the swapped model writes:\n{_sample(ours, index, alphabet, device)}\n")
    _draw(runs, picture)
    return 0 if agreed else 1


def _engine(model: CharModel, text: Tensor) -> str:
    assert isinstance(model.lstm, LSTM)
    with torch.no_grad():
        decisions = explain(model.lstm, model.embedding(text)).decisions
    return ", ".join(sorted({str(decision.engine) for decision in decisions}))


def _gaps(run: Run, other: Run) -> list[float]:
    return [abs(a - b) for a, b in zip(run.losses, other.losses, strict=True)]


def _report(runs: list[Run], engine: str) -> bool:
    theirs, ours, control = runs
    gaps, noise = _gaps(ours, theirs), _gaps(control, theirs)
    print(f"{'step':>6} {'loss torch.nn':>14} {'loss torchlstm':>15} {'gap':>9} {'control gap':>12}")
    count = len(gaps)
    for step in sorted({0, 1, 2, *(count * i // 10 - 1 for i in range(1, 11))} & set(range(count))):
        losses = f"{theirs.losses[step]:14.6f} {ours.losses[step]:15.6f}"
        print(f"{step + 1:6} {losses} {gaps[step]:9.1e} {noise[step]:12.1e}")
    bound = _FACTOR * max(noise) + _FLOOR
    agreed = max(gaps) <= bound
    verdict = "as close as rounding allows" if agreed else "FURTHER APART than rounding explains"
    print(f"\nlargest gap {max(gaps):.1e}, of the control {max(noise):.1e}: {verdict}")
    print(f"characters per second: torch.nn {theirs.speed:,.0f}, torchlstm {ours.speed:,.0f} (engine: {engine}), "
          f"{ours.speed / theirs.speed:.2f}x as fast")  # fmt: skip
    return agreed


@torch.no_grad()
def _sample(model: CharModel, index: dict[str, int], alphabet: list[str], device: str, length: int = 300) -> str:
    """Text written by the model, one character at a time, its state carried along."""
    model.eval()
    generator = torch.Generator().manual_seed(3)
    start = "def "
    text = torch.tensor([index[character] for character in start], device=device)[:, None]
    state, written = None, start
    for _ in range(length):
        logits, state = model(text, state)
        chances = (logits[-1, 0].float().cpu() / 0.7).softmax(-1)
        text = torch.multinomial(chances, 1, generator=generator).to(device)[:, None]
        written += alphabet[int(text)]
    return written


def _draw(runs: list[Run], picture: str) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    theirs, ours, control = runs
    figure, (losses, gaps, speeds) = pyplot.subplots(1, 3, figsize=(13, 3.8))
    losses.plot(theirs.losses, label=theirs.name, linewidth=3, alpha=0.5)
    losses.plot(ours.losses, label=ours.name, linewidth=1)
    losses.set(xlabel="step", ylabel="loss", title="two loss curves")
    losses.legend()
    for other in (ours, control):
        gaps.semilogy([max(gap, 1e-9) for gap in _gaps(other, theirs)], label=f"{other.name} to {theirs.name}")
    gaps.set(xlabel="step", ylabel="gap of the losses", title="their gap, and a control's")
    gaps.legend()
    speeds.bar([theirs.name, ours.name], [theirs.speed, ours.speed], color=["C0", "C1"])
    speeds.set(ylabel="characters per second", title="speed")
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    print(f"picture: {picture}")
