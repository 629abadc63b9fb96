"""torch.jit.trace: a program that is right for other lengths and batch sizes than its example's, or an error."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import torchlstm
from torchlstm import cells

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    # Of torch's own pack and pad, which a trace hands tensors in the place of sizes.
    pytest.mark.filterwarnings("ignore:.*pack_padded_sequence has been called:UserWarning"),
]


@pytest.fixture(autouse=True)
def not_optimised() -> Iterator[None]:
    """Run programs as they were recorded: to optimise each for every new shape takes most of the time."""
    with torch.jit.optimized_execution(False):
        yield


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "two-layers": {"num_layers": 2},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 3, "bidirectional": True},
    "batch-first": {"batch_first": True},
}
EXAMPLES = {"equal": [2, 2], "falling": [3, 1], "single": [3]}
CALLS = ([2, 2], [2, 1], [2, 1, 1], [4, 4, 4], [5, 3, 3, 1], [1], [6])


class Packing(nn.Module):
    """Padded sequences through a module that packs and pads."""

    def __init__(self, inner: nn.Module, enforce_sorted: bool = False) -> None:
        super().__init__()
        self.inner, self.enforce_sorted = inner, enforce_sorted
        self.batch_first = bool(getattr(inner, "batch_first", False))

    def forward(self, x: Tensor, lengths: Tensor, *hx: Tensor) -> tuple[Tensor, ...]:
        packed = pack_padded_sequence(x, lengths, self.batch_first, self.enforce_sorted)
        output, state = self.inner(packed, hx) if hx else self.inner(packed)
        return (*pad_packed_sequence(output, self.batch_first), *state)


class Flat(nn.Module):
    """Output and states as one tuple."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *hx: Tensor) -> tuple[Tensor, ...]:
        output, state = self.inner(x, hx) if hx else self.inner(x)
        return (output, *state)


