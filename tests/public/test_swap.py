"""swap, plan_swap and restore: the same modules, another class."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm


class Tagger(nn.Module):
    """A model with an LSTM, a cell, a tied module and a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(4, 6, 2, dropout=0.3, batch_first=True)
        self.tied = self.encoder
        self.cell = nn.LSTMCell(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.encoder(x)
        state = None
        for step in output.unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0])


class Mine(nn.LSTM):
    """Somebody's own LSTM."""


def tagger() -> Tagger:
    torch.manual_seed(1)
    return Tagger()


def test_swap_changes_the_class_and_nothing_else() -> None:
    model = tagger()
    model.cell.eval()
    model.encoder.weight_hh_l1.requires_grad_(False)
    before = dict(model.named_parameters())
    encoder = model.encoder
    assert torchlstm.swap(model) is model
    assert type(model.encoder) is torchlstm.LSTM
    assert type(model.cell) is torchlstm.LSTMCell
    assert model.encoder is encoder
    assert model.tied is encoder
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert not model.encoder.weight_hh_l1.requires_grad
    assert model.encoder.training
    assert not model.cell.training


def test_swapped_model_trains_alike_with_the_optimizer_it_had() -> None:
    theirs = tagger()
    ours = copy.deepcopy(theirs)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (theirs, ours)]
    torch.manual_seed(2)
    x, target = torch.randn(3, 7, 4), torch.randn(3, 2)
    losses: list[list[float]] = []
    for step in range(4):
        if step == 2:
            torchlstm.swap(ours)  # in the middle of a run: its moments stay
        losses.append([])
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    for theirs_loss, ours_loss in losses:
        assert ours_loss == pytest.approx(theirs_loss, rel=1e-5)
    assert losses[0][0] != losses[-1][0]


def test_root_itself() -> None:
    root = nn.LSTM(4, 6)
    assert torchlstm.swap(root) is root
    assert type(root) is torchlstm.LSTM
    assert torchlstm.restore(root) is root
    assert type(root) is nn.LSTM
    cell = nn.LSTMCell(4, 6)
    assert type(torchlstm.swap(cell)) is torchlstm.LSTMCell


def test_hooks_stay() -> None:
    model, calls = tagger(), []
    model.encoder.register_forward_hook(lambda module, *_: calls.append(type(module)))
    model.encoder.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    with_hook = model(torch.randn(3, 7, 4))
    torchlstm.swap(model)
    model.eval()
    assert not torch.equal(with_hook, model(torch.randn(3, 7, 4)))
    torch.testing.assert_close(model(torch.randn(3, 7, 4)), model(torch.randn(3, 7, 4)))
    assert calls == [nn.LSTM, *[torchlstm.LSTM] * 3]


def test_subclasses_are_left_alone_and_named() -> None:
    parametrized = nn.LSTM(4, 6)
    torch.nn.utils.parametrizations.weight_norm(parametrized, "weight_hh_l0")
    patched = nn.LSTM(4, 6)
    patched.forward = patched.forward
    model = nn.ModuleDict({"mine": Mine(4, 6), "normed": parametrized, "patched": patched, "plain": nn.LSTM(4, 6)})
    plan = {candidate.name: candidate.reason for candidate in torchlstm.plan_swap(model)}
    assert list(plan) == ["mine", "normed", "patched", "plain"]
    assert plan["plain"] is None
    assert "Mine is a subclass" in str(plan["mine"])
    assert "parametrized" in str(plan["normed"])
    assert "forward of its own" in str(plan["patched"])
    with pytest.warns(UserWarning, match="swap left alone") as caught:
        torchlstm.swap(model)
    assert len(caught) == 1
    assert all(name in str(caught[0].message) for name in ("mine: ", "normed: ", "patched: "))
    assert "plain" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [type(module) for module in model.values()][::3] == [Mine, torchlstm.LSTM]
    assert type(patched) is nn.LSTM


def test_plan_changes_nothing_and_swap_is_quiet_where_all_goes() -> None:
    model = tagger()
    assert [candidate.name for candidate in torchlstm.plan_swap(model)] == ["encoder", "cell"]
    assert type(model.encoder) is nn.LSTM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchlstm.swap(torchlstm.swap(model))
        torchlstm.swap(nn.Linear(2, 2))


def test_restore_undoes_it() -> None:
    model = tagger().eval()
    x = torch.randn(3, 7, 4)
    expected = model(x)
    torchlstm.swap(model)
    # What happened in between is kept.
    with torch.no_grad():
        model.head.bias.add_(1)
    torchlstm.restore(model)
    assert type(model.encoder) is nn.LSTM
    assert type(model.cell) is nn.LSTMCell
    torch.testing.assert_close(model(x), expected + 1)


def test_restore_leaves_subclasses_of_ours_alone() -> None:
    class Ours(torchlstm.LSTM):
        pass

    model = Ours(4, 6)
    assert type(torchlstm.restore(model)) is Ours


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:.*torch.jit", "ignore:.*quantiz")
def test_script_and_quantize_after_restoring_a_copy() -> None:
    """What wants nn.LSTM itself gets it: the way that docs/swap.md gives."""
    model: Any = torchlstm.swap(nn.Sequential(nn.LSTM(4, 6))).eval()
    x = torch.randn(5, 3, 4)
    twin = torchlstm.restore(copy.deepcopy(model))
    assert type(model[0]) is torchlstm.LSTM
    torch.testing.assert_close(torch.jit.script(twin)(x)[0], model(x)[0])
    symbolic = torch.fx.symbolic_trace(twin)
    torch.testing.assert_close(symbolic(x)[0], model(x)[0])
    quantized = torch.ao.quantization.quantize_dynamic(twin, {nn.LSTM})
    assert type(quantized[0]) is not nn.LSTM
    torch.testing.assert_close(quantized(x)[0], model(x)[0], atol=0.05, rtol=0.1)
