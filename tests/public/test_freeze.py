"""freeze, plan_freeze and thaw: the same modules, frozen in place, and back."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm


class Tagger(nn.Module):
    """An LSTM of torch.nn, tied, one of ours, a cell, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(4, 6, 2, dropout=0.3)
        self.tied = self.encoder
        self.ours = torchlstm.LSTM(6, 6)
        self.cell = nn.LSTMCell(6, 5, bias=False)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.ours(self.encoder(x)[0])
        return self.head(self.cell(output[-1])[0])


class Mine(nn.LSTM):
    """Somebody's own LSTM."""


def tagger() -> Tagger:
    torch.manual_seed(1)
    return Tagger()


@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_freeze_in_place_and_back(weights: Any) -> None:
    model = tagger().eval()
    model.encoder.weight_hh_l1.requires_grad_(False)
    model.cell.train()
    before, kept = copy.deepcopy(model), (model.encoder, model.cell)
    assert torchlstm.freeze(model, weights) is model
    kinds: list[type[nn.Module]] = [type(m) for m in (model.encoder, model.ours, model.cell)]
    assert kinds == [torchlstm.FrozenLSTM, torchlstm.FrozenLSTM, torchlstm.FrozenLSTMCell]
    assert (model.encoder, model.cell) == kept
    assert model.tied is model.encoder
    assert (model.encoder.training, model.cell.training) == (False, True)
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]
    assert model.encoder.weights == weights
    assert repr(model.ours) == f"FrozenLSTM(6, 6{'' if weights is None else f', weights={weights}'})"
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=0, atol=1e-2)
    if weights is None:
        assert torchlstm.thaw(model) is model
    else:
        with pytest.warns(UserWarning, match=rf"rounding has left: encoder \({weights}\), ours \({weights}\), cell"):
            torchlstm.thaw(model)
    assert [type(m) for m in (model.encoder, model.ours, model.cell)] == [nn.LSTM, torchlstm.LSTM, nn.LSTMCell]
    assert (model.encoder, model.cell) == kept
    assert list(dict(model.named_parameters())) == list(dict(before.named_parameters()))
    assert not model.encoder.weight_hh_l1.requires_grad
    assert model.encoder.weight_hh_l0.requires_grad
    gaps = [(a - b).abs().max().item() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert max(gaps) == 0 if weights is None else 0 < max(gaps) < 1e-2
    model(x).sum().backward()
    assert model.encoder.weight_ih_l0.grad is not None
    assert "_store" not in vars(model.encoder)


def test_what_was_frozen_again_is_the_same() -> None:
    """Weights that were rounded once round to themselves."""
    for weights in (torch.bfloat16, torch.float16, torch.int8):
        model = torchlstm.freeze(tagger(), weights)
        first = copy.deepcopy(model.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            second = torchlstm.freeze(torchlstm.thaw(model), weights).state_dict()
        assert all(torch.equal(first[key], value) for key, value in second.items())


def test_hooks_stay() -> None:
    model, seen = tagger(), []
    model.encoder.register_forward_hook(lambda *_: seen.append("after"))
    model.encoder.register_forward_pre_hook(lambda *_: seen.append("before"))
    torchlstm.freeze(model, torch.int8)(torch.randn(3, 2, 4))
    assert seen == ["before", "after"]


def test_model_that_is_an_lstm() -> None:
    lstm = nn.LSTM(4, 6)
    assert torchlstm.freeze(lstm, torch.float16) is lstm
    assert type(lstm) is torchlstm.FrozenLSTM


def _with(change: Callable[[Any], Any], **options: Any) -> nn.Module:
    lstm = nn.LSTM(4, 6, **options)
    changed = change(lstm)
    return changed if isinstance(changed, nn.Module) else lstm


def _none(lstm: Any) -> None:
    lstm.bias_ih_l0 = None


def _shape(lstm: Any) -> None:
    lstm.weight_hh_l0 = nn.Parameter(torch.zeros(24, 5))


def _dtype(lstm: Any) -> None:
    lstm.weight_hh_l0 = nn.Parameter(torch.zeros(24, 6, dtype=torch.float64))


def _plain(lstm: Any) -> None:
    del lstm.weight_hh_l0
    lstm.weight_hh_l0 = torch.zeros(24, 6)


def _other(lstm: Any) -> None:
    class Special(nn.Parameter):
        pass

    lstm.weight_hh_l0 = Special(torch.zeros(24, 6))


class Orthogonal(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "subclass": (lambda: Mine(4, 6), r"its class .*Mine is a subclass"),
    "own-subclass": (lambda: torchlstm.cells.WeightDropLSTM(4, 6), "is a subclass"),
    "parametrized": (
        lambda: _with(lambda m: nn.utils.parametrize.register_parametrization(m, "weight_hh_l0", Orthogonal())),
        "it is parametrized",
    ),
    "spectral-norm": (
        lambda: _with(lambda m: nn.utils.spectral_norm(m, "weight_hh_l0")),
        "the parameter weight_hh_l0_orig besides",
    ),
    "lazy": (lambda: torchlstm.LazyLSTM(6), "it is lazy"),
    "own-forward": (lambda: _with(lambda m: vars(m).update(forward=print)), "a forward of its own"),
    "meta": (lambda: nn.LSTM(4, 6, device="meta"), "its weights are on meta.*model.cpu"),
    "half": (lambda: nn.LSTM(4, 6, dtype=torch.float16), "its weights are torch.float16.*model.float"),
    "double": (lambda: nn.LSTMCell(4, 6, dtype=torch.float64), "its weights are torch.float64.*model.float"),
    "mixed": (lambda: _with(_dtype), "its weight_hh_l0 is torch.float64, others are torch.float32"),
    "none": (lambda: _with(_none), "its bias_ih_l0 is None"),
    "no-parameter": (lambda: _with(_plain), "its weight_hh_l0 is no parameter"),
    "shape": (lambda: _with(_shape), r"its weight_hh_l0 has shape \(24, 5\), expected \(24, 6\)"),
    "special": (lambda: _with(_other), "its weight_hh_l0 is a Special"),
    "hook": (lambda: _with(lambda m: m.weight_hh_l0.register_hook(print)), "its weight_hh_l0 has hooks"),
    "frozen": (lambda: torchlstm.FrozenLSTM(4, 6, weights=torch.float16), "frozen with weights=torch.float16 already"),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated", "ignore::FutureWarning")
@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name: str) -> None:
    make, reason = LEFT[name]
    model = nn.Sequential(make(), nn.LSTM(4, 6))
    kind, parameters = type(model[0]), list(model[0].parameters())
    plan = torchlstm.plan_freeze(model, torch.int8)
    assert [candidate.name for candidate in plan] == ["0", "1"]
    assert plan[1].reason is None
    with pytest.warns(UserWarning, match=f"freeze left alone: 0: .*{reason}"):
        torchlstm.freeze(model, torch.int8)
    assert type(model[0]) is kind
    assert all(a is b for a, b in zip(model[0].parameters(), parameters, strict=True))
    assert type(model[1]) is torchlstm.FrozenLSTM


def test_a_reason_may_be_the_format_s() -> None:
    half = nn.LSTM(4, 6, dtype=torch.float16)
    assert torchlstm.plan_freeze(half)[0].reason is None
    assert type(torchlstm.freeze(half)) is torchlstm.FrozenLSTM


def test_frozen_twice() -> None:
    model = torchlstm.freeze(tagger(), torch.int8)
    assert torchlstm.plan_freeze(model, torch.int8) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchlstm.freeze(model, torch.int8)
    assert len(torchlstm.plan_freeze(model)) == 3


def test_plan_changes_nothing() -> None:
    model = tagger()
    assert [(c.name, c.reason) for c in torchlstm.plan_freeze(model, torch.int8)] == [
        ("encoder", None), ("ours", None), ("cell", None)
    ]  # fmt: skip
    assert type(model.encoder) is nn.LSTM
    assert torchlstm.plan_freeze(nn.Linear(2, 2)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_a_weight_that_cannot_be_rounded_changes_nothing(value: float, weights: Any) -> None:
    model = tagger()
    with torch.no_grad():
        model.cell.weight_hh[3, 2] = value
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"cell\.weight_hh: Expected finite weights"):
        torchlstm.freeze(model, weights)
    assert type(model.encoder) is nn.LSTM
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert len(before) == len(dict(model.named_parameters()))


def test_too_large_for_float16_only() -> None:
    lstm = nn.LSTM(4, 6)
    with torch.no_grad():
        lstm.weight_ih_l0[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"weight_ih_l0: .*at most 6.55e\+04 for torch.float16, got one of 1e\+05"):
        torchlstm.freeze(lstm, torch.float16)
    assert type(torchlstm.freeze(lstm, torch.bfloat16)) is torchlstm.FrozenLSTM


def test_rows_of_zeros_and_large_weights() -> None:
    lstm = torchlstm.LSTM(4, 6)
    with torch.no_grad():
        lstm.weight_hh_l0[::2] = 0
        lstm.weight_ih_l0[1] = 1e30
    frozen = torchlstm.freeze(copy.deepcopy(lstm), torch.int8)
    scale = frozen.state_dict()["weight_hh_l0_scale"]
    assert scale[::2].abs().max() == 0
    assert scale[1::2].min() > 0
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x)[0], lstm(x)[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize("weights", ["int8", torch.float32, torch.int32, 8])
def test_unknown_format(weights: Any) -> None:
    for call in (torchlstm.freeze, torchlstm.plan_freeze):
        with pytest.raises(
            ValueError, match=r"Expected weights to be one of None, torch.bfloat16, torch.float16, torch.int8"
        ):
            call(tagger(), weights)
    with pytest.raises(ValueError, match="Expected weights to be one of"):
        torchlstm.FrozenLSTM(4, 6, weights=weights)


def test_constructor() -> None:
    torch.manual_seed(2)
    module = torchlstm.FrozenLSTM(4, 6, 2, True, True, 0.5, True, 3, weights=torch.int8)
    torch.manual_seed(2)
    other = torchlstm.freeze(torchlstm.LSTM(4, 6, 2, True, True, 0.5, True, 3), torch.int8)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert torchlstm.FrozenLSTMCell(4, 6, False, weights=torch.int8).state_dict().keys() == {
        "weight_ih", "weight_ih_scale", "weight_hh", "weight_hh_scale"
    }  # fmt: skip
    assert torchlstm.FrozenLSTM(4, 6, dtype=torch.float64)(torch.randn(2, 4).double())[0].dtype == torch.float64
    with pytest.raises(ValueError, match=r"Expected torch.float32 to be rounded to torch.int8, got torch.float64"):
        torchlstm.FrozenLSTM(4, 6, weights=torch.int8, dtype=torch.float64)


REFUSED: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "meta": (lambda m: m.to("meta"), RuntimeError, "runs on the CPU, and cannot be moved to meta: torchlstm.thaw"),
    "half": (lambda m: m.half(), RuntimeError, "cannot become torch.float16: torchlstm.thaw"),
    "double": (lambda m: m.double(), RuntimeError, "cannot become torch.float64"),
    "to-bfloat16": (lambda m: m.to(torch.bfloat16), RuntimeError, "cannot become torch.bfloat16"),
    "to-empty": (lambda m: m.to_empty(device="cpu"), RuntimeError, "cannot be changed"),
    "reset": (lambda m: m.reset_parameters(), RuntimeError, "its weights are frozen"),
    "read": (lambda m: m.weight_hh_l0, AttributeError, "has no weight_hh_l0: its weights are packed"),
    "write": (lambda m: setattr(m, "weight_hh_l0", None), AttributeError, "weight_hh_l0 is packed and cannot be set"),
    "init": (lambda m: torchlstm.init.forget_bias_(m, 1.0), ValueError, "the LSTM in FrozenLSTM has no biases"),
    "functional": (
        lambda m: torch.func.functional_call(m, {"weight_hh_l0": torch.zeros(24, 6)}, (torch.randn(2, 4),)),
        AttributeError,
        "weight_hh_l0",
    ),
    "other": (lambda m: m.weight_hr_l0, AttributeError, "no attribute 'weight_hr_l0'"),
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_frozen_module_refuses(name: str, weights: Any) -> None:
    call, kind, message = REFUSED[name]
    frozen = torchlstm.freeze(nn.LSTM(4, 6), weights)
    x = torch.randn(3, 4)
    expected = frozen(x)[0]
    with pytest.raises(kind, match=message):
        call(frozen)
    assert torch.equal(frozen(x)[0], expected)


def test_what_changes_nothing_is_allowed() -> None:
    frozen = torchlstm.freeze(nn.LSTM(4, 6), torch.int8)
    x = torch.randn(3, 4)
    expected = frozen(x)[0]
    for same in (frozen.float(), frozen.to("cpu"), frozen.to(torch.float32), frozen.cpu(), frozen.requires_grad_(True)):
        assert same is frozen
        assert torch.equal(frozen(x)[0], expected)
    frozen.zero_grad()
    frozen.flatten_parameters()


def test_swap_and_restore_leave_it_alone() -> None:
    model = torchlstm.freeze(tagger(), torch.int8)
    torchlstm.restore(torchlstm.swap(model))
    assert type(model.encoder) is torchlstm.FrozenLSTM


def test_freezing_in_inference_mode_leaves_what_can_be_trained() -> None:
    model = tagger()
    with torch.inference_mode():
        torchlstm.thaw(torchlstm.freeze(model))
    model(torch.randn(3, 2, 4)).sum().backward()
    assert model.cell.weight_hh.grad is not None


def test_default_device_does_not_matter() -> None:
    lstm = torchlstm.LSTM(4, 6)
    x = torch.randn(3, 4)
    with torch.device("meta"):
        frozen = torchlstm.freeze(copy.deepcopy(lstm), torch.int8)
        frozen.load_state_dict(lstm.state_dict())
        frozen.to("cpu")
    assert frozen(x)[0].device.type == "cpu"
