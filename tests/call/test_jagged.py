"""A jagged nested tensor as input: what nn.LSTM computes of its sequences as a PackedSequence, and jagged as it was."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

import torchlstm
from torchlstm.cells import LayerNormLSTM

ENGINES = [name for name, reason in torchlstm.engines().items() if reason is None]
F, H = 3, 6
LENGTHS = [3, 7, 1, 3, 5]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch-first-no-bias": {"batch_first": True, "bias": False},
    "bidirectional": {"bidirectional": True},
    "projected": {"num_layers": 2, "proj_size": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True, "dropout": 0.4},
}
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.06}

every_engine = pytest.mark.parametrize("engine", ENGINES)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def pair(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.LSTM, torchlstm.LSTM]:
    theirs, ours = nn.LSTM(F, H, dtype=dtype, **options), torchlstm.LSTM(F, H, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def values_of(lengths: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(sum(lengths), F, dtype=dtype)


def offsets_of(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def states(module: nn.RNNBase, batch: int) -> tuple[Tensor, Tensor]:
    """Random h (L*D, B, R) and c (L*D, B, H)."""
    count, dtype = module.num_layers * (1 + module.bidirectional), module.weight_ih_l0.dtype
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    h, c = (torch.randn(count, batch, size, dtype=dtype) for size in sizes)
    return h, c


def gradients(module: nn.Module, results: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Results, and the gradients of leaves and parameters from random cotangents, the same at every call."""
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [*leaves, *module.parameters()], cotangents)]


