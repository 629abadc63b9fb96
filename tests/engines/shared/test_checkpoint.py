"""checkpoint_every: the same numbers and gradients, from fewer states kept."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

import torchlstm
from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cpu import engine as cpu
from torchlstm.engines.shared import chunks
from torchlstm.parity import CASES, run_case

ENGINES = [name for name, missing in torchlstm.engines().items() if missing is None]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    with torchlstm.use_engine(request.param):
        yield request.param


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The directions that have run in chunks, each time as often as they did."""
    seen: list[Any] = []
    run = chunks.chunks

    def spy(*arguments: Any) -> Any:
        seen.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(chunks, "chunks", spy)
    return seen


# Everything that a module can be asked, once; seven steps in chunks of three leave one of one step.
PARITY = [
    name
    for name, case in CASES.items()
    if not (case.cell or case.trace or case.dtype.is_complex)
    and case.steps == 7
    and not name.startswith(("L1-", "loss-", "hx-"))
]


@pytest.mark.parametrize("name", PARITY)
def test_parity_with_nn_lstm(name: str, engine: str, chunked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchlstm.LSTM, "checkpoint_every", 3)
    result = run_case(CASES[name], engine=engine)
    assert result.skipped is None
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]
    assert chunked


def everything(module: nn.Module, x: Tensor, lengths: list[int] | None = None) -> list[Tensor]:
    """Results and all gradients, with cotangents of their own, under one seed."""
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    output, (h_n, c_n) = module(x if lengths is None else pack_padded_sequence(x, torch.tensor(lengths)))
    results = [output.data if isinstance(output, PackedSequence) else output, h_n, c_n]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in results]
    return results + list(torch.autograd.grad(results, [x, *module.parameters()], cotangents))


def pair(every: int, **options: Any) -> tuple[torchlstm.LSTM, torchlstm.LSTM]:
    """The same module without and with chunks."""
    torch.manual_seed(0)
    whole = torchlstm.LSTM(4, 6, **options)
    part = copy.deepcopy(whole)
    part.checkpoint_every = every
    return whole, part


@pytest.mark.parametrize("every", [1, 2, 5, 11, 12, 1000])
def test_any_number_of_steps(every: int, engine: str) -> None:
    whole, part = pair(every, num_layers=2, dropout=0.3, bidirectional=True, proj_size=3, dtype=torch.float64)
    x = torch.randn(11, 3, 4, dtype=torch.float64)
    for lengths in (None, [11, 6, 6]):
        expected = everything(whole, x, lengths)
        torch.testing.assert_close(everything(part, x, lengths), expected, rtol=0, atol=1e-12)