def _pair(options: dict[str, Any]) -> tuple[nn.LSTM, torchlstm.LSTM]:
    theirs, ours = nn.LSTM(4, 5, **options), torchlstm.LSTM(4, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _input(lengths: list[int], options: dict[str, Any]) -> Tensor:
    steps, batch = max(lengths), len(lengths)
    return torch.randn(*((batch, steps) if options.get("batch_first") else (steps, batch)), 4)


def _states(options: dict[str, Any], *batch: int) -> tuple[Tensor, Tensor]:
    count = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    return torch.randn(count, *batch, options.get("proj_size") or 5), torch.randn(count, *batch, 5)


def _same(got: nn.Module, want: nn.Module, *arguments: Tensor) -> None:
    """The same outputs, and gradients of the parameters and of every argument that has one."""
    floating = [tensor.requires_grad_() for tensor in arguments if tensor.is_floating_point()]
    found = []
    for module in (got, want):
        outputs = module(*arguments)
        loss = sum((k + 1) * tensor.square().sum() for k, tensor in enumerate(outputs) if tensor.is_floating_point())
        found.append((*outputs, *torch.autograd.grad(loss, [*floating, *module.parameters()])))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_packed(options: dict[str, Any], example: list[int], enforce_sorted: bool, with_hx: bool) -> None:
    theirs, ours = (Packing(module, enforce_sorted) for module in _pair(options))

    def arguments(lengths: list[int]) -> tuple[Tensor, ...]:
        hx = _states(options, len(lengths)) if with_hx else ()
        lengths = lengths if enforce_sorted else lengths[::-1]
        return _input(lengths, options), torch.tensor(lengths), *hx

    traced = torch.jit.trace(ours, arguments(example))
    for lengths in CALLS:
        _same(traced, theirs, *arguments(lengths))


@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dense(options: dict[str, Any], batched: bool, with_hx: bool) -> None:
    theirs, ours = (Flat(module) for module in _pair(options))

    def arguments(steps: int, batch: int) -> tuple[Tensor, ...]:
        x = _input([steps] * batch, options) if batched else torch.randn(steps, 4)
        return x, *(_states(options, *[batch] * batched) if with_hx else ())

    traced = torch.jit.trace(ours, arguments(3, 2))
    for sizes in ((3, 2), (5, 4), (1, 1), (2, 7), (9, 2)):
        _same(traced, theirs, *arguments(*sizes))


def test_a_packed_sequence_as_the_argument() -> None:
    class Rows(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, data: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
            output, state = self.inner(PackedSequence(data, sizes))
            return (output.data, *state)

    theirs, ours = map(Rows, _pair({}))
    traced = torch.jit.trace(ours, (torch.randn(4, 4), torch.tensor([2, 2])))
    for sizes in ([2, 2], [3, 2, 2, 1], [1, 1]):
        arguments = torch.randn(sum(sizes), 4), torch.tensor(sizes)
        torch.testing.assert_close(traced(*arguments), theirs(*arguments))
    with pytest.raises(torch.jit.Error, match=r"batch_sizes of a PackedSequence must not rise, got \[1, 2\]"):
        traced(torch.randn(3, 4), torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        traced(torch.randn(5, 4), torch.tensor([2, 1]))


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_a_cell_and_a_loop_over_it(batched: bool) -> None:
    theirs, ours = nn.LSTMCell(4, 5), torchlstm.LSTMCell(4, 5)
    ours.load_state_dict(theirs.state_dict())

    class Twice(nn.Module):
        def __init__(self, cell: nn.Module) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor, *hx: Tensor) -> tuple[Tensor, ...]:
            state = self.cell(x, hx or None)
            return (*self.cell(x, state), state[0])

    for states in (0, 2):

        def arguments(batch: int, states: int = states) -> tuple[Tensor, ...]:
            shape = (batch,) if batched else ()
            return torch.randn(*shape, 4), *(torch.randn(*shape, 5) for _ in range(states))

        traced = torch.jit.trace(Twice(ours), arguments(3))
        for batch in (3, 1, 7):
            _same(traced, Twice(theirs), *arguments(batch))


MISFITS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "one-for-all": ((1, 1, 5), (1, 1, 5), "Expected states of 3 sequences, as the input has, got 1"),
    "too-many": ((1, 4, 5), (1, 4, 5), "Expected states of 3 sequences, as the input has, got 4"),
    "one-c": ((1, 3, 5), (1, 1, 5), "Expected states of 3 sequences, as the input has, got 1"),
    "one-unit": ((1, 3, 5), (1, 3, 1), r"Expected a state of shape \[3, 5\], got \[3, 1\]"),
}


@pytest.mark.parametrize("form", ["dense", "sorted", "unsorted"])
@pytest.mark.parametrize(("h", "c", "message"), MISFITS.values(), ids=MISFITS)
def test_states_that_do_not_fit_are_refused_when_it_runs(
    form: str, h: tuple[int, ...], c: tuple[int, ...], message: str
) -> None:
    _, ours = _pair({})
    model = Flat(ours) if form == "dense" else Packing(ours, enforce_sorted=form == "sorted")
    given = () if form == "dense" else (torch.tensor([4, 4, 4]),)
    traced = torch.jit.trace(model, (torch.randn(4, 3, 4), *given, *_states({}, 3)))
    if form == "unsorted":
        # The rows of a state are permuted before.
        message = f"{message}|shape .* is invalid for input of size"
    with pytest.raises((torch.jit.Error, RuntimeError), match=message):
        traced(torch.randn(4, 3, 4), *given, torch.randn(h), torch.randn(c))


def test_a_learned_state_of_packed_input() -> None:
    theirs, ours = _pair({})
    model = Packing(torchlstm.init.LearnedState(ours))
    with torch.no_grad():
        for tensor in model.inner.initial:
            tensor.normal_()
    traced = torch.jit.trace(model, (_input([2, 2], {}), torch.tensor([2, 2])))
    for lengths in CALLS:
        arguments = _input(lengths, {}), torch.tensor(lengths)
        hx = [tensor.unsqueeze(1).expand(-1, len(lengths), -1) for tensor in model.inner.initial]
        torch.testing.assert_close(traced(*arguments), Packing(theirs)(*arguments, *hx))


def test_states_and_gates_of_packed_input() -> None:
    _, ours = _pair({"bidirectional": True, "num_layers": 2})

    class Tracer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ours

        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
            trace = self.inner.trace(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return tuple(part.data for layer in trace.layers for states in layer for part in states)

    traced = torch.jit.trace(Tracer(), (_input([2, 2], {}), torch.tensor([2, 2])))
    for lengths in CALLS:
        arguments = _input(lengths, {}), torch.tensor(lengths)
        torch.testing.assert_close(traced(*arguments), Tracer()(*arguments))


def test_saved_and_loaded() -> None:
    theirs, ours = (Packing(module) for module in _pair({"num_layers": 2, "bidirectional": True}))
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(ours, (_input([2, 2], {}), torch.tensor([2, 2])), strict=False), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for lengths in CALLS:
        arguments = _input(lengths, {}), torch.tensor(lengths)
        torch.testing.assert_close(loaded(*arguments), theirs(*arguments))


@pytest.mark.parametrize("packs", [False, True], ids=["dense", "packed"])
def test_under_autocast(packs: bool) -> None:
    """The casts are part of the program."""
    _, ours = _pair({"num_layers": 2})
    model = Packing(ours) if packs else Flat(ours)

    def arguments(lengths: list[int]) -> tuple[Tensor, ...]:
        return _input(lengths, {}), *([torch.tensor(lengths)] * packs)

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        traced = torch.jit.trace(model, arguments([2, 2]))
        for lengths in CALLS:
            given = arguments(lengths)
            torch.testing.assert_close(traced(*given), model(*given), rtol=2e-2, atol=2e-2)
    given = arguments([2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(*given)
    torch.testing.assert_close(traced(*given), expected, rtol=2e-2, atol=2e-2)


def test_lengths_resets_and_streams_are_refused() -> None:
    _, ours = _pair({})
    x = torch.randn(3, 2, 4)
    message = "torch.jit.trace would keep the lengths and resets of its example"
    for options in ({"lengths": torch.tensor([3, 1])}, {"resets": torch.zeros(3, 2, dtype=torch.bool)}):
        with pytest.raises(RuntimeError, match=message):
            torch.jit.trace(lambda x, options=options: ours(x, **options)[0], (x,))
    stream = torchlstm.Stream(ours)
    with pytest.raises(RuntimeError, match=r"torch.jit.trace would keep the state of its example"):
        torch.jit.trace(lambda x: stream(x) + 0, (x,))


class GRUCell(nn.GRUCell):
    """A cell of one state, with a module and a buffer in it."""

    state_sizes = (5,)

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.norm(super().forward(x, state[0])) * self.scale,)


STACKS: dict[str, Callable[..., nn.Module]] = {
    "LSTMCell": lambda **options: torchlstm.stack_cells(nn.LSTMCell, 4, 5, **options),
    "own": lambda **options: torchlstm.stack_cells(GRUCell, 4, 5, **options),
    "layernorm": lambda **options: cells.LayerNormLSTM(4, 5, **options),
    "peephole": lambda **options: cells.PeepholeLSTM(4, 5, **options),
    "coupled": lambda **options: cells.CoupledLSTM(4, 5, **options),
    "clipped": lambda **options: cells.ClippedLSTM(4, 5, proj_size=3, cell_clip=0.1, **options),
    "zoneout": lambda **options: cells.ZoneoutLSTM(4, 5, **options).eval(),
    # Certain to be dropped: masks of ones and zeros, one a sequence.
    "variational": lambda **options: cells.VariationalLSTM(4, 5, recurrent_dropout=1.0, **options),
    "recurrent-dropout": lambda **options: cells.RecurrentDropoutLSTM(
        4, 5, recurrent_dropout=1.0, per_sequence=True, **options
    ),
    "weight-drop": lambda **options: cells.WeightDropLSTM(4, 5, **options).eval(),
}


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 1.0}], ids=["one", "four"])
@pytest.mark.parametrize("build", STACKS.values(), ids=STACKS)
def test_stacks_of_cells(build: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    model = build(**options)
    traced = torch.jit.trace(Flat(model), torch.randn(3, 2, 4))
    for steps, batch in ((3, 2), (5, 4), (1, 1), (2, 7)):
        _same(traced, Flat(model), torch.randn(steps, batch, 4))
    traced = torch.jit.trace(Packing(model), (_input([2, 2], {}), torch.tensor([2, 2])))
    for lengths in CALLS:
        _same(traced, Packing(model), _input(lengths, {}), torch.tensor(lengths))
