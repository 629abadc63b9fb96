"""The reference engine's direction with its gradient written out: what it computes, how many operations, and when."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchlstm
from torchlstm import LSTM
from torchlstm.engines.contract import Dense, Ragged, Weights, problem_of
from torchlstm.engines.reference import direct
from torchlstm.engines.reference import engine as reference
from torchlstm.engines.shared.access import DIRECT
from torchlstm.parity import CASES, run_case

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = direct.LEAST + 2
ROWS = {
    "dense": Dense(STEPS, 4),
    "falling": Ragged(torch.tensor([4, 4, 3, 3, 1, 1, 1, 1, 1])),
    "ended": Ragged(torch.tensor([3, 2, 2, 2, 1, 1, 1, 0, 0])),  # a sequence without a step, steps without a sequence
}


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU is given: those that are no view and do not only ask for memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        memory = name.startswith(("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.detach"))
        if not view and not memory:
            # An addend of two dimensions is copied to the result first.
            self.count[name] += 2 if name == "aten.addmm.default" and args[0].dim() == 2 else 1
        return func(*args, **kwargs or {})


def _launches(steps: int, training: bool, proj: int) -> tuple[int, int]:
    """Of a call, forward and backward."""
    lstm, x = LSTM(4, 6, proj_size=proj), torch.randn(steps, 3, 4, requires_grad=training)
    with torchlstm.use_engine("reference"), torch.set_grad_enabled(training), Launches() as forward:
        output, _ = lstm(x)
    if not training:
        return forward.count.total(), 0
    loss = output.sum()
    with Launches() as backward:
        loss.backward()
    return forward.count.total(), backward.count.total()


# Training, projection: launches of a step forward and backward, and of those of a call that no step has.
NUMBERS = {
    "inference": (False, 0, (7, 0), (12, 0)),
    "inference-proj": (False, 2, (8, 0), (13, 0)),
    "training": (True, 0, (7, 4), (12, 31)),
    "training-proj": (True, 2, (8, 5), (14, 32)),
}
LOOP = {
    "inference": (False, 0, (11, 0)),
    "inference-proj": (False, 2, (12, 0)),
    "training": (True, 0, (11, 17)),
    "training-proj": (True, 2, (12, 20)),
}


@pytest.mark.parametrize(("training", "proj", "each", "rest"), NUMBERS.values(), ids=NUMBERS)
def test_launches(
    training: bool, proj: int, each: tuple[int, int], rest: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "access_of", lambda _: DIRECT)  # a mode that counts would be an obstacle
    long, short = _launches(30, training, proj), _launches(20, training, proj)
    assert tuple((a - b) / 10 for a, b in zip(long, short, strict=True)) == each
    assert tuple(a - 20 * b for a, b in zip(short, each, strict=True)) == rest


@pytest.mark.parametrize(("training", "proj", "each"), LOOP.values(), ids=LOOP)
def test_launches_of_the_loop(training: bool, proj: int, each: tuple[int, int]) -> None:
    """What a step of `lstm_step` costs, which the figures above are to be compared with."""
    long, short = _launches(30, training, proj), _launches(20, training, proj)
    assert tuple((a - b) / 10 for a, b in zip(long, short, strict=True)) == each


def _problem(form: str, bias: bool, proj: int, dtype: torch.dtype = torch.float64) -> tuple[Any, list[Tensor]]:
    """A problem of one direction, and x, h_0, c_0 and its weights by `flatten`, which ask for gradients."""
    torch.manual_seed(3)
    rows, hidden, batch = ROWS[form], 5, 4
    count = rows.steps * batch if isinstance(rows, Dense) else int(rows.batch_sizes.sum())
    shapes = [(count, 3), (1, batch, proj or hidden), (1, batch, hidden), (4 * hidden, 3), (4 * hidden, proj or hidden)]
    shapes += [(4 * hidden,)] * 2 * bias + [(proj, hidden)] * bool(proj)
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    x, h_0, *_ = tensors
    return problem_of(x, h_0, reference.unflatten(tensors[3:], 1), rows), tensors


def _observe(problem: Any, tensors: list[Tensor], d: int) -> list[Tensor]:
    """The results of one direction, and the gradients from random cotangents of all of them."""
    x, h, c, *flat = tensors
    weights: Weights = reference.unflatten(flat, 1)[0]
    results = reference._direction(problem, d, x, h[0], c[0], weights)
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    return [*(r.detach() for r in results), *torch.autograd.grad(results, tensors, cotangents)]


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("reverse", [0, 1], ids=["onwards", "backwards"])
@pytest.mark.parametrize(("bias", "proj"), [(True, 0), (False, 3)], ids=["bias", "proj-nobias"])
def test_the_same_as_the_loop(form: str, reverse: int, bias: bool, proj: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, tensors = _problem(form, bias, proj)
    with torch.no_grad():
        x, h, c, *flat = tensors
        inference = reference._direction(problem, reverse, x, h[0], c[0], reference.unflatten(flat, 1)[0])
    found = _observe(problem, tensors, reverse)
    monkeypatch.setattr(direct, "LEAST", 100)
    expected = _observe(problem, tensors, reverse)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(inference, found[:3], strict=True):
        assert torch.equal(ours, theirs)


LOOPED = [
    "float32-dense", "float32-packed", "bfloat16-everything-packed", "float16-dense", "zeros-hx-given", "hx-expanded",
    "L2-bi-proj3-unsorted", "nan-in-one-row-packed", "loss-c_n-packed", "frozen-weights", "batch-0",
]  # fmt: skip


@pytest.mark.parametrize("name", LOOPED)
def test_parity_of_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity cases on the reference engine run what they would not without a transform: here the loop itself."""
    monkeypatch.setattr(direct, "LEAST", 100)
    assert run_case(CASES[name], engine="reference").passed


