"""`lengths=` on padded input: what nn.LSTM computes between pack_padded_sequence and pad_packed_sequence."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchlstm

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
T, B, F, H = 7, 5, 3, 6
LENGTHS = [3, 7, 1, 3, 5]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first-no-bias": {"batch_first": True, "bias": False},
    "bidirectional": {"bidirectional": True},
    "deep": {"num_layers": 3, "batch_first": True},
    "projected": {"num_layers": 2, "proj_size": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True, "dropout": 0.4},
}

every_engine = pytest.mark.parametrize("engine", ENGINES)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class PadPacked(nn.LSTM):
    """nn.LSTM as people call it on padded input."""

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Any) -> Any:
        """Pack, run, unpack."""
        packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        output, state = super().forward(packed, hx)
        steps = input.shape[1 if self.batch_first else 0]
        return pad_packed_sequence(output, self.batch_first, total_length=steps)[0], state


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.LSTM, torchlstm.LSTM]:
    """nn.LSTM between packing and unpacking, and ours."""
    theirs = PadPacked(F, H, dtype=dtype, **options)
    ours = torchlstm.LSTM(F, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def padded(module: nn.RNNBase, steps: int = T, batch: int = B) -> Tensor:
    shape = (batch, steps, F) if module.batch_first else (steps, batch, F)
    return torch.randn(shape, dtype=module.weight_ih_l0.dtype)


def states(module: nn.RNNBase, batch: int = B) -> tuple[Tensor, Tensor]:
    """Random h (L*D, B, R) and c (L*D, B, H)."""
    count, dtype = module.num_layers * (1 + module.bidirectional), module.weight_ih_l0.dtype
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    h, c = (torch.randn(count, batch, size, dtype=dtype) for size in sizes)
    return h, c


def observe(module: nn.Module, x: Tensor, hx: Any = None, **keywords: Any) -> list[Tensor]:
    """Results, and the gradients of input, states and parameters from random cotangents, the same at every call."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *(hx or ()))]
    torch.manual_seed(3)
    output, (h_n, c_n) = module(leaves[0], tuple(leaves[1:]) or None, **keywords)
    results = [output, h_n, c_n]
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [*leaves, *module.parameters()], cotangents)]


def steps_of(module: nn.RNNBase, tensor: Tensor) -> Tensor:
    """A padded tensor with its time first, whatever the module's layout."""
    return tensor.transpose(0, 1) if module.batch_first else tensor


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    wide = found[0].dtype == torch.float64
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10 if wide else 1e-4, atol=1e-10 if wide else 2e-6)


@every_engine
@every_option
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
def test_as_packed_and_unpacked(engine: str, options: dict[str, Any], dtype: torch.dtype, given: bool) -> None:
    """Dropout too: the same masks on the same rows."""
    theirs, ours = pair(dtype, **options)
    x, hx = padded(ours), states(ours) if given else None
    with torchlstm.use_engine(engine):
        close(observe(ours, x, hx, lengths=LENGTHS), observe(theirs, x, hx, lengths=LENGTHS))


def test_dropout_draws_as_on_a_packed_sequence_of_many_equal_lengths() -> None:
    theirs, ours = pair(torch.float32, num_layers=2, dropout=0.5)
    lengths = torch.randint(1, 4, (70,))
    lengths[9] = T
    x = padded(ours, batch=70)
    close(observe(ours, x, lengths=lengths), observe(theirs, x, lengths=lengths))


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"] | {"dropout": 0}], ids=["plain", "most"])
@every_engine
def test_sequences_without_steps(engine: str, options: dict[str, Any]) -> None:
    """They keep their state and change nothing for the others."""
    theirs, ours = pair(**options)
    x, hx, lengths, there = padded(ours), states(ours), [0, 4, 0, 7, 2], [1, 3, 4]
    with torchlstm.use_engine(engine):
        found = observe(ours, x, hx, lengths=lengths)
    output, h_n, c_n, dx, dh, dc, *_ = found
    axis = 0 if ours.batch_first else 1
    expected, (h, c) = theirs(
        x.index_select(axis, torch.tensor(there)), tuple(s[:, there] for s in hx), lengths=[4, 7, 2]
    )
    close([output.index_select(axis, torch.tensor(there)), h_n[:, there], c_n[:, there]], [expected, h, c])
    for state, final in zip(hx, (h_n, c_n), strict=True):
        assert torch.equal(final[:, [0, 2]], state[:, [0, 2]])
    assert not steps_of(ours, output)[:, [0, 2]].any()
    assert not steps_of(ours, dx)[:, [0, 2]].any()
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in (output, h_n, c_n)]
    for gradient, cotangent in zip((dh, dc), cotangents[1:], strict=True):
        assert torch.equal(gradient[:, [0, 2]], cotangent[:, [0, 2]])


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
@every_engine
def test_padding_is_never_looked_at(engine: str, batch_first: bool) -> None:
    _, ours = pair(num_layers=2, bidirectional=True, batch_first=batch_first)
    x, lengths = padded(ours), [3, 7, 0, 3, 5]
    beyond = torch.arange(T)[:, None] >= torch.tensor(lengths)  # (T, B)
    poisoned = x.clone()
    steps_of(ours, poisoned)[beyond] = float("nan")
    with torchlstm.use_engine(engine):
        clean, found = observe(ours, x, lengths=lengths), observe(ours, poisoned, lengths=lengths)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))
    assert all(tensor.isfinite().all() for tensor in found)
    assert not steps_of(ours, found[0])[beyond].any()
    assert not steps_of(ours, found[3])[beyond].any()


