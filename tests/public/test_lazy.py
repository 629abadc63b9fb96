"""LazyLSTM: no input_size until the first input, then a plain LSTM with the draws of one made at that moment."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.rnn import pack_sequence

import torchlstm

F, H = 5, 6

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3, "dropout": 0.25, "batch_first": True},
    "projected": {"proj_size": 2, "bias": False, "checkpoint_every": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 3, "dtype": torch.float64, "batch_first": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def jagged() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(3, F), torch.randn(1, F)], layout=torch.jagged)


FORMS: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "dense": lambda: ((torch.randn(3, 2, F),), {}),
    "unbatched": lambda: ((torch.randn(3, F),), {}),
    "states": lambda: ((torch.randn(3, 2, F), (torch.randn(1, 2, H), torch.randn(1, 2, H))), {}),
    "by-name": lambda: ((), {"input": torch.randn(3, 2, F)}),
    "lengths": lambda: ((torch.randn(3, 2, F),), {"lengths": [3, 1]}),
    "packed": lambda: ((pack_sequence([torch.randn(1, F), torch.randn(3, F)], enforce_sorted=False),), {}),
    "jagged": lambda: ((jagged(),), {}),
}


def same_parameters(mine: nn.Module, other: nn.Module) -> bool:
    pairs = zip(mine.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def called(lazy: Any, dtype: torch.dtype = torch.float32) -> Any:
    lazy(torch.randn(3, 2, F, dtype=dtype))
    return lazy


@every_option
def test_first_call_makes_an_lstm_with_the_draws_of_that_moment(options: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    lazy: Any = torchlstm.LazyLSTM(H, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert lazy.input_size == 0
    assert all(is_lazy(weight) for weight in lazy.parameters())
    names = list(lazy.state_dict())
    assert repr(lazy) == repr(torchlstm.LSTM(F, H, **options)).replace("LSTM(5, 6", "LazyLSTM(6")
    weights = list(lazy.parameters())
    x = torch.randn(3, 2, F, dtype=options.get("dtype"))
    torch.manual_seed(7)
    plain: Any = torchlstm.LSTM(F, H, **options)
    expected = plain(x)
    torch.manual_seed(7)
    found = lazy(x)
    assert type(lazy) is torchlstm.LSTM
    assert torch.equal(found[0], expected[0])
    assert same_parameters(lazy, plain)
    assert list(lazy.state_dict()) == names
    assert repr(lazy) == repr(plain)
    assert set(vars(lazy)) == set(vars(plain))
    assert not lazy._forward_pre_hooks
    assert not lazy._load_state_dict_pre_hooks
    # The parameters are the objects that they were, wherever RNNBase keeps them.
    assert all(a is b for a, b in zip(lazy.parameters(), weights, strict=True))
    assert all(a is b for a, b in zip(lazy._flat_weights, weights, strict=True))
    assert all(ref() is weight for ref, weight in zip(lazy._flat_weight_refs, weights, strict=True))
    assert [[tuple(w.shape) for w in each] for each in lazy.all_weights] == [
        [tuple(w.shape) for w in each] for each in plain.all_weights
    ]
    lazy.flatten_parameters()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input(form: str) -> None:
    args, keywords = FORMS[form]()
    lazy: Any = torchlstm.LazyLSTM(H)
    output, (h_n, c_n) = lazy(*args, **keywords)
    plain = torchlstm.LSTM(F, H)
    plain.load_state_dict(lazy.state_dict())
    expected, state = plain(*args, **keywords)
    rows = (lambda y: y.values()) if form == "jagged" else (lambda y: y.data)
    assert torch.equal(rows(output), rows(expected))
    assert torch.equal(h_n, state[0])
    (rows(output).sum() + c_n.sum()).backward()
    assert lazy.weight_ih_l0.grad.abs().sum() > 0


def test_training_as_nn_lstm_from_the_same_seed() -> None:
    x = torch.randn(4, 3, F)
    torch.manual_seed(3)
    theirs = nn.LSTM(F, H, 2)
    lazy: Any = torchlstm.LazyLSTM(H, 2)
    torch.manual_seed(3)
    lazy(x)
    for module in (theirs, lazy):
        output, (h_n, c_n) = module(x)
        (output.square().sum() + (h_n * c_n).sum()).backward()
    for mine, other in zip(lazy.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_trace_is_a_first_call() -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    trace = lazy.trace(torch.randn(3, 2, F), lengths=[2, 3])
    assert type(lazy) is torchlstm.LSTM
    assert trace.layers[0][0].f.shape == (3, 2, H)


def test_first_call_in_inference_mode_leaves_what_can_be_trained() -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    x = torch.randn(3, 2, F)
    with torch.inference_mode():
        lazy(x)
    lazy(x)[0].sum().backward()
    assert lazy.weight_ih_l0.grad.shape == (4 * H, F)


def test_stream_of_a_lazy_lstm() -> None:
    stream = torchlstm.Stream(torchlstm.LazyLSTM(H))
    assert stream(torch.randn(0, 2, F)).shape == (0, 2, H)
    chunks = torch.randn(7, 2, F).split(3)
    output = torch.cat([stream(chunk) for chunk in chunks])
    module: Any = stream._module
    torch.testing.assert_close(output, module(torch.cat(chunks))[0].detach())


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "two-ways"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_loading_what_an_lstm_saved(assign: bool, bidirectional: bool) -> None:
    saved = torchlstm.LSTM(F, H, 2, bidirectional=bidirectional)
    lazy: Any = torchlstm.LazyLSTM(H, 2, bidirectional=bidirectional)
    model = nn.Sequential(lazy)
    before = torch.get_rng_state()
    model.load_state_dict({f"0.{name}": value for name, value in saved.state_dict().items()}, assign=assign)
    assert torch.equal(torch.get_rng_state(), before)
    assert lazy.input_size == F
    assert same_parameters(lazy, saved)
    assert "cpu" in str(torchlstm.explain(lazy, torch.randn(3, 2, F)))
    with pytest.raises(RuntimeError, match="Expected 5, got 4"):
        copy.deepcopy(lazy)(torch.randn(3, 2, 4))
    x = torch.randn(3, 2, F)
    torch.testing.assert_close(lazy(x)[0], saved(x)[0])
    assert type(lazy) is torchlstm.LSTM
    assert same_parameters(lazy, saved)
    assert all(a is b for a, b in zip(lazy._flat_weights, lazy.parameters(), strict=True))


def test_what_is_loaded_in_part_is_not_drawn() -> None:
    saved = torchlstm.LSTM(F, H)
    lazy: Any = torchlstm.LazyLSTM(H)
    some = {name: value for name, value in saved.state_dict().items() if "bias" in name}
    assert lazy.load_state_dict(some, strict=False).missing_keys == ["weight_ih_l0", "weight_hh_l0"]
    assert (lazy.input_size, is_lazy(lazy.weight_hh_l0), is_lazy(lazy.bias_ih_l0)) == (0, True, False)
    torch.manual_seed(2)
    drawn = torchlstm.LSTM(F, H)
    torch.manual_seed(2)
    called_with = torch.randn(3, 2, F)
    torch.manual_seed(2)
    lazy(called_with)
    assert torch.equal(lazy.bias_hh_l0, saved.bias_hh_l0)
    assert torch.equal(lazy.weight_hh_l0, drawn.weight_hh_l0)
    assert torch.equal(lazy.weight_ih_l0, drawn.weight_ih_l0)


def test_loading_what_does_not_fit_changes_nothing() -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight_hh_l0: Expected \(24, 6\), got \(28, 7\)"):
        lazy.load_state_dict(torchlstm.LSTM(F, H + 1).state_dict())
    assert lazy.input_size == 0
    assert all(is_lazy(weight) for weight in lazy.parameters())


def test_saving_before_the_first_call() -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    buffer = io.BytesIO()
    torch.save(lazy.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=False)
    assert all(isinstance(weight, UninitializedParameter) for weight in state.values())
    other: Any = torchlstm.LazyLSTM(H)
    other.load_state_dict(state)
    assert type(called(other)) is torchlstm.LSTM
    with pytest.raises(RuntimeError, match="uninitialized parameter into an initialized one"):
        torchlstm.LSTM(F, H).load_state_dict(state)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_are_lazy_on_their_own(how: str) -> None:
    lazy: Any = torchlstm.LazyLSTM(H, 2, dtype=torch.float64)
    if how == "deepcopy":
        twin: Any = copy.deepcopy(lazy)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(lazy))
    else:
        buffer = io.BytesIO()
        torch.save(lazy, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert "_dtypes" not in vars(twin)
    assert all(weight.dtype == torch.float64 for weight in twin.parameters())
    called(twin, torch.float64)
    assert (type(twin), twin.input_size, type(lazy)) == (torchlstm.LSTM, F, torchlstm.LazyLSTM)
    assert all(a is b for a, b in zip(twin._flat_weights, twin.parameters(), strict=True))
    assert all(is_lazy(weight) for weight in lazy.parameters())
    lazy(torch.randn(3, 2, 4, dtype=torch.float64))
    assert (lazy.input_size, twin.input_size) == (4, F)
    assert same_parameters(copy.deepcopy(lazy), lazy)


def test_to_another_dtype_and_device() -> None:
    lazy: Any = torchlstm.LazyLSTM(H, 2).to(torch.float64)
    torch.manual_seed(4)
    expected = torchlstm.LSTM(F, H, 2, dtype=torch.float64)
    x = torch.randn(3, 2, F, dtype=torch.float64)
    torch.manual_seed(4)
    lazy(x)
    assert same_parameters(lazy, expected)
    far: Any = torchlstm.LazyLSTM(H).to("meta")
    assert far(torch.empty(3, 2, F, device="meta"))[0].device.type == "meta"
    assert far.weight_ih_l0.shape == (4 * H, F)
    assert called(torchlstm.LazyLSTM(H, device="cpu").half().float()).weight_hh_l0.dtype == torch.float32


def test_reset_parameters() -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    lazy.reset_parameters()
    assert all(is_lazy(weight) for weight in lazy.parameters())
    before = called(lazy).weight_hh_l0.clone()
    lazy.reset_parameters()
    assert not torch.equal(lazy.weight_hh_l0, before)


def test_swap_and_restore() -> None:
    model: Any = nn.ModuleDict({"lazy": torchlstm.LazyLSTM(H), "theirs": nn.LSTM(F, H)})
    assert [candidate.name for candidate in torchlstm.plan_swap(model)] == ["theirs"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchlstm.swap(model)
    assert (type(model.lazy), type(model.theirs)) == (torchlstm.LazyLSTM, torchlstm.LSTM)
    with pytest.warns(UserWarning, match="restore left alone: lazy: torch.nn has no lazy LSTM") as caught:
        torchlstm.restore(model)
    assert caught[0].filename == __file__
    assert (type(model.lazy), type(model.theirs)) == (torchlstm.LazyLSTM, nn.LSTM)
    x = torch.randn(3, 2, F)
    expected = model.lazy(x)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torchlstm.restore(model)
    assert type(model.lazy) is nn.LSTM
    torch.testing.assert_close(model.lazy(x)[0], expected)


@pytest.mark.parametrize("first", ["eager", "compiled"])
def test_compiled(first: str) -> None:
    """A compiler that meets a lazy module draws before it traces."""
    if reason := torchlstm.engines()["cpu"]:
        pytest.skip(f"engine 'cpu': {reason}")
    torch.compiler.reset()
    lazy: Any = torchlstm.LazyLSTM(H, 2)
    x = torch.randn(3, 2, F)
    if first == "eager":
        lazy(x)
    compiled = torch.compile(lazy, fullgraph=True, backend="aot_eager")
    output, _ = compiled(x)
    assert type(lazy) is torchlstm.LSTM
    torch.testing.assert_close(output, lazy(x)[0])
    found = torch.autograd.grad(compiled(x)[0].square().sum(), list(lazy.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(lazy(x)[0].square().sum(), list(lazy.parameters())))


def test_initialisation_and_a_learned_state() -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    with pytest.raises(ValueError, match="uninitialized parameter"):
        torchlstm.init.forget_bias_(lazy, 1.0)
    assert torchlstm.init.LearnedState(lazy)(torch.randn(3, 2, F))[0].shape == (3, 2, H)
    torchlstm.init.forget_bias_(lazy, 1.0)
    assert torch.equal(lazy.bias_ih_l0[H : 2 * H], torch.ones(H))


NO_INPUT: dict[str, tuple[Any, type[Exception], str]] = {
    "no features": (torch.randn(3, 2, 0), ValueError, r"must be greater than zero, got input of shape \(3, 2, 0\)"),
    "one axis": (torch.randn(3), ValueError, "LazyLSTM: Expected input to be 2D or 3D, got 1D"),
    "a list": ([1.0], TypeError, "LazyLSTM: Expected input to be a Tensor, got list"),
    "sparse": (torch.eye(3).to_sparse(), RuntimeError, "LazyLSTM: Expected a dense"),
    "packed rows of numbers": (pack_sequence([torch.randn(3)]), RuntimeError, "PackedSequence to be 2D, got 1D"),
    "jagged numbers": (
        torch.nested.nested_tensor([torch.randn(3), torch.randn(2)], layout=torch.jagged),
        ValueError,
        r"LazyLSTM: Expected a jagged input of shape \(B, j, I\)",
    ),
}


@pytest.mark.parametrize(("input", "kind", "message"), NO_INPUT.values(), ids=NO_INPUT)
def test_no_input_size_can_be_found(input: Any, kind: type[Exception], message: str) -> None:
    lazy: Any = torchlstm.LazyLSTM(H)
    for call in (lazy, lazy.trace):
        with pytest.raises(kind, match=message):
            call(input)
    assert type(lazy) is torchlstm.LazyLSTM
    assert all(is_lazy(weight) for weight in lazy.parameters())
    assert type(called(lazy)) is torchlstm.LSTM


def test_constructor_and_explain() -> None:
    by_position = torchlstm.LazyLSTM(H, 2, False, True, 0.5, True, 3, "cpu", torch.float64, checkpoint_every=4)
    by_name = torchlstm.LazyLSTM(
        hidden_size=H, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, proj_size=3,
        device="cpu", dtype=torch.float64, checkpoint_every=4,
    )  # fmt: skip
    assert repr(by_position) == repr(by_name)
    assert by_name.checkpoint_every == 4
    with pytest.raises(ValueError, match="proj_size has to be smaller"):
        torchlstm.LazyLSTM(H, proj_size=H)
    with pytest.raises(ValueError, match="hidden_size must be greater"):
        torchlstm.LazyLSTM(0)
    with pytest.raises(RuntimeError, match="a LazyLSTM has no input_size, and runs on no engine, before its first"):
        torchlstm.explain(by_name, torch.randn(3, 2, F))