@pytest.mark.parametrize("form", ["dense", "ended"])
def test_gradients_of_gradients(form: str) -> None:
    problem, tensors = _problem(form, True, 3)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, h, c, *flat = tensors
        return tuple(reference._direction(problem, 1, x, h[0], c[0], reference.unflatten(flat, 1)[0]))

    assert torch.autograd.gradcheck(run, tensors, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_gradients_of_few_results_and_arguments() -> None:
    """Cotangents that are missing, and arguments of which no gradient is asked for."""
    lstm, x = LSTM(3, 4, dtype=torch.float64), torch.randn(STEPS, 2, 3, dtype=torch.float64)
    for parameter in (lstm.weight_ih_l0, lstm.bias_hh_l0):
        parameter.requires_grad_(False)
    wanted = [lstm.weight_hh_l0, lstm.bias_ih_l0]
    found = []
    for engine in ("reference", "auto"):
        with torchlstm.use_engine(engine):
            found.append(torch.autograd.grad(lstm(x)[1][1].sum(), wanted))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been run since, "direct" or "loop", once a direction."""
    seen: list[str] = []

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return function(*args, **kwargs)

        return noted

    monkeypatch.setattr(direct, "forward", note("direct", direct.forward))
    monkeypatch.setattr(reference, "_looped", note("loop", reference._looped))
    monkeypatch.setattr("torchlstm.call.dispatch._forced", "reference")
    return seen


def _plain(lstm: LSTM, x: Tensor) -> None:
    lstm(x)


def _vmap(lstm: LSTM, x: Tensor) -> None:
    torch.func.vmap(lambda row: lstm(row)[0])(x.movedim(1, 0))


def _forward_mode(lstm: LSTM, x: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        lstm(torch.autograd.forward_ad.make_dual(x, x))


def _counted(lstm: LSTM, x: Tensor) -> None:
    with Launches():
        lstm(x)


def _complex(lstm: LSTM, x: Tensor) -> None:
    LSTM(3, 4, dtype=torch.complex64)(x.to(torch.complex64))


WAYS: dict[str, tuple[Callable[[LSTM, Tensor], None], list[str]]] = {
    "plain": (_plain, ["direct"]),
    "few-steps": (lambda lstm, x: _plain(lstm, x[: direct.LEAST - 1]), ["loop"]),
    "vmap": (_vmap, ["loop"]),
    "forward-mode": (_forward_mode, ["loop"]),
    "dispatch-mode": (_counted, ["loop"]),
    "trace": (lambda lstm, x: lstm.trace(x), ["loop"]),  # type: ignore[dict-item,return-value]
    "complex": (_complex, ["loop"]),
    "another-device": (lambda lstm, x: _plain(lstm.to("meta"), x.to("meta")), ["loop"]),
}


@pytest.mark.parametrize(("way", "expected"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # forward mode's own use
def test_which_of_the_two_runs(
    way: Callable[[LSTM, Tensor], None], expected: list[str], training: bool, runs: list[str]
) -> None:
    with torch.set_grad_enabled(training):
        way(LSTM(3, 4), torch.randn(STEPS, 2, 3))
    assert runs == expected


def test_a_graph_of_gradients_is_the_loops(runs: list[str]) -> None:
    lstm, x = LSTM(3, 4), torch.randn(STEPS, 2, 3, requires_grad=True)
    torch.autograd.grad(lstm(x)[0].sum(), x)
    assert runs == ["direct"]
    torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
    assert runs == ["direct", "direct", "loop"]


@pytest.mark.parametrize("proj", [0, 3])
def test_results_and_biases_may_be_written_into(proj: int) -> None:
    lstm, x = LSTM(3, 4, proj_size=proj), torch.randn(STEPS, 2, 3, requires_grad=True)
    with torchlstm.use_engine("reference"):
        output, states = lstm(x)
        (expected,) = torch.autograd.grad((output * 2).sum(), x)
        output, states = lstm(x)
    output.mul_(2)
    with torch.no_grad():
        lstm.bias_hh_l0.add_(1)
        for state in states:
            state.zero_()
    assert torch.equal(torch.autograd.grad(output.sum(), x)[0], expected)


def test_weights_that_change_before_the_backward_are_noticed() -> None:
    lstm, x = LSTM(3, 4), torch.randn(STEPS, 2, 3, requires_grad=True)
    with torchlstm.use_engine("reference"):
        output, _ = lstm(x)
    with torch.no_grad():
        lstm.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_what_is_given_is_not_written_into() -> None:
    lstm, x = LSTM(3, 4), torch.randn(STEPS, 2, 3)
    given = (x, torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    before = [tensor.clone() for tensor in given]
    with torchlstm.use_engine("reference"), torch.no_grad():
        _, states = lstm(x, given[1:])
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
    assert not {state.data_ptr() for state in states} & {tensor.data_ptr() for tensor in given}


def test_chunks_of_many_steps() -> None:
    """`checkpoint_every` runs each chunk twice, the second time within a backward."""
    found = []
    for every in (None, direct.LEAST):
        torch.manual_seed(2)
        lstm = LSTM(3, 4, bidirectional=True, dtype=torch.float64)
        x = torch.randn(2 * direct.LEAST + 1, 2, 3, dtype=torch.float64, requires_grad=True)
        lstm.checkpoint_every = every
        with torchlstm.use_engine("reference"):
            found.append(torch.autograd.grad(lstm(x)[0].square().sum(), [x, *lstm.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
