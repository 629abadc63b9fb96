"""The surface of torch.nn's classes: constructor, parameters, attributes, saving, copying, moving."""

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 3, "dropout": 0.25},
    "everything": {
        "num_layers": 2,
        "bias": False,
        "batch_first": True,
        "dropout": 0.5,
        "bidirectional": True,
        "proj_size": 3,
    },
}


def pair(**options: Any) -> tuple[nn.LSTM, torchlstm.LSTM]:
    """nn.LSTM and ours from the same seed."""
    torch.manual_seed(5)
    theirs = nn.LSTM(4, 6, **options)
    torch.manual_seed(5)
    return theirs, torchlstm.LSTM(4, 6, **options)


def same(theirs: Callable[..., Any], ours: Callable[..., Any], *arguments: Any) -> None:
    """Both compute the same output and states."""
    (a, (b, c)), (x, (y, z)) = theirs(*arguments), ours(*arguments)
    torch.testing.assert_close((x, y, z), (a, b, c), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_parameters_are_bit_identical(options: dict[str, Any]) -> None:
    theirs, ours = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert repr(ours) == repr(theirs)
    assert ours.mode == "LSTM"
    assert ours._all_weights == theirs._all_weights
    assert ours._flat_weights_names == theirs._flat_weights_names
    for mine, other in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))


def test_reset_parameters_draws_again() -> None:
    theirs, ours = pair(num_layers=2)
    for module in (theirs, ours):
        torch.manual_seed(9)
        module.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_cell_parameters_are_bit_identical() -> None:
    for bias in (True, False):
        torch.manual_seed(5)
        theirs = nn.LSTMCell(4, 6, bias)
        torch.manual_seed(5)
        ours = torchlstm.LSTMCell(4, 6, bias)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert repr(ours) == repr(theirs)
    assert torchlstm.LSTMCell(4, 6, bias=1).bias_ih.shape == (24,)


def test_constructor_by_position_and_keyword() -> None:
    by_position = torchlstm.LSTM(4, 6, 2, False, True, 0.5, True, 3, "cpu", torch.float64)
    by_keyword = torchlstm.LSTM(
        input_size=4, hidden_size=6, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True,
        proj_size=3, device="cpu", dtype=torch.float64,
    )  # fmt: skip
    assert repr(by_position) == repr(by_keyword)
    assert by_position.weight_hr_l1_reverse.dtype == torch.float64


BAD_CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "input-size-0": ((0, 6), {}),
    "hidden-size-0": ((4, 0), {}),
    "hidden-size-negative": ((4, -1), {}),
    "layers-0": ((4, 6), {"num_layers": 0}),
    "float-size": ((4, 6.0), {}),
    "bias-1": ((4, 6), {"bias": 1}),
    "batch-first-1": ((4, 6), {"batch_first": 1}),
    "dropout-2": ((4, 6), {"dropout": 2}),
    "dropout-True": ((4, 6), {"dropout": True}),
    "proj-6": ((4, 6), {"proj_size": 6}),
    "proj-negative": ((4, 6), {"proj_size": -1}),
}