def test_a_chunk_that_is_handed_over_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step at a time, as a large one is."""
    if torchlstm.engines()["cpu"]:
        pytest.skip("no cpu engine")
    monkeypatch.setattr(cpu, "_PART", 1)
    whole, part = pair(5, bidirectional=True, dtype=torch.float64)
    x = torch.randn(11, 3, 4, dtype=torch.float64)
    for lengths in (None, [11, 6, 6]):
        expected = everything(whole, x, lengths)
        torch.testing.assert_close(everything(part, x, lengths), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [Dense(5, 3), Ragged(torch.tensor([3, 3, 2, 1, 1]))], ids=["dense", "ragged"])
def test_chunks_of_a_reverse_problem(rows: Any) -> None:
    """They are those of the second of two directions."""
    both = Problem(rows, 3, 4, 6, 0, 2, True, torch.float32, torch.device("cpu"), checkpoint_every=2)
    alone = both._replace(directions=1, reverse=True)
    found, expected = list(chunks.chunks(alone, 0)), list(chunks.chunks(both, 1))
    assert [chunk.number for chunk in found] == [2, 1, 0]
    assert [chunk.rows for chunk in found] == [chunk.rows for chunk in expected]
    assert all(chunk.problem.reverse for chunk in found)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 4}], ids=["plain", "both", "projected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_bit_for_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    """On the CPU engine, while three sequences or more are alive: rows in tiles of one or two are summed otherwise."""
    if torchlstm.engines()["cpu"]:
        pytest.skip("no cpu engine")
    torch.manual_seed(0)
    whole = torchlstm.LSTM(20, 40, dtype=dtype, **options)
    part = copy.deepcopy(whole)
    part.checkpoint_every = 5
    x = torch.randn(17, 5, 20, dtype=dtype)
    for lengths in (None, [17, 17, 17, 12, 9]):
        found, expected = everything(part, x, lengths), everything(whole, x, lengths)
        assert all(map(torch.equal, found[:3], expected[:3]))
        # And the same bits again, as always.
        assert all(map(torch.equal, found, everything(part, x, lengths)))


def test_it_costs_nothing_where_no_gradient_is_wanted(engine: str, chunked: list[Any]) -> None:
    _, part = pair(2)
    x = torch.randn(7, 3, 4)
    with torch.no_grad():
        part(x)
    with torch.no_grad(), FlopCounterMode(display=False):  # where a kernel is an operator
        part(x)
    part.requires_grad_(False)(x)
    assert not chunked
    part(x.requires_grad_())
    assert len(chunked) == 1


def test_a_graph_may_run_twice(engine: str) -> None:
    _, part = pair(2)
    x = torch.randn(7, 3, 4, requires_grad=True)
    loss = part(x)[0].sum()
    first = torch.autograd.grad(loss, [x, *part.parameters()], retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(loss, [x, *part.parameters()]), first))


def function(module: torchlstm.LSTM) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    names = [name for name, _ in module.named_parameters()]
    layers = 1 + module.bidirectional
    states = [torch.randn(layers, 2, size, dtype=torch.float64) for size in (module.proj_size or 6, 6)]

    def call(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        output, state = functional_call(module, dict(zip(names, weights, strict=True)), (x, (h, c)))
        return (output, *state)

    x = torch.randn(5, 2, 4, dtype=torch.float64)
    return call, [t.detach().requires_grad_() for t in (x, *states, *module.parameters())]


def test_gradients_of_gradients(engine: str) -> None:
    call, arguments = function(pair(2, bidirectional=True, proj_size=2, dtype=torch.float64)[1])
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


@pytest.mark.parametrize("used", [0, 1, 2], ids=["output", "h_n", "c_n"])
def test_gradients_of_gradients_are_those_without_chunks(used: int, engine: str) -> None:
    found = []
    for module in pair(2, dtype=torch.float64, bidirectional=True):
        torch.manual_seed(1)
        call, arguments = function(module)
        first = torch.autograd.grad(call(*arguments)[used].pow(2).sum(), arguments, create_graph=True)
        second = torch.autograd.grad(sum(slope.pow(2).sum() for slope in first), arguments)
        found.append([*first, *second])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_gradients_under_vmap(packed: bool, engine: str) -> None:
    whole, part = pair(2, bidirectional=True, dtype=torch.float64)
    weights = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    x, sizes = torch.randn(3, 6, 4, dtype=torch.float64), torch.tensor([2, 2, 1, 1])

    def loss(module: nn.Module, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output, (h_n, c_n) = functional_call(module, weights, (PackedSequence(x, sizes) if packed else x[:, None],))
        return (output.data if packed else output).pow(2).sum() + h_n.sum() + c_n.pow(2).sum()

    together = vmap(grad(lambda w, x: loss(part, w, x)), in_dims=(None, 0))(weights, x)
    for index, sample in enumerate(x):
        alone = grad(lambda w, sample=sample: loss(whole, w, sample))(weights)
        torch.testing.assert_close({name: value[index] for name, value in together.items()}, alone)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
def test_a_batch_of_cotangents_and_forward_mode(engine: str) -> None:
    call, arguments = function(pair(2, bidirectional=True, dtype=torch.float64)[1])
    values = call(*arguments)
    rows = [torch.randn(2, *value.shape, dtype=value.dtype) for value in values]
    together = torch.autograd.grad(values, arguments, rows, is_grads_batched=True, retain_graph=True)
    for k in range(2):
        alone = torch.autograd.grad(values, arguments, [row[k] for row in rows], retain_graph=True)
        torch.testing.assert_close([g[k] for g in together], list(alone))
    primals = tuple(argument.detach() for argument in arguments)
    tangents = tuple(map(torch.randn_like, primals))
    with torchlstm.use_engine("auto"):  # kernels have no forward mode
        pushed = torch.func.jvp(call, primals, tangents)[1]
    there = sum((row[0] * push).sum() for row, push in zip(rows, pushed, strict=True))
    back = sum((pull[0] * tangent).sum() for pull, tangent in zip(together, tangents, strict=True))
    torch.testing.assert_close(there, back, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor scripts its own rules
def test_compiled(engine: str) -> None:
    torch._dynamo.reset()
    whole, part = pair(3, bidirectional=True, num_layers=2)
    x = torch.randn(7, 3, 4)
    backend = "aot_eager" if engine == "reference" else "inductor"
    compiled = torch.compile(part, fullgraph=True, backend=backend)
    torch.testing.assert_close(everything(compiled, x), everything(whole, x))


def test_autocast() -> None:
    whole, part = pair(3, num_layers=2)
    x = torch.randn(7, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = everything(part, x), everything(whole, x)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.skipif(ENGINES == ["reference"], reason="no engine with operators")
def test_what_is_computed_again_is_counted() -> None:
    counts = []
    for module in pair(3, bidirectional=True):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            module(torch.randn(7, 3, 4))
        with FlopCounterMode(display=False) as both:
            module(torch.randn(7, 3, 4, requires_grad=True))[0].sum().backward()
        counts.append((forward.get_total_flops(), both.get_total_flops()))
    assert counts[0][0] == counts[1][0] > 0
    assert counts[1][1] == counts[0][1] + counts[0][0]


def test_a_trace_keeps_every_state(engine: str, chunked: list[Any]) -> None:
    whole, part = pair(2)
    x = torch.randn(7, 3, 4)
    torch.testing.assert_close(part.trace(x), whole.trace(x), rtol=0, atol=0)
    assert not chunked


def test_as_an_option_and_as_an_attribute() -> None:
    module = torchlstm.LSTM(4, 6, checkpoint_every=10)
    assert (module.checkpoint_every, repr(module)) == (10, "LSTM(4, 6, checkpoint_every=10)")
    module.checkpoint_every = None
    assert repr(module) == repr(nn.LSTM(4, 6))
    assert vars(torchlstm.LSTM(4, 6)).keys() == vars(nn.LSTM(4, 6)).keys()
    module.checkpoint_every = 3
    assert pickle.loads(pickle.dumps(module)).checkpoint_every == 3
    assert torchlstm.LSTM(4, 6, checkpoint_every=1).state_dict().keys() == nn.LSTM(4, 6).state_dict().keys()


def test_of_a_module_that_was_swapped() -> None:
    theirs = nn.LSTM(4, 6, dtype=torch.float64)
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    expected = everything(theirs, x)
    ours = torchlstm.swap(theirs)
    assert ours.checkpoint_every is None
    ours.checkpoint_every = 3
    torch.testing.assert_close(everything(ours, x), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(everything(torchlstm.restore(ours), x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("every", "error", "message"),
    [
        (0, ValueError, "checkpoint_every to be at least 1, got 0"),
        (-3, ValueError, "checkpoint_every to be at least 1, got -3"),
        (2.0, TypeError, "checkpoint_every to be an int or None, got float"),
        (True, TypeError, "checkpoint_every to be an int or None, got bool"),
    ],
)
def test_what_is_no_number_of_steps(every: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        torchlstm.LSTM(4, 6, checkpoint_every=every)
    module = torchlstm.LSTM(4, 6)
    module.checkpoint_every = every
    with pytest.raises(error, match=message):
        module(torch.randn(3, 2, 4))


def kept_and_peak(module: nn.Module, x: Tensor) -> tuple[int, int]:
    """Bytes that torch has allocated and not freed: after a forward, and at the most in a training step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        output, (h_n, c_n) = module(x)
        with record_function("between"):
            loss = output.sum() + h_n.sum() + c_n.sum()
        torch.autograd.grad(loss, list(module.parameters()))
    events = [e for e in found.profiler.kineto_results.events() if e.name() in ("[memory]", "between")]
    now = kept = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "between":
            kept = now
        else:
            now += event.nbytes()
            most = max(most, now)
    return kept, most


def test_memory_of_two_thousand_steps(engine: str) -> None:
    """With k = 45 the output and states of 90 steps, where there were states of 2,000."""
    steps, batch, hidden = 2_000, 1 if engine == "reference" else 16, 64
    options = {"bidirectional": engine != "reference"}
    x, found = torch.randn(steps, batch, 8), []
    for every in (None, 45):
        module = torchlstm.LSTM(8, hidden, checkpoint_every=every, **options)
        found.append(kept_and_peak(module, x))
    (kept_whole, peak_whole), (kept, peak) = found
    output = 4 * steps * batch * hidden * (1 + module.bidirectional)
    assert kept_whole > 5 * output  # four gates and a cell state besides
    assert kept < 1.2 * output
    assert peak < 0.25 * peak_whole
