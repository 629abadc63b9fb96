"""`Stream`: any chunks of a sequence give what one call on the whole of it gives."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlstm

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
T, B, F, H = 5, 3, 4, 6

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep-batch-first": {"num_layers": 2, "batch_first": True},
    "projected": {"num_layers": 2, "proj_size": 2, "bias": False},
}
KINDS = {"torchlstm": torchlstm.LSTM, "torch": nn.LSTM}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def partitions(steps: int) -> Iterator[list[int]]:
    """All ways to cut so many steps into chunks."""
    for cuts in itertools.product((False, True), repeat=steps - 1):
        sizes = [1]
        for cut in cuts:
            if cut:
                sizes.append(1)
            else:
                sizes[-1] += 1
        yield sizes


def states(module: nn.RNNBase) -> tuple[Tensor, Tensor]:
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    h, c = (torch.randn(module.num_layers, B, size, dtype=torch.float64) for size in sizes)
    return h, c


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@every_kind
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_every_chunking(engine: str, kind: type[nn.RNNBase], options: dict[str, Any], given: bool) -> None:
    """One stream after another on the same object, with a chunk of no steps here and there."""
    module = kind(F, H, dtype=torch.float64, **options)
    x = torch.randn((B, T, F) if module.batch_first else (T, B, F), dtype=torch.float64)
    axis = 1 if module.batch_first else 0
    hx = states(module) if given else None
    with torchlstm.use_engine(engine):
        output, state = module(x, hx)
        stream = torchlstm.Stream(module, hx)
        for sizes in partitions(T):
            stream.reset()
            found = [stream(chunk) for chunk in x.split([0, *sizes], axis)]
            found.append(stream(x.narrow(axis, 0, 0)))
            assert not any(chunk.requires_grad for chunk in found)
            close(torch.cat(found, axis), output.detach())
            close(stream.state, tuple(each.detach() for each in state))


@every_kind
def test_unbatched(kind: type[nn.RNNBase]) -> None:
    for batch_first in (False, True):
        module = kind(F, H, 2, batch_first=batch_first, dtype=torch.float64)
        x = torch.randn(T, F, dtype=torch.float64)
        stream = torchlstm.Stream(module)
        close(torch.cat([stream(chunk) for chunk in x.split([2, 0, 1, 2])]), module(x)[0].detach())
        assert stream.state is not None
        assert stream.state[0].shape == (2, H)


@pytest.mark.parametrize("kind", [torchlstm.LSTMCell, nn.LSTMCell])
@pytest.mark.parametrize("batch", [(), (B,)], ids=["unbatched", "batched"])
def test_cells(kind: type[nn.RNNCellBase], batch: tuple[int, ...]) -> None:
    cell = kind(F, H, dtype=torch.float64)
    x = torch.randn(T, *batch, F, dtype=torch.float64)
    stream, state = torchlstm.Stream(cell), None
    for step in x:
        state = cell(step, state)
        close(stream(step), state[0].detach())
    close(stream.state, tuple(each.detach() for each in state or ()))
    if batch:
        stream.reset(rows=[1])
        close(stream(x[0])[1], cell(x[0])[0][1].detach())


ROWS: dict[str, Any] = {
    "mask": torch.tensor([True, False, True]),
    "mask-list": [True, False, True],
    "indices": torch.tensor([2, 0], dtype=torch.int32),
    "list": [0, 2],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_some_sequences_begin_anew(rows: Any, given: bool) -> None:
    module = torchlstm.LSTM(F, H, 2, dtype=torch.float64)
    x, hx = torch.randn(T, B, F, dtype=torch.float64), states(module) if given else None
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, [0, 2]] = True
    expected, state = module(x, hx, resets=resets, reset_state=hx)
    stream = torchlstm.Stream(module, hx)
    first = stream(x[:2])
    before = stream.state
    kept = tuple(each.clone() for each in before or ())
    stream.reset(rows)
    close(torch.cat([first, stream(x[2:])]), expected.detach())
    close(stream.state, tuple(each.detach() for each in state))
    close(before, kept)  # a state that was taken out stays what it was


def test_reset_of_nothing() -> None:
    stream = torchlstm.Stream(torchlstm.LSTM(F, H))
    stream.reset(rows=[0])
    stream.reset()
    assert stream.state is None
    x = torch.randn(1, B, F)
    stream(x)
    state = stream.state
    stream.reset(rows=[])
    torch.testing.assert_close(stream.state, state, rtol=0, atol=0)
    stream.reset()
    assert stream(torch.randn(1, B + 1, F)).shape == (1, B + 1, H)


def test_nan_ends_with_a_reset() -> None:
    stream = torchlstm.Stream(torchlstm.LSTM(F, H))
    x = torch.randn(2, B, F)
    stream(x * torch.tensor([1, float("nan"), 1])[:, None])
    assert stream.state is not None
    assert stream.state[0][:, 1].isnan().all()
    stream.reset(rows=[1])
    assert stream(x).isfinite().all()


def test_the_state_can_be_set() -> None:
    module = torchlstm.LSTM(F, H, dtype=torch.float64)
    x = torch.randn(4, B, F, dtype=torch.float64)
    stream, other = torchlstm.Stream(module), torchlstm.Stream(module)
    stream(x[:2])
    assert stream.state is not None
    other.state = stream.state
    close(other(x[2:]), stream(x[2:]))


def test_truncated_backpropagation() -> None:
    """Each chunk's gradient is that of a call whose state is a constant."""
    module = torchlstm.LSTM(F, H, dtype=torch.float64)
    stream, state = torchlstm.Stream(module, grad=True), None
    for chunk in torch.randn(6, B, F, dtype=torch.float64).split(2):
        output = stream(chunk)
        expected, state = module(chunk, state)
        state = tuple(each.detach() for each in state)
        asked = tuple(module.parameters())
        mine, theirs = (torch.autograd.grad(y.square().sum(), asked) for y in (output, expected))
        close(mine, theirs)
        assert stream.state is not None
        assert not any(each.requires_grad for each in stream.state)


