"""The CPU kernel's forward on the weights where they are: one step, and few steps of one or two sequences."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm
from torchlstm.engines.cpu import engine as cpu

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("on_the_cpu_engine")

# T, B, I, H: one step of any batch; then steps on both sides of where packing begins.  Units and terms that are fewer
# than a vector has lanes, fill some, and leave a rest.
SHAPES = [
    (1, 1, 1, 1),
    (1, 2, 5, 3),
    (1, 3, 16, 17),
    (1, 7, 33, 8),
    (1, 26, 70, 70),
    (1, 70, 20, 31),
    (2, 1, 15, 33),
    (2, 2, 31, 1),
    (3, 2, 1, 47),
    (4, 1, 64, 64),
    (5, 2, 69, 33),
    (8, 1, 70, 70),
    (8, 2, 64, 64),
    (9, 2, 64, 64),
    (20, 1, 300, 20),
    (20, 2, 20, 300),
]


def lengths_of(steps: int, batch: int) -> list[int]:
    """Some end early: the first sequence lasts."""
    return [steps, *(max(1, steps - 1 - b % steps) for b in range(1, batch))]


def everything(module: nn.LSTM, x: Tensor, states: tuple[Tensor, Tensor], lengths: list[int] | None) -> list[Tensor]:
    """Results and gradients, with cotangents of their own; and the results of inference."""
    leaves = [t.clone().requires_grad_() for t in (x, *states)]
    pack = nn.utils.rnn.pack_padded_sequence
    given = leaves[0] if lengths is None else pack(leaves[0], torch.tensor(lengths), enforce_sorted=False)
    output, (h_n, c_n) = module(given, tuple(leaves[1:]))
    results = [output if lengths is None else output.data, h_n, c_n]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in results]
    gradients = torch.autograd.grad(results, [*leaves, *module.parameters()], cotangents)
    with torch.no_grad():
        output, (h_n, c_n) = module(given, tuple(leaves[1:]))
    return [t.detach() for t in (*results, *gradients, output if lengths is None else output.data, h_n, c_n)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_nn_computes_it(shape: Any, isa: str, dtype: torch.dtype, threads: Any, monkeypatch: Any) -> None:
    """nn.LSTM in float64: dense and ragged, one direction and two, with and without biases, on one thread and three."""
    steps, batch, features, hidden = shape
    monkeypatch.setattr(cpu, "_isa", isa)
    for directions, bias in ((1, True), (2, True), (2, False)):
        torch.manual_seed(0)
        theirs = nn.LSTM(features, hidden, bias=bias, bidirectional=directions == 2, dtype=torch.float64)
        ours = torchlstm.LSTM(features, hidden, bias=bias, bidirectional=directions == 2, dtype=dtype)
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(steps, batch, features).double()
        states = (torch.randn(directions, batch, hidden).double(), torch.randn(directions, batch, hidden).double())
        for lengths in (None, lengths_of(steps, batch)):
            expected = everything(theirs, x, states, lengths)
            for count in (1, 3):
                threads(count)
                found = everything(ours, x.to(dtype), (states[0].to(dtype), states[1].to(dtype)), lengths)
                for a, b in zip(expected, found, strict=True):
                    scale = max(1.0, a.abs().max().item())
                    tolerance = (1e-11 if dtype == torch.float64 else 2e-5) * scale
                    torch.testing.assert_close(b.double(), a, rtol=0, atol=tolerance)
            threads(1)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize(
    ("shape", "batches"),
    [((1, 70, 40, 33), (1, 2, 3, 4, 5, 7, 13, 25, 49)), ((1, 30, 5, 200), (1, 2, 3, 29)), ((6, 2, 70, 70), (1,))],
    ids=["one-step", "one-step-many-units", "few-steps"],
)
def test_bits_depend_on_neither_batch_nor_threads(
    shape: Any, batches: Any, isa: str, threads: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cpu, "_isa", isa)
    steps, batch, features, hidden = shape
    torch.manual_seed(0)
    module, x = torchlstm.LSTM(features, hidden, bidirectional=True), torch.randn(steps, batch, features)
    threads(1)
    with torch.no_grad():
        expected = module(x)[0]
        for count in (1, 2, 3):
            threads(count)
            for some in (*batches, batch):
                # Calls read the weights of the units by turns from the first to the last and back.
                for _ in range(2):
                    found = module(x[:, :some])[0]
                    assert torch.equal(found, expected[:, :some]), f"{some} sequences, {count} threads"


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("shape", [(1, 9, 7, 40), (3, 2, 20, 40)], ids=str)
def test_not_finite_in_one_row_stays_there(shape: Any, value: float) -> None:
    """Also where a row of weights ends within a vector, and the next row's terms are beside it."""
    steps, batch, features, hidden = shape
    torch.manual_seed(0)
    module, x = torchlstm.LSTM(features, hidden), torch.randn(steps, batch, features)
    poisoned = x.clone()
    poisoned[0, 0, -1] = value
    with torch.no_grad():
        clean, found = module(x)[0], module(poisoned)[0]
    assert torch.equal(found[:, 1:], clean[:, 1:])
    # A weight that is not finite reaches its own unit in the first step, no other.
    with torch.no_grad():
        module.weight_ih_l0[2, -1] = value
        found = module(x)[0]
    others = [unit for unit in range(hidden) if unit != 2]
    assert torch.equal(found[0][:, others], clean[0][:, others])
    assert not torch.equal(found[0][:, 2], clean[0][:, 2])
