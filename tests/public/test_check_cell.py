"""`check_cell` passes good cells and catches every cell that is broken in one small way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from own_cells import GRUCell, OneStep, Split
from torch import Tensor, nn

import torchlstm
from torchlstm.testing import check_cell

pytestmark = pytest.mark.usefixtures("one_thread")


GOOD: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "one-step": (OneStep, {}),
    "split": (Split, {}),
    "one-state": (GRUCell, {}),
    "torch.nn": (nn.LSTMCell, {}),
    "torch.nn-nobias": (nn.LSTMCell, {"bias": False}),
    "torchlstm": (torchlstm.LSTMCell, {}),
}


@pytest.mark.parametrize("name", GOOD)
def test_check_cell_passes_a_good_cell(name: str) -> None:
    cell, options = GOOD[name]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check_cell(cell, **options)
    assert torch.equal(torch.get_rng_state(), before)


class MixesRows(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        return h - 1e-3 * h.mean(0), c


class MixesRowsInTraining(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        return (h - 1e-3 * h.mean(0) if self.training else h), c


class MixesSteps(OneStep):
    def input_part(self, x: Tensor) -> Tensor:
        return x - 1e-3 * x.mean(0)


class KeepsState(OneStep):
    kept: Any = 0.0

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        h = h + 1e-3 * self.kept
        self.kept = h.detach().mean()
        return h, c


class Counts(OneStep):
    steps = 0

    def forward(self, x: Tensor, state: Any) -> Any:
        self.steps += 1
        h, c = super().forward(x, state)
        return (h, c) if self.steps % 5 else (h, c + 1e-3)


class WritesIntoItsState(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        state[1].copy_(c)
        return h, state[1]


class WritesIntoItsInput(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        return super().forward(x.mul_(0.5), state)


class Detaches(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        return super().forward(x, (state[0], state[1].detach()))


class ClampsData(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        c.data.clamp_(-0.1, 0.1)
        return h, c


class DrawsInEval(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        return h, c + 1e-3 * torch.randn_like(c)


class DrawsFromElsewhere(OneStep):
    generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        return h, c + 1e-3 * torch.randn(c.shape, generator=self.generator, dtype=c.dtype) * self.training


class WrongSize(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, (state[0], state[1][:, :5]))
        return h, torch.cat([c, c], -1)


class AlwaysDouble(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, (state[0], state[1].to(x.dtype)))
        return h, c.double()


class Double(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        h, c = super().forward(x, state)
        return h.double(), c


BROKEN = {
    MixesRows: r"MixesRows \(1 layers, one direction, dense, no hx\): output differs .* by \d",
    MixesRowsInTraining: "depends on other sequences of the batch",
    MixesSteps: r"MixesSteps \(1 layers, one direction, dense.* output differs",
    KeepsState: "KeepsState: in eval mode a second call gives another result",
    Counts: "Counts",
    WritesIntoItsState: "writes into its input or its state",
    WritesIntoItsInput: "writes into its input or its state",
    Detaches: "Detaches: gradients differ from finite differences",
    ClampsData: "ClampsData: gradients differ from finite differences",
    DrawsInEval: "DrawsInEval: in eval mode a second call",
    DrawsFromElsewhere: "DrawsFromElsewhere: in training mode the same seed gives other results",
    WrongSize: "a state of size 5 became one of size 10",
    AlwaysDouble: r"AlwaysDouble: from float32 came torch\.float64",
    Double: "Double fails when input, state and parameters are float32",
}


@pytest.mark.parametrize("cell", BROKEN, ids=lambda cell: cell.__name__)
def test_check_cell_catches(cell: type[nn.Module]) -> None:
    with pytest.raises(AssertionError, match=BROKEN[cell]):
        check_cell(cell)


def test_check_cell_catches_a_broken_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its truth is no part of what it checks: a stack that forgets the first state of a reverse direction is seen."""
    from torchlstm.cells import stack

    real = stack._run

    def run(cell: Any, x: Any, rows: Any, state: Any, reverse: bool) -> Any:
        return real(cell, x, rows, [0.999 * tensor for tensor in state] if reverse else state, reverse)

    monkeypatch.setattr(stack, "_run", run)
    with pytest.raises(AssertionError, match=r"OneStep \(1 layers, two directions, dense, given hx\): output differs"):
        check_cell(OneStep)