FORMS: dict[str, Any] = {
    "list": LENGTHS,
    "tuple": tuple(LENGTHS),
    "ndarray": numpy.array(LENGTHS),
    "ndarray-int16": numpy.array(LENGTHS, dtype=numpy.int16),
    "list-of-tensors": [torch.tensor(length) for length in LENGTHS],
} | {str(dtype): torch.tensor(LENGTHS, dtype=dtype) for dtype in (torch.uint8, torch.int16, torch.int32, torch.uint64)}


@pytest.mark.parametrize("lengths", FORMS.values(), ids=FORMS)
def test_forms(lengths: Any) -> None:
    _, ours = pair()
    x = padded(ours)
    expected = ours(x, lengths=torch.tensor(LENGTHS))[0]
    assert torch.equal(ours(x, lengths=lengths)[0], expected)


def test_whole_lengths_change_nothing() -> None:
    _, ours = pair(torch.float32, num_layers=2, dropout=0.5, batch_first=True)
    x = padded(ours)
    for a, b in zip(observe(ours, x, lengths=[T] * B), observe(ours, x), strict=True):
        assert torch.equal(a, b)


@every_engine
@pytest.mark.parametrize("lengths", [[0] * B, []], ids=["all-zero", "no-sequences"])
@pytest.mark.parametrize("steps", [0, T], ids=["T0", "T7"])
def test_nothing_to_compute(engine: str, lengths: list[int], steps: int) -> None:
    _, ours = pair(num_layers=2, bidirectional=True)
    x, hx = padded(ours, steps, len(lengths)), states(ours, len(lengths))
    with torchlstm.use_engine(engine):
        output, h_n, c_n, *gradients = observe(ours, x, hx, lengths=lengths)
        zeros = ours(x, lengths=lengths)[1]
    assert output.shape == (steps, len(lengths), 2 * H)
    assert not output.any()
    assert torch.equal(h_n, hx[0])
    assert torch.equal(c_n, hx[1])
    assert not any(gradient.any() for gradient in (gradients[0], *gradients[3:]))
    assert not any(state.any() for state in zeros)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "negative": ([1, 2, -3, 4, 5], RuntimeError, "from 0 to 7, the steps of the input, got -3 for sequence 2"),
    "too-long": ([1, 2, 3, 4, 8], RuntimeError, "got 8 for sequence 4"),
    "too-few": ([1, 2], RuntimeError, r"one length for each of 5 sequences, got lengths of shape \(2,\)"),
    "a-column": (torch.ones(B, 1, dtype=torch.int64), RuntimeError, r"got lengths of shape \(5, 1\)"),
    "one-number": (3, RuntimeError, r"got lengths of shape \(\)"),
    "float": (torch.ones(B), TypeError, "Expected lengths to be integers, got torch.float32"),
    "floats": ([1.0, 2.0, 3.0, 4.0, 5.0], TypeError, "to be integers, got torch.float32"),
    "bool": (torch.ones(B, dtype=torch.bool), TypeError, "to be integers, got torch.bool"),
    "a-word": ("12345", TypeError, "Expected lengths to be integers, got str"),
}


