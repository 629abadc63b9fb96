"""The kernel on packed weights: each format and instruction set against the same arithmetic in torch."""

import random
from typing import Any

import pytest
import torch
from frozen_cases import FORMATS, packed_of, sizes_of, weights_of, written_out
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm
from torchlstm.engines.cpu import engine as cpu
from torchlstm.engines.cpu import frozen
from torchlstm.engines.shared.rounding import Format

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

# Rounding of float32; with int8, activations near the middle of two integers may go either way.
TOLERANCE = {None: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5, torch.int8: 3e-5}

formats = pytest.mark.parametrize("format", FORMATS, ids=str)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set that the machine has."""
    number = cpu.ISAS[request.param]
    if cpu._kernel.isa(number) != number:
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setattr(cpu, "_isa", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def drawn(rng: random.Random) -> tuple[nn.LSTM, int, int]:
    """A module, T and B: sizes around multiples of the widths of vectors."""
    hidden = rng.choice([2, 3, 7, 8, 15, 16, 17, 31, 33, 40, 70])
    module = torchlstm.LSTM(
        rng.choice([1, 2, 3, 5, 8, 16, 19, 33, 70]),
        hidden,
        num_layers=rng.choice([1, 1, 2, 3]),
        bidirectional=rng.random() < 0.4,
        proj_size=rng.choice([0, 0, rng.randint(1, hidden - 1)]),
        bias=rng.random() < 0.8,
    )
    return module, rng.choice([1, 2, 3, 5, 9]), rng.choice([1, 2, 3, 4, 6, 7, 13, 26])


def states_of(module: nn.LSTM, batch: int) -> tuple[Tensor, Tensor]:
    count = module.num_layers * (1 + module.bidirectional)
    width = module.proj_size or module.hidden_size
    return 2 * torch.randn(count, batch, width), torch.randn(count, batch, module.hidden_size)


def flat(results: Any) -> list[Tensor]:
    y, states = results
    return [y.data if isinstance(y, PackedSequence) else y, *states]


@formats
def test_unpacks_to_what_was_packed(format: Format, isa: str) -> None:
    rng = random.Random(1)
    for _ in range(20):
        module, _, _ = drawn(rng)
        weights = weights_of(module, format)
        for layer, found in zip(weights, frozen.unpack(packed_of(module, format)), strict=True):
            for expected, got in zip(layer, found, strict=True):
                for a, b in zip(expected, got, strict=True):
                    pairs = [(a, b)] if a is None or isinstance(a, Tensor) else list(zip(a, b, strict=True))
                    for one, other in pairs:
                        assert (one is None) == (other is None)
                        assert one is None or (one.dtype == other.dtype and torch.equal(one, other))


@formats
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "packed"])
def test_computes_what_is_written_out(format: Format, ragged: bool, isa: str) -> None:
    rng = random.Random(2)
    for case in range(40):
        module, steps, batch = drawn(rng)
        x, (h_0, c_0) = torch.randn(steps, batch, module.input_size), states_of(module, batch)
        sizes, given = [batch] * steps, x
        if ragged:
            lengths = sorted((rng.randint(1, steps) for _ in range(batch)), reverse=True)
            given = pack_padded_sequence(x, torch.tensor(lengths))
            sizes = given.batch_sizes.tolist()
        results = frozen.run(packed_of(module, format), given, (h_0, c_0), None, False, None)
        y, h_n, c_n = written_out(weights_of(module, format), x[: len(sizes)], h_0, c_0, sizes)
        if ragged:
            y = torch.cat([y[t, :n] for t, n in enumerate(sizes)])
        for name, found, expected in zip(("y", "h_n", "c_n"), flat(results), (y, h_n, c_n), strict=True):
            error = float((found - expected).abs().max())
            assert error <= TOLERANCE[format], f"case {case}, {module}, T={steps} B={batch}: {name} is off by {error}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_as_they_are_give_the_bits_of_the_module(dtype: torch.dtype, isa: str) -> None:
    rng = random.Random(3)
    with torchlstm.use_engine("cpu"), torch.no_grad():
        for case in range(60):
            module, steps, batch = drawn(rng)
            if case % 3 == 0:
                # Few steps of one or two sequences take another way.
                steps, batch = rng.choice([(1, 1), (1, 9), (2, 1), (4, 2), (8, 1)])
                module = torchlstm.LSTM(
                    rng.choice([31, 64, 70]), rng.choice([63, 64, 97]), bidirectional=rng.random() < 0.5
                )
            module = module.to(dtype)
            x = torch.randn(steps, batch, module.input_size, dtype=dtype)
            hx = None if case % 2 else tuple(state.to(dtype) for state in states_of(module, batch))
            found, expected = frozen.run(packed_of(module, None), x, hx, None, False, None), module(x, hx)
            for one, other in zip(flat(found), flat(expected), strict=True):
                assert torch.equal(one, other), f"case {case}, {module}, T={steps} B={batch}"


@formats
@pytest.mark.parametrize(
    ("steps", "batch"), [(1, 1), (1, 3), (1, 9), (2, 1), (3, 2), (4, 3), (30, 1)], ids=lambda size: str(size)
)
def test_later_calls_give_the_same_bits(format: Format, steps: int, batch: int, isa: str, threads: Any) -> None:
    """Calls read the weights of the units by turns from the first to the last and back."""
    module = torchlstm.LSTM(1100, 200, bidirectional=True)
    packed, x, states = packed_of(module, format), torch.randn(steps, batch, 1100), states_of(module, batch)
    y, h_n, c_n = written_out(weights_of(module, format), x, *states, [batch] * steps)
    for count in (1, 2):
        threads(count)
        calls = [flat(frozen.run(packed, x, states, None, False, None)) for _ in range(3)]
        for found in calls:
            assert all(torch.equal(one, first) for one, first in zip(found, calls[0], strict=True))
        for one, expected in zip(calls[0], (y, h_n, c_n), strict=True):
            torch.testing.assert_close(one, expected.float(), rtol=0, atol=TOLERANCE[format])


@formats
def test_forms_of_a_call_give_the_same_bits(format: Format) -> None:
    module = torchlstm.LSTM(19, 33, num_layers=2, bidirectional=True)
    packed, x, (h, c) = packed_of(module, format), torch.randn(6, 5, 19), states_of(module, 5)
    expected = flat(frozen.run(packed, x, (h, c), None, False, None))
    out = torch.empty_like(expected[0])
    given = frozen.run(packed, x, (h, c), None, False, out)
    assert given[0] is out
    turned = flat(frozen.run(packed, x.transpose(0, 1).contiguous(), (h, c), None, True, None))
    strided = flat(frozen.run(packed, x.transpose(0, 1).contiguous().transpose(0, 1), (h, c), None, False, None))
    whole = flat(frozen.run(packed, pack_padded_sequence(x, torch.full((5,), 6)), (h, c), None, False, None))
    turned[0], whole[0] = turned[0].transpose(0, 1), whole[0].view_as(out)
    single = flat(frozen.run(packed, x[:, 2], (h[:, 2].contiguous(), c[:, 2].contiguous()), None, False, None))
    for i, result in enumerate(expected):
        for found in (flat(given), turned, strided, whole):
            assert torch.equal(found[i], result)
        if format is not None:
            # Weights as they are take another way for one sequence than for five.
            assert torch.equal(single[i], result[:, 2])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("directions", [1, 2])
def test_output_goes_into_a_batch_first_buffer(layers: int, directions: int) -> None:
    module = torchlstm.LSTM(19, 33, num_layers=layers, bidirectional=directions == 2)
    packed, x, (h, c) = packed_of(module, torch.int8), torch.randn(5, 6, 19), states_of(module, 5)
    y, (h_n, c_n) = frozen.run(packed, x, (h, c), None, True, None)
    out = torch.empty(5, 6, 33 * directions)
    assert frozen.run(packed, x, (h, c), None, True, out)[0] is out
    assert torch.equal(out, y)
    assert frozen.step(packed, x, (h, c), out.zero_(), batch_first=True) is out
    for found, expected in ((out, y), (h, h_n), (c, c_n)):
        assert torch.equal(found, expected)


def test_a_step_gets_the_threads_that_its_work_is_worth(threads: Any) -> None:
    threads(2)
    for layer, given in (((16, 16), 1), ((16, 16, 2), 1), ((200, 200), 2), ((2000, 16), 2), ((8, 140, 2), 2)):
        module = torchlstm.LSTM(*layer)
        packed, states = packed_of(module, torch.float16), states_of(module, 1)
        frozen.step(packed, torch.randn(1, 1, layer[0]), states, None)
        assert cpu.latest_threads().given == given, layer


@pytest.mark.parametrize("format", FORMATS[1:], ids=str)
def test_a_sequence_does_not_depend_on_the_batch_nor_on_chunks(format: Format, isa: str) -> None:
    module = torchlstm.LSTM(21, 37, proj_size=5)
    packed, x, (h, c) = packed_of(module, format), torch.randn(7, 26, 21), states_of(module, 26)
    y, (h_n, c_n) = frozen.run(packed, x, (h, c), None, False, None)
    for batch in (1, 2, 3, 6, 7, 13):
        state = h[:, :batch].contiguous(), c[:, :batch].contiguous()
        few = flat(frozen.run(packed, x[:, :batch].contiguous(), state, None, False, None))
        for found, expected in zip(few, (y, h_n, c_n), strict=True):
            assert torch.equal(found, expected[:, :batch])
    state = h.clone(), c.clone()
    for chunk, expected in zip(x.split(3), y.split(3), strict=True):
        out = torch.empty_like(expected)
        assert frozen.step(packed, chunk, state, out) is out
        assert torch.equal(out, expected)
    assert torch.equal(state[0], h_n)
    assert torch.equal(state[1], c_n)


@formats
def test_threads_do_not_change_a_bit(format: Format, threads: Any) -> None:
    for hidden, batch in ((200, 1), (40, 60)):
        module = torchlstm.LSTM(64, hidden, bidirectional=True)
        packed, x = packed_of(module, format), torch.randn(30, batch, 64)
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(flat(frozen.run(packed, x, None, None, False, None)))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@formats
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_not_finite_stays_in_its_row(format: Format, bad: float, isa: str) -> None:
    for batch in (2, 9):
        module = torchlstm.LSTM(20, 18)
        packed, x = packed_of(module, format), torch.randn(4, batch, 20)
        clean = flat(frozen.run(packed, x, None, None, False, None))
        dirty = x.clone()
        dirty[1, 1, 7] = bad
        found, module_says = flat(frozen.run(packed, dirty, None, None, False, None)), flat(module(dirty))
        others = [b for b in range(batch) if b != 1]
        for a, b in zip(clean, found, strict=True):
            assert torch.equal(a[:, others], b[:, others])
        assert torch.equal(clean[0][0], found[0][0])
        if format is torch.int8:
            assert found[0][1:, 1].isnan().all()
        else:
            assert torch.equal(found[0].isnan(), module_says[0].isnan())


def test_integers_keep_extremes(isa: str) -> None:
    """Weights that all are 127 or -127 times their scale, as many terms as a sum may have, and rows of zeros."""
    module = torchlstm.LSTM(3000, 24, bias=False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.where(torch.rand_like(weight) < 0.5, -1.0, 1.0) * 2**-6)
            weight[5::7] = 0
            weight[6::7] = 2**-6
    x = torch.ones(2, 4, 3000)
    x[0, 1], x[1, 2], x[1, 3] = -1, 0, 1e-38
    zeros = torch.zeros(1, 4, 24)
    y, (h_n, c_n) = frozen.run(packed_of(module, torch.int8), x, None, None, False, None)
    expected = written_out(weights_of(module, torch.int8), x, zeros, zeros, [4, 4])
    for found, wanted in zip((y, h_n, c_n), expected, strict=True):
        assert torch.allclose(found.double(), wanted.double(), rtol=0, atol=1e-5)


@formats
def test_a_cell(format: Format) -> None:
    cell = torchlstm.LSTMCell(13, 21)
    layer = torchlstm.LSTM(13, 21)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    packed, x = packed_of(layer, format), torch.randn(5, 13)
    state = torch.randn(5, 21), torch.randn(5, 21)
    expected = frozen.run(packed, x.unsqueeze(0), tuple(s.unsqueeze(0) for s in state), None, False, None)[1]
    found = frozen.run_cell(packed, x, state)
    assert all(torch.equal(a, b[0]) for a, b in zip(found, expected, strict=True))
    assert frozen.run_cell(packed, x, None)[0].shape == (5, 21)
    assert frozen.run_cell(packed, x[0], (state[0][0], state[1][0]))[0].shape == (21,)
    assert frozen.step_cell(packed, x, state)
    assert all(torch.equal(a, b) for a, b in zip(state, found, strict=True))


def test_what_is_not_for_the_kernel_comes_back_as_none() -> None:
    module = torchlstm.LSTM(6, 8)
    packed, x, (h, c) = packed_of(module, torch.int8), torch.randn(3, 2, 6), states_of(module, 2)
    run, out = frozen.run, torch.empty(3, 2, 8)
    assert run(packed, x, (h, c), None, False, out) is not None
    odd = {
        "features": (x[..., :5], (h, c), out),
        "dtype": (x.double(), (h.double(), c.double()), out),
        "empty": (x[:0], (h, c), None),
        "states": (x, (h[:, :1], c[:, :1]), out),
        "one state": (x, (h, None), out),
        "no tensor": ([1.0], None, None),
        "out of another shape": (x, (h, c), out[:2]),
        "out of another dtype": (x, (h, c), out.double()),
        "not sorted": (pack_padded_sequence(x, torch.tensor([2, 3]), enforce_sorted=False), None, None),
        "a gradient wanted": (x.clone().requires_grad_(), (h, c), out),
    }
    for name, (given, hx, to) in odd.items():
        assert run(packed, given, hx, None, False, to) is None, name
    with torch.no_grad():
        assert run(packed, x.clone().requires_grad_(), (h, c), None, False, out) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert run(packed, x, (h, c), None, False, out) is None
    assert frozen.step(packed, x[..., :5], (h, c), None) is None
    packed.data = packed.data[:-1]
    assert run(packed, x, (h, c), None, False, out) is None


def test_packs_only_what_a_kernel_reads() -> None:
    wide = torchlstm.LSTM(1 << 16, 1)
    assert frozen.pack(sizes_of(wide), weights_of(wide, torch.int8)) is None
    assert frozen.pack(sizes_of(wide), weights_of(wide, torch.bfloat16)) is not None
    deep = torchlstm.LSTM(1, 1, num_layers=17)
    assert frozen.pack(sizes_of(deep), weights_of(deep, None)) is None
    with pytest.raises(ValueError, match="no such instruction set, format or sizes"):
        cpu._kernel.frozen(3, 9, 4, 1, 1, 0, 1, 1)


def test_the_address_of_the_weights_may_change() -> None:
    module = torchlstm.LSTM(6, 8)
    packed, x = packed_of(module, torch.float16), torch.randn(3, 2, 6)
    before = frozen.run(packed, x, None, None, False, None)[0]
    packed.data = packed.data.clone()
    packed.data.share_memory_()
    assert torch.equal(frozen.run(packed, x, None, None, False, None)[0], before)