def observe(module: nn.Module, values: Tensor, hx: Any, offsets: Tensor, call: Any = None) -> list[Tensor]:
    """The jagged call: values of the output, states and all gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in (values, *(hx or ()))]
    torch.manual_seed(3)
    input = torch.nested.nested_tensor_from_jagged(leaves[0], offsets)
    output, (h_n, c_n) = (call or module)(input, tuple(leaves[1:]) or None)
    assert output.offsets() is input.offsets()
    return gradients(module, [output.values(), h_n, c_n], leaves)


def observe_packed(module: nn.Module, values: Tensor, hx: Any, lengths: Sequence[int]) -> list[Tensor]:
    """The same of the sequences as a PackedSequence, the output put end to end again."""
    leaves = [tensor.clone().requires_grad_() for tensor in (values, *(hx or ()))]
    torch.manual_seed(3)
    packed = pack_sequence(leaves[0].split(list(lengths)), enforce_sorted=False)
    output, (h_n, c_n) = module(packed, tuple(leaves[1:]) or None)
    return gradients(module, [torch.cat(unpack_sequence(output)), h_n, c_n], leaves)


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float | None = None) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        allowed = TOLERANCES[mine.dtype] if tolerance is None else tolerance
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        torch.testing.assert_close(mine, theirs, rtol=0, atol=allowed * scale)


@every_engine
@every_option
@pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
def test_as_a_packed_sequence(engine: str, options: dict[str, Any], dtype: torch.dtype, given: bool) -> None:
    """Dropout too: the same masks on the same rows."""
    theirs, ours = pair(dtype, **options)
    values, hx = values_of(LENGTHS, dtype), states(ours, len(LENGTHS)) if given else None
    with torchlstm.use_engine(engine):
        close(observe(ours, values, hx, offsets_of(LENGTHS)), observe_packed(theirs, values, hx, LENGTHS))


@every_engine
@pytest.mark.parametrize("lengths", [[4, 4, 4], [5]], ids=["equal", "one"])
def test_equal_lengths_are_a_dense_batch(engine: str, lengths: list[int]) -> None:
    theirs, ours = pair(num_layers=2, bidirectional=True)
    values, hx = values_of(lengths), states(ours, len(lengths))
    with torchlstm.use_engine(engine):
        close(observe(ours, values, hx, offsets_of(lengths)), observe_packed(theirs, values, hx, lengths))


@every_engine
@every_option
def test_sequences_without_steps(engine: str, options: dict[str, Any]) -> None:
    """They keep their state and change nothing for the others; as with lengths."""
    _, ours = pair(**options | {"dropout": 0, "batch_first": True})
    lengths, longest = [0, 4, 0, 7, 2], 7
    values, hx, offsets = values_of(lengths), states(ours, 5), offsets_of(lengths)

    def padded(input: Tensor, hx: Any) -> Any:
        rows = torch.zeros(5, longest, F, dtype=torch.float64)
        there = torch.arange(longest) < torch.tensor(lengths)[:, None]
        output, state = ours(rows.masked_scatter(there[..., None], input.values()), hx, lengths=lengths)
        return torch.nested.nested_tensor_from_jagged(output[there], input.offsets()), state

    with torchlstm.use_engine(engine):
        found = observe(ours, values, hx, offsets)
        close(found, observe(ours, values, hx, offsets, padded))
    for state, final in zip(hx, found[1:3], strict=True):
        assert torch.equal(final[:, [0, 2]], state[:, [0, 2]])


@every_engine
@pytest.mark.parametrize("batch", [0, 3], ids=["no-sequences", "all-empty"])
def test_nothing_to_compute(engine: str, batch: int) -> None:
    _, ours = pair(num_layers=2, bidirectional=True)
    hx = states(ours, batch)
    with torchlstm.use_engine(engine):
        output, h_n, c_n, *found = observe(ours, values_of([]), hx, torch.zeros(batch + 1, dtype=torch.int64))
    assert output.shape == (0, 2 * H)
    assert torch.equal(h_n, hx[0])
    assert torch.equal(c_n, hx[1])
    assert not any(gradient.any() for gradient in (found[0], *found[3:]))


def test_output_and_input_share_their_ragged_size() -> None:
    _, ours = pair(proj_size=F)
    input = torch.nested.nested_tensor([torch.randn(n, F).double() for n in LENGTHS], layout=torch.jagged)
    output, (h_n, _) = ours(input)
    assert output.shape == input.shape
    torch.testing.assert_close((output + input).values(), output.values() + input.values())
    for k, sequence in enumerate(output.unbind()):
        torch.testing.assert_close(sequence[-1], h_n[0, k])
    padded = output.to_padded_tensor(0.0)  # to the longest of the input
    assert padded.shape == (5, 7, F)
    again = torch.nested.nested_tensor_from_jagged(output.values() * 2, offsets=input.offsets())
    assert (again + output).shape == input.shape


def test_gradient_of_a_nested_leaf() -> None:
    _, ours = pair()
    sequences = [torch.randn(n, F).double() for n in LENGTHS]
    leaf = torch.nested.nested_tensor(sequences, layout=torch.jagged, requires_grad=True)
    output, (h_n, _) = ours(leaf)
    (output.values().square().sum() + h_n.sum()).backward()
    assert leaf.grad.shape == leaf.shape
    for sequence, found in zip(sequences, leaf.grad.unbind(), strict=True):
        alone = sequence.clone().requires_grad_()
        output, (h_n, _) = ours(alone)
        (expected,) = torch.autograd.grad(output.square().sum() + h_n.sum(), alone)
        torch.testing.assert_close(found, expected)


@every_engine
def test_holes(engine: str) -> None:
    """What `torch.nested.narrow` leaves between the sequences is not looked at, and has no gradient."""
    _, ours = pair(num_layers=2, bidirectional=True)
    start, lengths = [0, 1, 2, 3], [3, 2, 4, 0]
    base = torch.randn(4, 6, F, dtype=torch.float64)
    there = torch.zeros(4, 6, dtype=torch.bool)
    for k in range(4):
        there[k, start[k] : start[k] + lengths[k]] = True
    base[~there] = float("nan")
    base.requires_grad_()
    input = torch.nested.narrow(base, 1, torch.tensor(start), torch.tensor(lengths), layout=torch.jagged)
    assert input.lengths() is not None
    hx = states(ours, 4)
    with torchlstm.use_engine(engine):
        output, (h_n, c_n) = ours(input, hx)
        expected = observe(ours, base.detach()[there], hx, offsets_of(lengths))
    assert (output.shape[:2], output.lengths()) == (input.shape[:2], input.lengths())
    rows = torch.cat(output.unbind())
    close([rows, h_n, c_n], expected[:3])
    found = gradients(ours, [rows, h_n, c_n], [base])[3:]
    close([found[0][there], *found[1:]], [expected[3], *expected[6:]])
    assert not found[0][~there].any()


def test_transposed_twice_is_not_contiguous_and_right() -> None:
    _, ours = pair()
    flat = torch.randn(F, sum(LENGTHS), dtype=torch.float64)
    input = torch.nested.nested_tensor_from_jagged(flat, offsets_of(LENGTHS), jagged_dim=2).transpose(1, 2)
    assert not input.values().is_contiguous()
    expected = ours(torch.nested.nested_tensor_from_jagged(flat.t().contiguous(), offsets_of(LENGTHS)))
    torch.testing.assert_close(ours(input)[0].values(), expected[0].values())


def test_autocast_is_that_of_lengths() -> None:
    _, ours = pair(torch.float32, num_layers=2)
    values = values_of(LENGTHS, torch.float32)
    exact = observe(ours, values, None, offsets_of(LENGTHS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = observe(ours, values, None, offsets_of(LENGTHS))
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] * 3 + [torch.float32] * (len(found) - 3)
    close([tensor.float() for tensor in found], exact, 0.06)


@every_engine
def test_trace_and_heat_map(engine: str) -> None:
    _, ours = pair(num_layers=2, bidirectional=True)
    sequences = [torch.randn(n, F).double() for n in LENGTHS]
    input = torch.nested.nested_tensor(sequences, layout=torch.jagged)
    with torchlstm.use_engine(engine):
        found, expected = ours.trace(input), ours.trace(pack_sequence(sequences, enforce_sorted=False))
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        for direction, packed in zip(mine, theirs, strict=True):
            for a, b in zip(direction, packed, strict=True):
                assert a.shape == (*input.shape[:2], H)
                torch.testing.assert_close(a.values(), torch.cat(unpack_sequence(b)))
    pytest.importorskip("matplotlib")
    image = torchlstm.viz.gates(found, layer=1, direction=1, sequence=2).axes[0].images[0].get_array()
    torch.testing.assert_close(torch.from_numpy(image.data), found.layers[1][1].i.unbind()[2].detach().t().float())


def test_explain() -> None:
    input = torch.nested.nested_tensor_from_jagged(values_of(LENGTHS), offsets_of(LENGTHS))
    shown = str(torchlstm.explain(torchlstm.LSTM(F, H).double(), input))
    assert "jagged input: 5 sequences of at most 7 steps, 19 rows out of 19" in shown
    assert f"layer 0: ragged B=5 I={F} H={H}" in shown


@pytest.mark.parametrize("variational", [False, True], ids=["", "variational"])
def test_stacks_of_cells(variational: bool) -> None:
    options = {"dropout": 0.4, "variational": variational, "bidirectional": True}
    stack = LayerNormLSTM(F, H, 2, **options).double()
    hx = (torch.randn(4, 5, H).double(), torch.randn(4, 5, H).double())
    values = values_of(LENGTHS)
    close(observe(stack, values, hx, offsets_of(LENGTHS)), observe_packed(stack, values, hx, LENGTHS))


def test_a_learned_initial_state() -> None:
    _, ours = pair()
    learned = torchlstm.init.LearnedState(ours)
    with torch.no_grad():
        for state in learned.initial:
            state.normal_()
    values = values_of(LENGTHS)
    close(observe(learned, values, None, offsets_of(LENGTHS)), observe_packed(learned, values, None, LENGTHS))


def jagged(shape: tuple[int, ...] = (6, F), offsets: Sequence[int] = (0, 4, 6), **keywords: Any) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(torch.randn(shape).double(), torch.tensor(offsets), **keywords)


H_0 = torch.zeros(1, 2, H, dtype=torch.float64)
WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "features": (jagged((6, 4)), {}, RuntimeError, "must be equal to input_size. Expected 3, got 4"),
    "dtype": (jagged().float(), {}, ValueError, "does not match weight dtype"),
    "two axes": (jagged((6,)), {}, ValueError, r"jagged input of shape \(B, j, I\).*got \(2, j\d+\)"),
    "four axes": (jagged((6, F, 2)), {}, ValueError, r"got \(2, j\d+, 3, 2\)"),
    "features first": (jagged((F, 6), jagged_dim=2), {}, ValueError, r"second axis is the ragged one, got \(2, 3, j"),
    "lengths": (jagged(), {"lengths": [4, 2]}, TypeError, "input is jagged, which has its own"),
    "resets": (jagged(), {"resets": torch.zeros(4, 2) > 0}, TypeError, "resets are for dense tensors, and input is ja"),
    "reset_state": (jagged(), {"reset_state": (H_0, H_0)}, TypeError, "input is jagged"),
    "batch": (
        jagged(),
        {"hx": (H_0[:, :1], H_0[:, :1])},
        RuntimeError,
        r"size \(1, 2, 6\), got \[1, 1, 6\]",
    ),
    "unbatched": (jagged(), {"hx": (H_0[:, 0], H_0[:, 0])}, RuntimeError, "For a jagged input, hx and cx should"),
    "state": (jagged(), {"hx": (H_0.float(), H_0)}, RuntimeError, r"Expected hidden\[0\] dtype torch.float64"),
    "falling": (jagged(offsets=(0, 5, 4)), {}, RuntimeError, r"within its 6 rows, got offsets \[0, 5, 4\]"),
    "too long": (jagged(offsets=(0, 5, 7)), {}, RuntimeError, r"within its 6 rows, got offsets \[0, 5, 7\]"),
    "overlap": (jagged(lengths=torch.tensor([5, 1])), {}, RuntimeError, r"offsets \[0, 4, 6\] and lengths \[5, 1\]"),
}


@pytest.mark.parametrize(("input", "keywords", "kind", "message"), WRONG.values(), ids=WRONG)
def test_misuse(input: Any, keywords: dict[str, Any], kind: type[Exception], message: str) -> None:
    _, ours = pair()
    with pytest.raises(kind, match=message):
        ours(input, **keywords)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_nn_lstm_refuses_it(batch_first: bool) -> None:
    """As docs/differences.md says of torch 2.13."""
    theirs, ours = pair(batch_first=batch_first)
    with pytest.raises((RuntimeError, ValueError), match=r"only concrete integers|Transpose is not supported"):
        theirs(jagged())
    assert ours(jagged())[1][0].shape == (1, 2, H)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_where_nested_tensors_are_not_taken() -> None:
    strided = torch.nested.nested_tensor([torch.randn(2, F), torch.randn(4, F)])
    refused = "Expected a dense input, got a nested tensor of {} layout; those of jagged layout, layout=torch.jagged"
    for module in (torchlstm.LSTM(F, H), LayerNormLSTM(F, H)):
        with pytest.raises(RuntimeError, match=refused.format("strided")):
            module(strided)
    for module in (torchlstm.LSTMCell(F, H), torchlstm.Stream(torchlstm.LSTM(F, H))):
        for input, layout in ((jagged().float(), "jagged"), (strided, "strided")):
            with pytest.raises(RuntimeError, match=refused.format(layout)):
                module(input)