@pytest.mark.parametrize(("lengths", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_lengths(lengths: Any, kind: type[Exception], message: str) -> None:
    _, ours = pair()
    with pytest.raises(kind, match=message):
        ours(padded(ours), lengths=lengths)


def test_lengths_of_other_inputs() -> None:
    _, ours = pair()
    with pytest.raises(RuntimeError, match="lengths are for batched 3-D input, got unbatched"):
        ours(torch.randn(T, F, dtype=torch.float64), lengths=[3])
    packed = pack_padded_sequence(padded(ours), LENGTHS, enforce_sorted=False)
    with pytest.raises(TypeError, match="input is a PackedSequence"):
        ours(packed, lengths=LENGTHS)
    with pytest.raises(TypeError, match="there are no resets"):
        ours(padded(ours), lengths=LENGTHS, reset_state=states(ours))


def test_lists_and_cpu_tensors_wait_for_no_device() -> None:
    """A tensor of the meta device has no numbers: whoever asked for one would fail."""
    module = torchlstm.LSTM(F, H, 2, bidirectional=True, device="meta")
    x = torch.empty(T, B, F, device="meta")
    for lengths in (LENGTHS, torch.tensor(LENGTHS)):
        output, (h_n, _) = module(x, lengths=lengths)
        assert output.shape == (T, B, 2 * H)
        assert (h_n.shape, h_n.device.type) == ((4, B, H), "meta")


def test_a_default_device_is_not_where_the_plan_is_made() -> None:
    _, ours = pair()
    x = padded(ours)
    expected = ours(x, lengths=LENGTHS)[0]
    with torch.device("meta"):
        assert torch.equal(ours(x, lengths=LENGTHS)[0], expected)


def test_autocast_is_that_of_the_padded_tensor() -> None:
    _, ours = pair(torch.float32, num_layers=2)
    x = padded(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, dense = observe(ours, x, lengths=LENGTHS), ours(x)
    assert (
        [tensor.dtype for tensor in found[:3]] == [torch.bfloat16] * 3 == [dense[0].dtype, *(s.dtype for s in dense[1])]
    )
    for mine, exact in zip(found, observe(ours, x, lengths=LENGTHS), strict=True):
        torch.testing.assert_close(mine.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_swapped_modules_take_lengths() -> None:
    theirs = nn.LSTM(F, H, dtype=torch.float64)
    model = torchlstm.swap(nn.Sequential(copy.deepcopy(theirs)))
    x = padded(theirs)
    expected = theirs(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    torch.testing.assert_close(model[0](x, lengths=LENGTHS)[0], pad_packed_sequence(expected[0])[0])
    torch.testing.assert_close(model[0](x, lengths=LENGTHS)[1], expected[1])


@every_engine
def test_transforms(engine: str) -> None:
    """vmap, gradients of gradients and forward mode over the input, with lengths that stay."""
    _, ours = pair(bidirectional=True)
    x = torch.randn(4, T, 2, F, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        output, (_, c_n) = ours(x, lengths=[2, 6])
        return output.square().sum() + c_n.sum()

    with torchlstm.use_engine(engine), warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = torch.func.vmap(torch.func.grad(loss))(x)
        close([mapped], [torch.stack([torch.func.grad(loss)(each) for each in x])])
        small = torch.randn(3, 2, F, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(lambda x: ours(x, lengths=[1, 3])[0], (small,))
        with pytest.raises(RuntimeError, match="lengths cannot be mapped by vmap"):
            torch.func.vmap(lambda lengths: ours(x[0], lengths=lengths)[0])(torch.tensor([[1, 2], [2, 1]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of torch.jit
        tangent = torch.func.jvp(loss, (x[0],), (x[1],))[1]
        close([tangent], [(torch.func.grad(loss)(x[0]) * x[1]).sum()])
        with pytest.raises(RuntimeError, match=r"torch.jit.trace would keep the lengths"):
            torch.jit.trace(lambda x: ours(x, lengths=[2, 6])[0], (x[0],))


def test_explain() -> None:
    module, x = torchlstm.LSTM(F, H), torch.randn(T, B, F)
    shown = str(torchlstm.explain(module, x, lengths=LENGTHS))
    assert "lengths and resets: 5 sequences of at most 7 steps, 19 rows out of 35" in shown
    assert f"layer 0: ragged B={B}" in shown
    assert "they change nothing" in str(torchlstm.explain(module, x, lengths=[T] * B))
    assert f"dense T=4 B={B}" in str(torchlstm.explain(module, x, lengths=[4] * B))
    assert "lengths" not in str(torchlstm.explain(module, x))
    with pytest.raises(TypeError, match="for an LSTM, got an LSTMCell"):
        torchlstm.explain(torchlstm.LSTMCell(F, H), x[0], lengths=LENGTHS)
