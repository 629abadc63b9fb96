"""`stack_cells`: a plain cell stacked is nn.LSTM, and any cell gets every form of input."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from own_cells import GRUCell, OneStep, Split
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchlstm
from torchlstm.cells import ClippedLSTMCell, stack_cells
from torchlstm.parity import CASES, Case
from torchlstm.parity.judge import judge
from torchlstm.parity.observe import Observation, build, draw, observe

pytestmark = pytest.mark.usefixtures("one_thread")


class Loop(ClippedLSTMCell):
    """nn.LSTM's cell with all its options, which no engine is told of."""

    def as_lstm(self) -> None:
        return None


# The parity table as far as it is about one kind of module whose parameters are named otherwise.
TABLE = [
    case
    for case in CASES.values()
    if not (case.cell or case.trace or case.large)
    and case.autocast is None and not set(case.frozen) - {"input", "hx"} and not case.dtype.is_complex
    and case.dtype in (torch.float64, torch.float32) and case.form not in ("lengths", "resets")
]  # fmt: skip


def ours(case: Case, theirs: nn.Module, cell: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """A stack with nn.LSTM's weights."""
    options = {name: value for name, value in case.options.items() if name != "proj_size" or value}
    module = stack_cells(cell, case.input_size, case.hidden_size, dtype=dtype, **options).train(case.training)
    with torch.no_grad():
        for parameter, other in zip(module.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(other)
    return module


def renamed(seen: Observation, module: nn.Module, theirs: nn.Module) -> Observation:
    names = {
        f"grad {a}": f"grad {b}"
        for (a, _), (b, _) in zip(module.named_parameters(), theirs.named_parameters(), strict=True)
    }
    return {names.get(name, name): value for name, value in seen.items()}


# All of it in a loop; on engines, whose own table it is, every fifth.
RUNS = [(Loop, "auto", case) for case in TABLE]
RUNS += [(ClippedLSTMCell, engine, case) for engine in ("cpu", "reference") for case in TABLE[::5]]


@pytest.mark.filterwarnings("ignore:dropout is applied between layers")
@pytest.mark.parametrize(
    ("cell", "engine", "case"), RUNS, ids=[f"{cell.__name__}-{engine}-{case.name}" for cell, engine, case in RUNS]
)
def test_a_plain_lstm_cell_stacked_is_nn_lstm(cell: type[nn.Module], engine: str, case: Case) -> None:
    if engine == "cpu" and (reason := torchlstm.engines()["cpu"]):
        pytest.skip(reason)
    theirs = build(case, nn.LSTM, nn.LSTMCell, case.dtype)
    module, inputs = ours(case, theirs, cell, case.dtype), draw(case)
    cpu = torch.device("cpu")
    with torchlstm.use_engine(engine):
        mine = renamed(observe(module, case, inputs.to(cpu, case.dtype)), module, theirs)
    rival = observe(theirs, case, inputs.to(cpu, case.dtype))
    wide = copy.deepcopy(theirs).double()
    truth = observe(wide, replace(case, dtype=torch.float64), inputs.to(cpu, torch.float64))
    assert [v for v in judge(mine, rival, truth, case.dtype) if v.reason] == []


def test_parameters_are_drawn_as_nn_lstm_draws_them() -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "proj_size": 3}
    torch.manual_seed(1)
    theirs = nn.LSTM(4, 5, **options)
    torch.manual_seed(1)
    mine = stack_cells(ClippedLSTMCell, 4, 5, **options)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def values(result: Any) -> list[Tensor]:
    output, states = result
    return [output if isinstance(output, Tensor) else output.data, *(states if isinstance(states, tuple) else [states])]


@pytest.mark.parametrize("form", ["dense", "packed", "unbatched"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
def test_a_cell_with_one_state_stacked_is_nn_gru(form: str, bidirectional: bool) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional, "dtype": torch.float64}
    theirs, mine = nn.GRU(4, 5, **options), stack_cells(GRUCell, 4, 5, **options)
    for parameter, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        parameter.data.copy_(other)
    x = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    h = torch.randn(4 if bidirectional else 2, 3, 5, dtype=torch.float64, requires_grad=True)
    results, hx = [], h
    for module in (theirs, mine):
        input: Any = x
        if form == "packed":
            input = pack_padded_sequence(x, torch.tensor([2, 6, 3]), enforce_sorted=False)
        elif form == "unbatched":
            input, hx = x[:, 0], h[:, 0]
        tensors = values(module(input, hx if module is theirs else (hx,)))
        torch.manual_seed(0)
        leaves = [x, h, *module.parameters()]
        results.append(tensors + list(torch.autograd.grad(tensors, leaves, [torch.randn_like(t) for t in tensors])))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


class OneTensor(OneStep):
    def forward(self, x: Tensor, state: Any) -> Any:
        return super().forward(x, state)[0]


X, H = torch.randn(5, 2, 3), torch.randn(1, 2, 4)

ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one-tensor": (lambda: stack_cells(OneTensor, 3, 4)(X), TypeError, "tuple of 2 tensors, got a Tensor"),
    "no-word-bias": (lambda: stack_cells(OneStep, 3, 4, bias=False), TypeError, "bias"),
    "hx-tensor": (lambda: stack_cells(OneStep, 3, 4)(X, H), TypeError, "tuple of 2 tensors, got Tensor"),
    "hx-three": (lambda: stack_cells(OneStep, 3, 4)(X, (H, H, H)), TypeError, "tuple of 2 tensors, got 3 of them"),
    "hx-batch": (
        lambda: stack_cells(OneStep, 3, 4)(X, (H, H[:, :1])),
        RuntimeError,
        r"hx\[1\] of shape \(1, 2, 4\), got \(1, 1, 4\)",
    ),
    "hx-rank": (
        lambda: stack_cells(OneStep, 3, 4)(X[:, 0], (H, H)),
        RuntimeError,
        r"of shape \(1, 4\), got \(1, 2, 4\)",
    ),
    "hx-dtype": (lambda: stack_cells(OneStep, 3, 4)(X, (H.double(), H)), RuntimeError, r"hidden\[0\] dtype"),
    "features": (lambda: stack_cells(OneStep, 3, 4)(X[..., :2]), RuntimeError, "Expected 3, got 2"),
    "rank": (lambda: stack_cells(OneStep, 3, 4)(X[None]), ValueError, "2D or 3D, got 4D"),
    "no-tensor": (lambda: stack_cells(OneStep, 3, 4)([1.0]), TypeError, "got list"),
    "no-steps": (lambda: stack_cells(OneStep, 3, 4)(X[:0]), RuntimeError, "sequence length to be larger than 0"),
    "size": (lambda: stack_cells(OneStep, 3, 0), ValueError, "hidden_size must be an int greater than zero, got 0"),
    "rate": (lambda: stack_cells(OneStep, 3, 4, 2, dropout=1.5), ValueError, r"dropout .* \[0, 1\], got 1.5"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_dropout_of_one_layer_warns() -> None:
    with pytest.warns(UserWarning, match="dropout=0.5 with num_layers=1 does nothing"):
        stack_cells(OneStep, 3, 4, dropout=0.5)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_variational_dropout_has_one_mask_a_sequence(packed: bool) -> None:
    class Copies(nn.Module):
        """Its output is its input: what dropout did to it can be seen."""

        def __init__(self, input_size: int, hidden_size: int) -> None:
            super().__init__()
            self.state_sizes = (hidden_size,)

        def forward(self, x: Tensor, _: Any) -> Any:
            return (x,)

    stack = stack_cells(Copies, 40, 40, num_layers=2, dropout=0.5, variational=True)
    x, lengths = torch.ones(6, 3, 40), torch.tensor([2, 6, 3])
    output = stack(pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x)[0]
    y = pad_packed_sequence(output)[0] if packed else output
    for b, length in enumerate(lengths.tolist() if packed else [6] * 3):
        mask = y[0, b]
        assert set(mask.tolist()) == {0.0, 2.0}
        assert torch.equal(y[:length, b], mask.expand(length, 40))
    assert not torch.equal(y[0, 0], y[0, 1])
    assert torch.equal(stack.eval()(x)[0], x)


def test_constants_are_made_once_a_call_and_are_not_returned() -> None:
    class Shifted(OneStep):
        made = 0

        def constants(self, state: Any) -> Any:
            self.made += 1
            return (torch.arange(len(state[0])).view(-1, 1),)

        def forward(self, x: Tensor, state: Any) -> Any:
            h, c, row = state
            seen.append(row.flatten().tolist())
            return super().forward(x, (h, c))

    seen: list[Any] = []
    stack = stack_cells(Shifted, 3, 4)
    _, states = stack(pack_padded_sequence(X, torch.tensor([5, 2])))
    assert len(states) == 2
    assert stack.cells[0].made == 1
    # The sequences that are alive, at every step.
    assert seen == [[0, 1], [0, 1], [0], [0], [0]]


def test_a_stack_is_a_module_like_any_other() -> None:
    stack = stack_cells(nn.LSTMCell, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
    expected = values(stack(X))
    for twin in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        torch.testing.assert_close(values(twin(X)), expected)
    other = stack_cells(nn.LSTMCell, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
    other.load_state_dict(stack.state_dict())
    torch.testing.assert_close(values(other(X)), expected)
    assert repr(stack).startswith("CellStack(\n  3, 4, num_layers=2, batch_first=True, bidirectional=True\n")
    empty = stack_cells(nn.LSTMCell, 3, 4, device="meta")
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert stack_cells(OneStep, 3, 4, dtype=torch.float64)(X.double())[0].dtype == torch.float64


def test_final_states_own_their_storage() -> None:
    stack = stack_cells(OneStep, 3, 4)
    with torch.no_grad():
        output, (h_n, _) = stack(X)
        before = output.clone()
        h_n.zero_()
    assert torch.equal(output, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
def test_per_sample_gradients() -> None:
    stack = stack_cells(Split, 3, 4, bidirectional=True)
    weights = dict(stack.named_parameters())

    def loss(weights: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(stack, weights, (x,))[0].pow(2).sum()

    batched = torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, X)
    for b in range(2):
        alone = torch.func.grad(loss)(weights, X[:, b])
        torch.testing.assert_close({name: g[b] for name, g in batched.items()}, alone)


@pytest.mark.parametrize("cell", [OneStep, ClippedLSTMCell, nn.LSTMCell], ids=lambda cell: cell.__name__)
def test_autocast(cell: type[nn.Module]) -> None:
    stack = stack_cells(cell, 3, 4, num_layers=2)
    expected = values(stack(X))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values(stack(X))
    assert not torch.equal(found[0].float(), expected[0])
    torch.testing.assert_close([tensor.float() for tensor in found], expected, rtol=0.05, atol=0.05)


def test_an_engine_computes_what_a_plain_lstm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchlstm.cells import stack as module

    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[3]))
        return real(*arguments)

    real = module.layer
    monkeypatch.setattr(module, "layer", counted)
    stack_cells(ClippedLSTMCell, 3, 4, num_layers=2, bidirectional=True)(X)
    assert calls == [2, 2]
    stack_cells(ClippedLSTMCell, 3, 4, cell_clip=1.0)(X)
    assert calls == [2, 2]


def test_explain_says_that_a_loop_runs_and_why() -> None:
    plain, clipped = (stack_cells(ClippedLSTMCell, 3, 4, 2, cell_clip=clip) for clip in (None, 1.0))
    text = str(torchlstm.explain(clipped, X))
    assert text.count("a loop in torch operations: engines compute plain LSTMs, not a ClippedLSTMCell") == 2
    explanation = torchlstm.explain(plain, pack_padded_sequence(X, torch.tensor([5, 2])))
    expected = "reference" if torchlstm.engines()["cpu"] else "cpu"
    assert [decision.engine for decision in explanation.decisions] == [expected] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "under autocast" in str(torchlstm.explain(plain, X))
