"""`Stream` over frozen modules: the state in place, an output buffer, and nothing of that to be seen from outside."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm

FORMATS = (None, torch.bfloat16, torch.float16, torch.int8)
T, B, F, H = 7, 3, 5, 6

every_format = pytest.mark.parametrize("weights", FORMATS, ids=str)
FORMS = ("time-major", "batch-first", "unbatched", "one-sequence", "projected")


def frozen(weights: Any, **options: Any) -> torchlstm.FrozenLSTM:
    torch.manual_seed(1)
    return torchlstm.FrozenLSTM(F, H, 2, weights=weights, **options)


def case(form: str, weights: Any) -> tuple[torchlstm.FrozenLSTM, Tensor, int]:
    """A module, an input, and the axis of time."""
    first = form == "batch-first"
    module = frozen(weights, batch_first=first, proj_size=4 if form == "projected" else 0)
    shapes = {"batch-first": (B, T, F), "unbatched": (T, F), "one-sequence": (T, 1, F)}
    return module, torch.randn(shapes.get(form, (T, B, F))), 1 if first else 0


@every_format
@pytest.mark.parametrize("buffered", [False, True], ids=["new", "buffer"])
@pytest.mark.parametrize("form", FORMS)
def test_chunks_are_the_whole(form: str, buffered: bool, weights: Any) -> None:
    module, x, axis = case(form, weights)
    whole, state = module(x)
    for given in (None, state):
        expected, (h, c) = module(x, given)
        stream, outputs = torchlstm.Stream(module, given), []
        for chunk in x.split((1, 1, 3, 0, 2), axis):
            buffer = chunk.new_empty(*chunk.shape[:-1], whole.shape[-1]) if buffered else None
            output = stream(chunk, out=buffer)
            assert buffer is None or output is buffer
            outputs.append(output)
        # A step alone may be summed in another order, and activations of int8 round.
        tolerance = 2e-5 if weights is torch.int8 else 1e-6
        torch.testing.assert_close(torch.cat(outputs, axis), expected, rtol=0, atol=tolerance)
        assert stream.state is not None
        torch.testing.assert_close(stream.state, (h, c), rtol=0, atol=tolerance)


@every_format
@pytest.mark.parametrize("batch", [(), (B,)], ids=["unbatched", "batched"])
def test_cell(batch: tuple[int, ...], weights: Any) -> None:
    cell = torchlstm.FrozenLSTMCell(F, H, weights=weights)
    x, buffer = torch.randn(T, *batch, F), torch.empty(*batch, H)
    stream, other, state = torchlstm.Stream(cell), torchlstm.Stream(cell), None
    outputs = []
    for step in x:
        state = cell(step, state)
        outputs.append(stream(step))
        assert other(step, out=buffer) is buffer
        torch.testing.assert_close(buffer, state[0], rtol=0, atol=1e-6)
    assert state is not None
    torch.testing.assert_close(stream.state, state, rtol=0, atol=1e-6)
    # What was handed out before is as it was.
    again = torchlstm.Stream(cell)
    for step, output in zip(x, outputs, strict=True):
        torch.testing.assert_close(again(step), output, rtol=0, atol=0)


@every_format
def test_nothing_that_was_handed_out_or_given_changes(weights: Any) -> None:
    module = frozen(weights)
    x = torch.randn(4, B, F)
    start = torch.randn(2, B, H).tanh(), torch.randn(2, B, H)
    kept = [tensor.clone() for tensor in start]
    stream = torchlstm.Stream(module, start)
    outputs, states = [], []
    for step in x.split(1):
        outputs.append(stream(step))
        assert stream.state is not None
        states.append(stream.state)
    before = [t.clone() for t in (*outputs, *(t for pair in states for t in pair))]
    stream(x)
    stream.state = states[0]
    stream(x)
    stream(x[:1])
    after = [*outputs, *(t for pair in states for t in pair)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


def test_the_state_lies_where_it_lay() -> None:
    if torchlstm.engines()["cpu"]:
        pytest.skip("there is no kernel")
    stream = torchlstm.Stream(frozen(torch.int8))
    x, out = torch.randn(1, B, F), torch.empty(1, B, H)
    stream(x)
    assert stream._state is not None
    places = [tensor.data_ptr() for tensor in stream._state]
    first = stream(x, out=out).clone()
    assert not torch.equal(first, stream(x, out=out))
    assert [tensor.data_ptr() for tensor in stream._state] == places


def test_reset_and_set() -> None:
    module = frozen(torch.int8)
    x = torch.randn(T, B, F)
    stream = torchlstm.Stream(module)
    first = stream(x[:1])
    second = stream(x[1:2])
    stream.reset(rows=[1])
    third = stream(x[:1])
    torch.testing.assert_close(third[:, 1], first[:, 1], rtol=0, atol=2e-5)
    assert not torch.allclose(third[:, 0], first[:, 0], atol=1e-3)
    stream.reset()
    assert stream.state is None
    torch.testing.assert_close(stream(x[:1]), first, rtol=0, atol=2e-5)
    torch.testing.assert_close(stream(x[1:2]), second, rtol=0, atol=2e-5)
    stream.reset()
    assert stream(torch.randn(1, 5, F)).shape == (1, 5, H)
    with pytest.raises(RuntimeError, match="Expected 5 sequences, as in the first chunk, got 3 sequences"):
        stream(x[:1])
    state = torch.zeros(2, B, H), torch.zeros(2, B, H)
    stream.state = state
    torch.testing.assert_close(stream(x[:1]), first, rtol=0, atol=2e-5)
    stream.reset(rows=[0])
    assert stream.state[0][:, 0].abs().max() == 0
    assert state[0].abs().max() == 0


def test_weights_loaded_between_chunks_are_used() -> None:
    module, other = frozen(torch.int8), torchlstm.LSTM(F, H, 2)
    x = torch.randn(1, B, F)
    stream = torchlstm.Stream(module)
    stream(x)
    state = stream.state
    module.load_state_dict(other.state_dict())
    torch.testing.assert_close(stream(x), module(x, state)[0], rtol=0, atol=2e-5)


def test_dropout_in_training() -> None:
    module = frozen(None, dropout=0.5)
    x = torch.ones(1, B, F)
    stream = torchlstm.Stream(module)
    torch.manual_seed(3)
    first = [stream(x) for _ in range(3)][-1]
    torch.manual_seed(4)
    stream.reset()
    assert not torch.equal([stream(x) for _ in range(3)][-1], first)
    module.eval()
    stream.reset()
    again = [stream(x) for _ in range(3)][-1]
    stream.reset()
    assert torch.equal([stream(x) for _ in range(3)][-1], again)


def test_forced_reference() -> None:
    module = frozen(torch.int8)
    x = torch.randn(1, B, F)
    stream = torchlstm.Stream(module)
    outputs = [stream(x) for _ in range(3)]
    stream.reset()
    with torchlstm.use_engine("reference"):
        torch.testing.assert_close([stream(x) for _ in range(3)], outputs, rtol=0, atol=1e-3)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "shape": (torch.empty(1, B, H + 1), RuntimeError, r"Expected out of shape \(1, 3, 6\), got \(1, 3, 7\)"),
    "broadcast": (torch.empty(2, B, H), RuntimeError, "Expected out of shape"),
    "no-tensor": ([0.0], TypeError, "Expected out to be a Tensor, got list"),
    "grad": (torch.empty(1, B, H, requires_grad=True), RuntimeError, "requires grad"),
}


@pytest.mark.parametrize("kind", [torchlstm.FrozenLSTM, nn.LSTM], ids=["frozen", "torch"])
@pytest.mark.parametrize("name", BAD)
def test_bad_buffers_are_told_and_move_nothing(name: str, kind: Any) -> None:
    out, error, message = BAD[name]
    stream = torchlstm.Stream(kind(F, H))
    x = torch.randn(1, B, F)
    stream(x)
    state = stream.state
    for _ in range(2):
        with pytest.raises(error, match=message):
            stream(x, out=out)
    torch.testing.assert_close(stream.state, state, rtol=0, atol=0)


@pytest.mark.parametrize("name", BAD)
def test_bad_buffers_for_several_steps_move_nothing(name: str) -> None:
    out, error, _ = BAD[name]
    stream = torchlstm.Stream(frozen(None, batch_first=True))
    stream(torch.randn(B, 2, F))
    state = stream.state
    with pytest.raises(error):
        stream(torch.randn(B, 2, F), out=out)
    torch.testing.assert_close(stream.state, state, rtol=0, atol=0)


def test_odd_buffers_are_written() -> None:
    for module in (frozen(torch.int8), nn.LSTM(F, H, 2)):
        x = torch.randn(1, B, F)
        stream = torchlstm.Stream(module)
        expected = [stream(x) for _ in range(2)]
        stream.reset()
        for output in expected:
            strided, double = torch.empty(1, H, B).transpose(1, 2), torch.empty(1, B, H, dtype=torch.float64)
            state = stream.state
            assert stream(x, out=strided) is strided
            torch.testing.assert_close(strided, output, rtol=0, atol=2e-5)
            if state is not None:
                stream.state = state
                torch.testing.assert_close(stream(x, out=double).float(), output, rtol=0, atol=2e-5)


def test_a_negated_buffer_is_written() -> None:
    x, module = torch.randn(1, 1, F), torchlstm.FrozenLSTM(F, 1)
    one, other = torchlstm.Stream(module), torchlstm.Stream(module)
    out = torch.zeros(1, 1, 1, dtype=torch.complex64).conj().imag
    assert out.is_neg()
    for _ in range(3):
        torch.testing.assert_close(one(x, out=out), other(x))


def test_a_stream_with_gradients_takes_no_buffer() -> None:
    stream = torchlstm.Stream(nn.LSTM(F, H), grad=True)
    with pytest.raises(ValueError, match="grad=True"):
        stream(torch.randn(1, B, F), out=torch.empty(1, B, H))


def test_grad_of_a_frozen_stream_is_an_error() -> None:
    stream = torchlstm.Stream(frozen(torch.int8), grad=True)
    x = torch.randn(1, B, F, requires_grad=True)
    stream(x)
    with pytest.raises(RuntimeError, match="a frozen LSTM has no gradients"):
        stream(x).sum().backward()
    # Without `grad` there is no graph.
    plain = torchlstm.Stream(frozen(torch.int8))
    assert [plain(x).requires_grad for _ in range(2)] == [False, False]
