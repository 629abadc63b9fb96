"""Initialisation: the values asked for, in every layer and direction, and nothing else touched."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import torchlstm
from torchlstm import cells
from torchlstm import init as initialise

OPTIONS: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "torchlstm": lambda: torchlstm.LSTM(3, 6, proj_size=4, **OPTIONS),
    "torch.nn": lambda: nn.LSTM(3, 6, **OPTIONS),
    "torchlstm-cell": lambda: torchlstm.LSTMCell(3, 6),
    "torch.nn-cell": lambda: nn.LSTMCell(3, 6),
    "peepholes": lambda: cells.PeepholeLSTM(3, 6, **OPTIONS),
    "model": lambda: nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 6), nn.Linear(6, 6)),
    "half": lambda: torchlstm.LSTM(3, 6, dtype=torch.bfloat16),
}
every_module = pytest.mark.parametrize("name", MODULES)


def parts(module: nn.Module, kind: str) -> list[Tensor]:
    """The parameters of one kind, one for each layer and direction."""
    return [value.detach() for name, value in module.named_parameters() if kind in name]


def changed(module: nn.Module, function: Callable[[nn.Module], Any]) -> list[str]:
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    assert function(module) is module
    assert all(value.requires_grad for value in module.parameters())
    return [name for name, value in module.named_parameters() if not torch.equal(value, before[name])]


@every_module
def test_forget_bias(name: str) -> None:
    module = MODULES[name]()
    before = [torch.cat([bias[:6], bias[12:]]) for bias in parts(module, "bias_")]
    names = changed(module, lambda module: initialise.forget_bias_(module, 1.5))
    assert names
    assert all("bias_" in name for name in names)
    sums = [a + b for a, b in zip(parts(module, "bias_ih"), parts(module, "bias_hh"), strict=True)]
    assert len(sums) == len(parts(module, "weight_hh"))
    assert all(torch.equal(total[6:12], torch.full_like(total[6:12], 1.5)) for total in sums)
    after = [torch.cat([bias[:6], bias[12:]]) for bias in parts(module, "bias_")]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@every_module
def test_orthogonal(name: str) -> None:
    module = MODULES[name]()
    names = changed(module, lambda module: initialise.orthogonal_(module, gain=2.0))
    assert names == [name for name, _ in module.named_parameters() if "weight_hh" in name]
    for weight in parts(module, "weight_hh"):
        gates = weight.float().chunk(4)
        for gate in gates:
            tolerance = 0.1 if weight.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(gate.t() @ gate, 4 * torch.eye(gate.shape[1]), rtol=0, atol=tolerance)
        assert not torch.equal(gates[0], gates[1])


@every_module
def test_chrono(name: str) -> None:
    module = MODULES[name]()
    before = [bias[12:].clone() for bias in parts(module, "bias_")]
    names = changed(module, lambda module: initialise.chrono_(module, 100))
    assert all("bias_" in name for name in names)
    for b_ih, b_hh in zip(parts(module, "bias_ih"), parts(module, "bias_hh"), strict=True):
        total = (b_ih + b_hh).float()
        assert torch.equal(total[:6], -total[6:12])
        assert total[6:12].min() >= 0
        assert total[6:12].max() <= math.log(99) + 0.02
        assert total[6:12].unique().numel() > 1
    assert all(torch.equal(bias[12:], old) for bias, old in zip(parts(module, "bias_"), before, strict=True))


def test_chrono_is_log_uniform() -> None:
    """u = exp(b_f) is uniform: its quartiles."""
    torch.manual_seed(0)
    u = initialise.chrono_(torchlstm.LSTM(1, 20_000 // 4), 41).bias_ih_l0.detach()[5000:10000].exp()
    quartiles = torch.quantile(u, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(quartiles, torch.tensor([1.0, 10.75, 20.5, 30.25, 40.0]), rtol=0, atol=0.8)


def test_chrono_of_two_steps() -> None:
    """The shortest that there is: u is 1."""
    module = initialise.chrono_(torchlstm.LSTM(3, 6), 2)
    assert not (module.bias_ih_l0 + module.bias_hh_l0)[:12].any()


def test_layer_norm_and_one_bias() -> None:
    stack = torchlstm.LayerNormLSTM(3, 6, **OPTIONS)
    initialise.orthogonal_(initialise.forget_bias_(stack, 2.0))
    for bias in (cell.bias for cell in stack.cells):
        assert bias.tolist() == [0.0] * 6 + [2.0] * 6 + [0.0] * 12


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "none": (lambda: initialise.forget_bias_(nn.Linear(2, 2), 1), "no LSTM in Linear"),
    "gru": (lambda: initialise.orthogonal_(nn.GRU(2, 2)), "no LSTM in GRU"),
    "gru-cell": (lambda: initialise.orthogonal_(nn.GRUCell(2, 2)), "no LSTM in GRUCell"),
    "three-gates": (lambda: initialise.forget_bias_(cells.CoupledLSTM(2, 2), 1), "no LSTM in CoupledLSTM"),
    "no-biases": (lambda: initialise.chrono_(nn.LSTM(2, 2, bias=False), 9), "LSTM in LSTM has no biases"),
    "too-short": (lambda: initialise.chrono_(nn.LSTM(2, 2), 1.9), "at least 2 steps, got 1.9"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


LEARNED: dict[str, Callable[..., nn.Module]] = {
    "torchlstm": torchlstm.LSTM,
    "torch.nn": nn.LSTM,
    "stack": partial(cells.ClippedLSTM, cell_clip=0.4),
}


@pytest.mark.parametrize("form", ["dense", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize("name", LEARNED)
def test_learned_state(name: str, form: str) -> None:
    """As an hx that is a leaf of its own; its gradient is the sum over the sequences."""
    module = LEARNED[name](4, 5, proj_size=3, batch_first=form == "batch_first", dtype=torch.float64, **OPTIONS)
    learned = initialise.LearnedState(module)
    assert [tuple(tensor.shape) for tensor in learned.initial] == [(4, 3), (4, 5)]
    x = torch.randn(3, 4, dtype=torch.float64) if form == "unbatched" else torch.randn(3, 2, 4, dtype=torch.float64)
    input: Any = pack_padded_sequence(x, torch.tensor([1, 3]), enforce_sorted=False) if form == "packed" else x

    def flat(result: Any) -> list[Tensor]:
        output, states = result
        return [output if isinstance(output, Tensor) else output.data, *states]

    torch.testing.assert_close(flat(learned(input)), flat(module(input)))  # it begins at zero
    for tensor in learned.initial:
        tensor.data.normal_()
    batch = {"unbatched": (), "batch_first": (3,)}.get(form, (2,))
    hx = tuple(
        (tensor if not batch else tensor.detach()[:, None].repeat(1, *batch, 1)).detach().requires_grad_()
        for tensor in learned.initial
    )
    found, expected = flat(learned(input)), flat(module(input, hx))
    torch.testing.assert_close(found, expected)
    cotangents = [torch.randn_like(tensor) for tensor in found]
    mine = torch.autograd.grad(found, list(learned.initial), cotangents)
    theirs = torch.autograd.grad(expected, hx, cotangents)
    torch.testing.assert_close(mine, tuple(grad.sum(1) if batch else grad for grad in theirs))
    other = tuple(torch.randn_like(tensor) for tensor in hx)
    torch.testing.assert_close(flat(learned(input, other)), flat(module(input, other)))


def test_learned_state_of_something_else() -> None:
    gru = nn.GRU(4, 5)
    with pytest.raises(TypeError, match="states of a GRU are not known: give their sizes"):
        initialise.LearnedState(gru)
    learned = initialise.LearnedState(torchlstm.LSTM(4, 5, device="meta"), sizes=(5, 5))
    assert all(tensor.is_meta for tensor in learned.initial)
    assert {name for name, _ in learned.named_parameters() if name.startswith("initial")} == {"initial.0", "initial.1"}
