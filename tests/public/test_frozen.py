"""FrozenLSTM and FrozenLSTMCell: every form of call gives what the float module gives with weights that are rounded."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import torchlstm
from torchlstm.engines.shared.rounding import as_float, rounded

FORMATS = (None, torch.bfloat16, torch.float16, torch.int8)
# Besides the rounding of weights, int8 rounds what they are multiplied with to about 15 bits.
TOLERANCE = {None: 0.0, torch.bfloat16: 2e-6, torch.float16: 2e-6, torch.int8: 1e-3}
T, B, F, H = 6, 3, 5, 7

every_format = pytest.mark.parametrize("weights", FORMATS, ids=str)


def rounded_copy(module: Any, weights: Any) -> Any:
    """The float module with its matrices rounded."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if weights is not None and name.startswith("weight"):
                parameter.copy_(as_float(rounded(parameter, weights)))
    return module


def pair(weights: Any, seed: int = 3, **options: Any) -> tuple[torchlstm.LSTM, torchlstm.FrozenLSTM]:
    """The float module with rounded weights, and the frozen one."""
    torch.manual_seed(seed)
    module = torchlstm.LSTM(F, H, **options)
    frozen: Any = torchlstm.freeze(copy.deepcopy(module), weights)
    assert type(frozen) is torchlstm.FrozenLSTM
    return rounded_copy(module, weights), frozen


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result, of whatever form."""
    output, state = result
    if isinstance(output, Tensor):
        return [output.values() if output.is_nested else output, *state]
    return [output.data, *state]


def same(weights: Any, found: Any, expected: Any) -> None:
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[weights])


def state(module: Any, *batch: int) -> tuple[Tensor, Tensor]:
    count = module.num_layers * (2 if module.bidirectional else 1)
    return (
        torch.randn(count, *batch, module.proj_size or H).tanh(),
        torch.randn(count, *batch, H),
    )


def sequences(*lengths: int) -> list[Tensor]:
    return [torch.randn(length, F) for length in lengths]


def resets(x: Tensor) -> Tensor:
    return torch.rand(x.shape[:-1]) < 0.3


FORMS: dict[str, Callable[[Any], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "dense": lambda m: ((torch.randn(T, B, F),), {}),
    "with-state": lambda m: ((torch.randn(T, B, F) if not m.batch_first else torch.randn(B, T, F), state(m, B)), {}),
    "one-step": lambda m: ((torch.randn(1, 1, F), state(m, 1)), {}),
    "unbatched": lambda m: ((torch.randn(T, F),), {}),
    "unbatched-with-state": lambda m: ((torch.randn(T, F), state(m)), {}),
    "packed": lambda m: ((pack_sequence(sequences(6, 4, 1)), state(m, 3)), {}),
    "packed-unsorted": lambda m: ((pack_sequence(sequences(2, 6, 3), enforce_sorted=False), state(m, 3)), {}),
    "lengths": lambda m: ((torch.randn(4, 4, F), state(m, 4)), {"lengths": [2, 4, 0, 3]}),
    "resets": lambda m: (
        ((x := torch.randn(4, 4, F)), state(m, 4)), {"resets": resets(x), "reset_state": state(m, 4)}
    ),
    "jagged": lambda m: ((torch.nested.nested_tensor(sequences(3, 5, 1), layout=torch.jagged),), {}),
    "strided": lambda m: ((torch.randn(F, B, T).transpose(0, 2),), {}),
}  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True, "proj_size": 3},
    "deep": {"num_layers": 3, "bidirectional": True},
}


@every_format
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, options: dict[str, Any], weights: Any) -> None:
    module, frozen = pair(weights, **options)
    torch.manual_seed(4)
    arguments, keywords = FORMS[form](module)
    with torch.no_grad():
        expected = module(*arguments, **keywords)
    same(weights, frozen(*arguments, **keywords), expected)
    with torch.inference_mode():
        same(weights, frozen(*arguments, **keywords), expected)


@every_format
def test_rounding_is_there_to_be_seen(weights: Any) -> None:
    """What is compared with above is not the module before rounding."""
    torch.manual_seed(3)
    module = torchlstm.LSTM(F, H)
    _, frozen = pair(weights)
    x = torch.randn(T, B, F)
    with torch.no_grad():
        gap = (module(x)[0] - frozen(x)[0]).abs().max().item()
    low, high = {None: (0, 0), torch.bfloat16: (1e-5, 1e-2), torch.float16: (1e-6, 1e-3), torch.int8: (1e-5, 1e-2)}[
        weights
    ]
    assert low <= gap <= high


@every_format
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_cell(weights: Any, bias: bool) -> None:
    torch.manual_seed(5)
    module = nn.LSTMCell(F, H, bias)
    frozen = torchlstm.freeze(copy.deepcopy(module), weights)
    assert type(frozen) is torchlstm.FrozenLSTMCell
    module = rounded_copy(module, weights)
    hx = torch.randn(B, H).tanh(), torch.randn(B, H)
    alone = hx[0][0], hx[1][0]
    calls: list[Any] = [(torch.randn(B, F),), (torch.randn(B, F), hx), (torch.randn(F),), (torch.randn(F), alone)]
    # None: nn.LSTMCell's bits are not ours.
    tolerance = TOLERANCE[weights] or 1e-6
    with torch.no_grad():
        for call in calls:
            for a, b in zip(frozen(*call), module(*call), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_cell_as_it_is_has_the_same_bits() -> None:
    torch.manual_seed(5)
    module = torchlstm.LSTMCell(64, 32)
    frozen = torchlstm.freeze(copy.deepcopy(module))
    for x in (torch.randn(64), torch.randn(1, 64), torch.randn(5, 64)):
        with torch.no_grad():
            h, c = module(x)
            assert all(torch.equal(a, b) for a, b in zip(frozen(x, (h, c)), module(x, (h, c)), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_as_they_are_keep_their_dtype(dtype: torch.dtype) -> None:
    module = torchlstm.LSTM(F, H, 2, dtype=dtype)
    frozen = torchlstm.freeze(copy.deepcopy(module))
    x = torch.randn(T, B, F, dtype=dtype)
    with torch.no_grad():
        same(None, frozen(x), module(x))
    assert frozen.state_dict()["weight_hh_l1"].dtype == dtype


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (16, 64), (65, 33), (40, 129)], ids=str)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (2, 1), (9, 2), (3, 5), (5, 17)])
def test_weights_as_they_are_have_the_same_bits(sizes: tuple[int, int], steps: int, batch: int) -> None:
    module = torchlstm.LSTM(*sizes, num_layers=2, bidirectional=True)
    frozen = torchlstm.freeze(copy.deepcopy(module))
    x = torch.randn(steps, batch, sizes[0])
    with torch.no_grad():
        same(None, frozen(x), module(x))


def test_training_changes_nothing_but_dropout() -> None:
    module, frozen = pair(torch.int8, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, F)
    assert frozen.training
    with torch.no_grad():
        torch.manual_seed(6)
        expected = module(x)
        torch.manual_seed(6)
        same(torch.int8, frozen(x), expected)
        assert not torch.equal(frozen(x)[0], frozen(x)[0])
        same(torch.int8, frozen.eval()(x), module.eval()(x))
    plain = pair(torch.int8)[1]
    assert torch.equal(plain.train()(x)[0], plain.eval()(x)[0])


@every_format
@pytest.mark.parametrize("projected", [0, 3], ids=["plain", "projected"])
def test_autocast(weights: Any, projected: int) -> None:
    module, frozen = pair(weights, proj_size=projected)
    x = torch.randn(T, B, F)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            (y, (h, c)), (mine, (my_h, my_c)) = module(given), frozen(given)
            assert [t.dtype for t in (mine, my_h, my_c)] == [t.dtype for t in (y, h, c)]
            torch.testing.assert_close(mine, y, rtol=0, atol=0 if weights is None else 0.02)
    if weights is not None:
        # Rounded weights do not compute in autocast's dtype: one rounding, of the results.
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(frozen(x)[0], frozen(x)[0])
            found = frozen(x)[0]
        with torch.no_grad():
            torch.testing.assert_close(found.float(), module(x)[0], rtol=2**-8, atol=TOLERANCE[weights])


def test_subclasses_of_tensor() -> None:
    class Mine(Tensor):
        pass

    module, frozen = pair(torch.int8)
    x = torch.randn(T, B, F)
    found = frozen(x.as_subclass(Mine))
    assert type(found[0]) is Mine
    with torch.no_grad():
        same(torch.int8, found, module(x))


def test_trace() -> None:
    module, frozen = pair(torch.float16, num_layers=2)
    x = torch.randn(T, B, F)
    found, expected = frozen.trace(x), module.trace(x)
    same(torch.float16, (found.output, found.state), (expected.output, expected.state))
    torch.testing.assert_close(found.layers[1][0].f, expected.layers[1][0].f, rtol=0, atol=2e-6)
    assert not found.layers[1][0].f.requires_grad


def test_nan_stays_in_its_sequence() -> None:
    for weights in FORMATS:
        _, frozen = pair(weights, num_layers=2)
        x = torch.randn(T, B, F)
        expected = frozen(x)[0]
        x[2, 1, 0] = float("nan")
        y = frozen(x)[0]
        assert y[2:, 1].isnan().all()
        torch.testing.assert_close(y[:, [0, 2]], expected[:, [0, 2]], rtol=0, atol=TOLERANCE[weights])
        torch.testing.assert_close(y[:2], expected[:2], rtol=0, atol=TOLERANCE[weights])


@pytest.mark.parametrize("engine", ["reference", "cpu"])
def test_forced_engines(engine: str) -> None:
    if torchlstm.engines()[engine]:
        pytest.skip(f"no engine {engine}")
    module, frozen = pair(torch.int8, num_layers=2)
    x = torch.randn(T, B, F)
    with torchlstm.use_engine(engine), torch.no_grad():
        same(torch.int8, frozen(x), module(x))


def test_an_engine_that_cannot_is_refused() -> None:
    if torchlstm.engines()["cuda"] is None:
        with torchlstm.use_engine("cuda"), pytest.raises(torchlstm.EngineRefusal):
            pair(torch.int8)[1](torch.randn(T, B, F))


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "float64": (lambda m: m(torch.randn(T, B, F).double()), ValueError, "FrozenLSTM: Expected input of torch.float32"),
    "packed-float64": (lambda m: m(pack_sequence([torch.randn(2, F).double()])), ValueError, "got torch.float64"),
    "features": (lambda m: m(torch.randn(T, B, F + 1)), RuntimeError, "Expected 5, got 6"),
    "rank": (lambda m: m(torch.randn(F)), ValueError, "2D or 3D, got 1D"),
    "no-tensor": (lambda m: m([1.0]), TypeError, "Expected input to be a Tensor, got list"),
    "state": (lambda m: m(torch.randn(T, B, F), state(m, B + 1)), RuntimeError, r"Expected hidden\[0\] size"),
    "one-state": (lambda m: m(torch.randn(T, B, F), torch.randn(1, B, H)), TypeError, "tuple"),
    "three-states": (lambda m: m(torch.randn(T, B, F), (*state(m, B), torch.zeros(1))), RuntimeError, "states, got 3"),
    "no-steps": (lambda m: m(torch.randn(0, B, F)), RuntimeError, "sequence length to be larger than 0"),
    "lengths": (lambda m: m(torch.randn(T, B, F), lengths=[1, 2]), RuntimeError, "lengths"),
    "reset-state": (lambda m: m(torch.randn(T, B, F), reset_state=state(m, B)), TypeError, "there are no resets"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call(pair(torch.int8)[1])


def test_no_sequences() -> None:
    y, (h, c) = pair(torch.int8)[1](torch.randn(T, 0, F))
    assert (y.shape, h.shape, c.shape) == ((T, 0, H), (1, 0, H), (1, 0, H))