@pytest.mark.parametrize(("positional", "keyword"), BAD_CONSTRUCTORS.values(), ids=BAD_CONSTRUCTORS)
def test_constructor_errors(positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        nn.LSTM(*positional, **keyword)
    with pytest.raises(theirs.type) as ours:
        torchlstm.LSTM(*positional, **keyword)
    assert str(ours.value) == str(theirs.value)


def test_dropout_with_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last recurrent layer"):
        torchlstm.LSTM(4, 6, dropout=0.5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_state_dict_both_ways(options: dict[str, Any]) -> None:
    theirs, _ = pair(**options)
    ours = torchlstm.LSTM(4, 6, **options)
    x = torch.randn(5, 5, 4)
    theirs.eval(), ours.eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    same(theirs, ours, x)
    back = nn.LSTM(4, 6, **options).eval()
    back.load_state_dict(ours.state_dict(), strict=True, assign=True)
    same(back, ours, x)
    ours.load_state_dict({k: torch.zeros_like(v) for k, v in ours.state_dict().items()}, assign=True)
    assert ours(x)[0].abs().max() == 0
    with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
        ours.load_state_dict(nn.LSTM(7, 6, **options).state_dict())


def test_copies_compute_the_same() -> None:
    _, ours = pair(num_layers=2, bidirectional=True)
    x = torch.randn(5, 3, 4)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)):
        assert type(twin) is torchlstm.LSTM
        same(ours, twin, x)
        with torch.no_grad():
            twin.weight_hh_l0.zero_()
        assert ours.weight_hh_l0.abs().max() > 0
        assert not torch.equal(ours(x)[0], twin(x)[0])
    cell = torchlstm.LSTMCell(4, 6)
    torch.testing.assert_close(pickle.loads(pickle.dumps(cell))(x[0]), cell(x[0]))


def test_old_pickle_without_proj_size() -> None:
    _, ours = pair()
    state = ours.__getstate__()
    del state["proj_size"]
    old = torchlstm.LSTM.__new__(torchlstm.LSTM)
    old.__setstate__(state)
    assert old.proj_size == 0
    same(ours, old, torch.randn(5, 3, 4))