def test_compiled() -> None:
    module = torchlstm.LSTM(F, H, 2)
    stream = torchlstm.Stream(torch.compile(module, backend="eager", dynamic=True))
    x = torch.randn(T, B, F)
    torch.testing.assert_close(torch.cat([stream(chunk) for chunk in x.split(2)]), module(x)[0].detach())


def test_errors() -> None:
    with pytest.raises(ValueError, match="bidirectional LSTM needs the end"):
        torchlstm.Stream(nn.LSTM(F, H, bidirectional=True))
    for other in (nn.GRU(F, H), nn.Linear(F, H)):
        with pytest.raises(TypeError, match=f"Expected an LSTM or LSTMCell, got {type(other).__name__}"):
            torchlstm.Stream(other)
    with pytest.raises(TypeError, match="hx to be a tuple"):
        torchlstm.Stream(nn.LSTM(F, H), torch.zeros(1, B, H))
    module = torchlstm.LSTM(F, H)
    stream = torchlstm.Stream(module)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal"):
        stream(torch.randn(0, B, F + 1))
    with pytest.raises(TypeError, match="Expected input to be a Tensor, got PackedSequence"):
        stream(nn.utils.rnn.pack_sequence([torch.randn(2, F)]))
    stream(torch.randn(2, B, F))
    before = stream.state
    for wrong, what in ((torch.randn(2, B + 1, F), "4 sequences"), (torch.randn(2, F), "unbatched input")):
        with pytest.raises(RuntimeError, match=rf"Expected 3 sequences, as in the first chunk, got {what}: reset\(\)"):
            stream(wrong)
    with pytest.raises(RuntimeError, match="Expected a mask of 3 rows, got shape"):
        stream.reset(torch.ones(2, dtype=torch.bool))
    with pytest.raises(IndexError, match=r"Expected rows from 0 to 2, got \[3\]"):
        stream.reset([3])
    with pytest.raises(TypeError, match=r"a bool mask or integers, got torch\.float32"):
        stream.reset([0.5])
    with pytest.raises(ValueError, match="does not match weight dtype"):
        stream(torch.randn(2, B, F, dtype=torch.float64))
    assert stream.state is before
    alone = torchlstm.Stream(module)
    alone(torch.randn(2, F))
    with pytest.raises(RuntimeError, match="the input is unbatched"):
        alone.reset([0])