def test_meta_then_to_empty() -> None:
    theirs, _ = pair(num_layers=2)
    ours = torchlstm.LSTM(4, 6, 2, device="meta")
    output, _ = ours(torch.randn(5, 3, 4, device="meta"))
    assert output.shape == (5, 3, 6)
    assert output.is_meta
    ours.to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    same(theirs, ours, torch.randn(5, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_moving_to_another_dtype(dtype: torch.dtype) -> None:
    _, ours = pair()
    identity = [id(parameter) for parameter in ours.parameters()]
    assert ours.to(dtype) is ours
    assert [id(parameter) for parameter in ours.parameters()] == identity
    assert all(tensor.dtype == dtype for tensor in ours(torch.randn(5, 3, 4, dtype=dtype))[1])
    assert {weight.dtype for weight in ours._flat_weights} == {dtype}


def test_replica_for_data_parallel_reads_its_own_weights() -> None:
    _, ours = pair()
    replica = ours._replicate_for_data_parallel()
    for name in ours._flat_weights_names:
        setattr(replica, name, getattr(ours, name).detach() * 0)
    x = torch.randn(5, 3, 4)
    assert replica(x)[0].abs().max() == 0
    assert ours(x)[0].abs().max() > 0


def test_flatten_parameters_does_nothing_and_stays_callable() -> None:
    _, ours = pair()
    before = [parameter.data_ptr() for parameter in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert [parameter.data_ptr() for parameter in ours.parameters()] == before


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_jit_trace_keeps_time_and_batch_open(options: dict[str, Any]) -> None:
    theirs, ours = pair(**options)
    theirs.eval(), ours.eval()
    traced = torch.jit.trace(ours, torch.randn(5, 3, 4))
    for shape in ((5, 3, 4), (2, 3, 4), (11, 7, 4)):
        same(theirs, traced, torch.randn(shape))


def test_options_changed_after_construction_are_honoured() -> None:
    theirs, ours = pair(num_layers=2)
    x = torch.randn(5, 5, 4)
    for module in (theirs, ours):
        module.batch_first = True
        module.dropout = 1.0
    same(theirs, ours, x)
    for module in (theirs, ours):
        module.batch_first = False
    same(theirs, ours, x)


def test_arguments_by_keyword() -> None:
    theirs, ours = pair()
    x, state = torch.randn(5, 3, 4), (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    expected = theirs(input=x, hx=state)
    torch.testing.assert_close(ours(input=x, hx=state), expected)
    cell, other = torchlstm.LSTMCell(4, 6), nn.LSTMCell(4, 6)
    cell.load_state_dict(other.state_dict())
    hx = (state[0][0], state[1][0])
    torch.testing.assert_close(cell(input=x[0], hx=hx), other(input=x[0], hx=hx))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
def test_final_states_own_their_storage(layers: int, steps: int, unbatched: bool) -> None:
    _, ours = pair(num_layers=layers)
    x = torch.randn(steps, 4) if unbatched else torch.randn(steps, 3, 4)
    shape = (layers, 6) if unbatched else (layers, 3, 6)
    state = torch.randn(shape), torch.randn(shape)
    kept = [tensor.clone() for tensor in state]
    with torch.no_grad():
        output, (h_n, c_n) = ours(x, state)
        before = output.clone()
        h_n.zero_(), c_n.zero_()
    assert torch.equal(output, before)
    assert all(torch.equal(tensor, copied) for tensor, copied in zip(state, kept, strict=True))


def test_writing_into_the_final_state_in_training_keeps_the_gradients() -> None:
    theirs, ours = pair()
    x = torch.randn(5, 3, 4)
    for module in (theirs, ours):
        output, (h_n, _) = module(x)
        h_n.mul_(0)
        output.sum().backward()
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


def test_weights_are_read_at_every_call() -> None:
    theirs, ours = pair()
    x = torch.randn(5, 3, 4)
    for module in (theirs, ours):
        module.weight_hh_l0.data = module.weight_hh_l0.data * 2
    same(theirs, ours, x)
    ours.weight_ih_l0.data.mul_(0.5)
    theirs.weight_ih_l0.data.mul_(0.5)
    same(theirs, ours, x)
    ours.weight_ih_l0 = nn.Parameter(torch.zeros_like(ours.weight_ih_l0))
    theirs.weight_ih_l0 = nn.Parameter(torch.zeros_like(theirs.weight_ih_l0))
    same(theirs, ours, x)


def test_weight_drop_replaces_a_parameter_by_a_tensor() -> None:
    _, ours = pair()
    raw = ours.weight_hh_l0
    del ours._parameters["weight_hh_l0"]
    ours.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.detach()))
    ours.weight_hh_l0 = ours.weight_hh_l0_raw * 0.5
    ours(torch.randn(5, 3, 4))[0].sum().backward()
    assert ours.weight_hh_l0_raw.grad is not None
    assert ours.weight_hh_l0_raw.grad.abs().max() > 0


def test_parametrizations_pruning_and_norms() -> None:
    from torch.nn.utils import parametrizations, prune

    theirs, ours = pair()
    x = torch.randn(5, 3, 4)
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
        prune.l1_unstructured(module, "weight_ih_l0", amount=0.5)
    same(theirs, ours, x)
    for module in (theirs, ours):
        with torch.no_grad():
            module.parametrizations.weight_hh_l0.original0.mul_(3)
        module(x)[0].sum().backward()
    same(theirs, ours, x)
    torch.testing.assert_close(ours.weight_ih_l0_orig.grad, theirs.weight_ih_l0_orig.grad)


def test_parameters_are_released_with_the_module() -> None:
    _, ours = pair()
    ours(torch.randn(5, 3, 4))[0].sum().backward()
    weight = weakref.ref(ours.weight_hh_l0)
    del ours
    assert weight() is None


def test_overridable_helpers_of_nn_lstm() -> None:
    theirs, ours = pair(num_layers=2, bidirectional=True, proj_size=2)
    x, permutation = torch.randn(5, 3, 4), torch.tensor([2, 0, 1])
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None) == (4, 3, 2)
    assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None) == (4, 3, 6)
    state: tuple[Tensor, Tensor] = (torch.randn(4, 3, 2), torch.randn(4, 3, 6))
    torch.testing.assert_close(ours.permute_hidden(state, permutation), theirs.permute_hidden(state, permutation))
    assert ours.permute_hidden(state, None) is state
    ours.check_forward_args(x, state, None)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(4, 3, 6\), got \[4, 3, 2\]"):
        ours.check_forward_args(x, (state[0], state[0]), None)
