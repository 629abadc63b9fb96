"""LSTM.trace: the states and gates of every step, judged with all gradients by a plain loop over rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import torchlstm
from torchlstm.trace import States, Trace

ENGINES = [name for name, missing in torchlstm.engines().items() if missing is None]
NAMES = States._fields


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    with torchlstm.use_engine(request.param):
        yield request.param


def plain_loop(module: torchlstm.LSTM, x: Tensor, sizes: list[int], h_0: Tensor, c_0: Tensor) -> list[Tensor]:
    """Output (P, D*R), h_n, c_n, then `NAMES` (P, ..) of each layer and direction: one row after another."""
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    h_n, c_n, every = [], [], []
    for k in range(module.num_layers):
        if k > 0 and module.dropout:
            x = torch.dropout(x, module.dropout, True)
        outputs = []
        for d in range(1 + module.bidirectional):
            suffix = f"_l{k}" + "_reverse" * d
            w_ih, w_hh, b_ih, b_hh, w_hr = (
                getattr(module, name + suffix, None)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            h, c = list(h_0[len(h_n)]), list(c_0[len(h_n)])
            rows: dict[str, list[Any]] = {name: [None] * len(x) for name in NAMES}
            for t in range(len(sizes))[:: -1 if d else 1]:
                for b in range(sizes[t]):
                    row = starts[t] + b
                    gates = w_ih @ x[row] + w_hh @ h[b] + (0 if b_ih is None else b_ih + b_hh)
                    i, f, g, o = gates.chunk(4)
                    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
                    c[b] = f * c[b] + i * g
                    h[b] = o * c[b].tanh() if w_hr is None else w_hr @ (o * c[b].tanh())
                    for name, value in zip(NAMES, (h[b], c[b], i, f, g, o), strict=True):
                        rows[name][row] = value
            every += [torch.stack(values) for values in rows.values()]
            outputs.append(torch.stack(rows["h"]))
            h_n.append(torch.stack(h))
            c_n.append(torch.stack(c))
        x = torch.cat(outputs, -1)
    return [x, torch.stack(h_n), torch.stack(c_n), *every]


def in_rows(value: Any, batch_first: bool) -> Tensor:
    """What the module gave, in its input's form, as packed rows."""
    if isinstance(value, PackedSequence):
        return value.data
    if value.dim() == 2:
        return value
    return (value.transpose(0, 1) if batch_first else value).flatten(0, 1)


def flat(found: Trace, batch_first: bool = False) -> list[Tensor]:
    """Every tensor of a trace, in the order of `plain_loop`."""
    values = [value for layer in found.layers for direction in layer for value in direction]
    return [in_rows(found.output, batch_first), *found.state, *(in_rows(value, batch_first) for value in values)]


def directions(found: Trace) -> list[States]:
    """Of all layers, one after another."""
    return [states for layer in found.layers for states in layer]


T, B, LENGTHS = 5, 3, [2, 5, 3]
FORMS = ("dense", "batch-first", "unbatched", "ragged", "equal")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias-bidirectional": {"bias": False, "bidirectional": True},
    "projected": {"proj_size": 3, "bidirectional": True},
    "two-layers-dropout": {"num_layers": 2, "dropout": 0.4, "bidirectional": True, "proj_size": 2},
}


def build(form: str, dtype: torch.dtype = torch.float64, **options: Any) -> torchlstm.LSTM:
    torch.manual_seed(0)
    return torchlstm.LSTM(4, 6, batch_first=form == "batch-first", dtype=dtype, **options)


def draw(module: torchlstm.LSTM, form: str) -> tuple[Tensor, Callable[[Tensor], Any], Tensor, Tensor]:
    """Random input, what makes the call's argument of it, and states, as leaves."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(module.weight_ih_l0.dtype)

    batch = () if form == "unbatched" else (B,)
    shape = (B, T) if form == "batch-first" else (T, *batch)
    lengths = torch.tensor(LENGTHS if form == "ragged" else [T] * B)
    count = module.num_layers * (1 + module.bidirectional)
    leaves = randn(*shape, 4), randn(count, *batch, module.proj_size or 6), randn(count, *batch, 6)
    x, h_0, c_0 = (leaf.requires_grad_() for leaf in leaves)

    def argument(x: Tensor) -> Any:
        return pack_padded_sequence(x, lengths, enforce_sorted=False) if form in ("ragged", "equal") else x

    return x, argument, h_0, c_0


def cotangents(like: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in like]


def judged(module: torchlstm.LSTM, form: str) -> list[Tensor]:
    """The values of `flat` and all gradients, by the plain loop in float64."""
    x, argument, h_0, c_0 = draw(module, form)
    input = argument(x)
    sizes = input.batch_sizes.tolist() if isinstance(input, PackedSequence) else [1 if x.dim() == 2 else B] * T
    h, c = (state.unsqueeze(1) if x.dim() == 2 else state for state in (h_0, c_0))
    if isinstance(input, PackedSequence):
        h, c = h[:, input.sorted_indices], c[:, input.sorted_indices]
    torch.manual_seed(3)
    values = plain_loop(module, in_rows(input, module.batch_first), sizes, h, c)
    for index in (1, 2):
        if isinstance(input, PackedSequence):
            values[index] = values[index][:, input.unsorted_indices]
        elif x.dim() == 2:
            values[index] = values[index].squeeze(1)
    return values + list(torch.autograd.grad(values, [x, h_0, c_0, *module.parameters()], cotangents(values)))


def traced(module: torchlstm.LSTM, form: str) -> list[Tensor]:
    x, argument, h_0, c_0 = draw(module, form)
    torch.manual_seed(3)
    values = flat(module.trace(argument(x), (h_0, c_0)), module.batch_first)
    return values + list(torch.autograd.grad(values, [x, h_0, c_0, *module.parameters()], cotangents(values)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients(options: dict[str, Any], form: str, engine: str) -> None:
    module = build(form, **options)
    torch.testing.assert_close(traced(module, form), judged(module, form), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_and_gradients_of_smaller_dtypes(dtype: torch.dtype, engine: str) -> None:
    module = build("ragged", dtype, bidirectional=True)
    found = traced(module, "ragged")
    assert {tensor.dtype for tensor in found} == {dtype}
    expected = judged(module.double(), "ragged")
    bound = 1e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).abs().max() <= bound * max(1.0, b.abs().max().item())


def test_equal_to_the_call_bit_for_bit(engine: str) -> None:
    """As it trains: a forward whose gates nobody wants to see again may round them in another way.

    The reference engine's trace is its loop, its call on plain tensors another order of operations: equal to rounding.
    """

    def equal(ours: torch.Tensor, true: torch.Tensor) -> bool:
        return torch.allclose(ours, true, atol=1e-5) if engine == "reference" else torch.equal(ours, true)

    module, x = torchlstm.LSTM(20, 33, 2, bidirectional=True), torch.randn(9, 5, 20)
    output, state = module(x)
    found = module.trace(x)
    assert all(map(equal, (found.output, *found.state), (output, *state)))
    cotangent = torch.randn_like(output)
    expected = torch.autograd.grad(output, list(module.parameters()), cotangent)
    assert all(map(equal, torch.autograd.grad(found.output, list(module.parameters()), cotangent), expected))
    with torch.no_grad():
        torch.testing.assert_close(flat(module.trace(x)), flat(found))
        torch.testing.assert_close(module.trace(x).output, module(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_on_one_of_them(name: str) -> None:
    """Of the first layer's second direction only: what has no cotangent counts as zero."""
    module = build("dense", num_layers=2, bidirectional=True, proj_size=2)
    found = []
    for engine in ENGINES:
        with torchlstm.use_engine(engine):
            value = getattr(module.trace(torch.ones(T, B, 4, dtype=torch.float64)).layers[0][1], name)
            found.append(torch.autograd.grad(value.pow(2).sum(), list(module.parameters()), allow_unused=True))
            assert found[-1][5].abs().max() > 0  # weight_ih_l0_reverse
            assert found[-1][0] is None or not found[-1][0].any()  # weight_ih_l0
    for other in found[1:]:
        torch.testing.assert_close([0 * g if g is None else g for g in other if g is not None],
                                   [0 * g if g is None else g for g, o in zip(found[0], other, strict=True)
                                    if o is not None])  # fmt: skip


def test_no_sequence_and_one_step(engine: str) -> None:
    module = torchlstm.LSTM(4, 6, bidirectional=True)
    assert module.trace(torch.zeros(3, 0, 4)).layers[0][1].g.shape == (3, 0, 6)
    module = build("dense")
    x = torch.ones(1, 2, 4, dtype=torch.float64)
    found = module.trace(x)
    values = plain_loop(module, x[0], [2], *(torch.zeros(1, 2, 6, dtype=torch.float64) for _ in range(2)))
    torch.testing.assert_close(flat(found), values)
    expected = torch.autograd.grad(values, list(module.parameters()), cotangents(values))
    torch.testing.assert_close(
        torch.autograd.grad(flat(found), list(module.parameters()), cotangents(values)), expected
    )


def test_shapes_in_the_form_of_the_input(engine: str) -> None:
    for form, batch in (("dense", (T, B)), ("batch-first", (B, T)), ("unbatched", (T,))):
        module = build(form, proj_size=2, num_layers=2)
        x, _, h_0, c_0 = draw(module, form)
        found = module.trace(x, (h_0, c_0))
        assert [len(layer) for layer in found.layers] == [1, 1]
        assert found.layers[0][0].h.shape == (*batch, 2)
        assert {value.shape for value in found.layers[1][0][1:]} == {(*batch, 6)}
        torch.testing.assert_close(found.layers[1][0].h, found.output)
    module = build("ragged")
    x, argument, *state = draw(module, "ragged")
    input = argument(x)
    found = module.trace(input, state)
    assert torch.equal(found.layers[0][0].o.batch_sizes, input.batch_sizes)
    assert torch.equal(found.layers[0][0].o.unsorted_indices, input.unsorted_indices)


def test_lengths_and_resets(engine: str) -> None:
    """Beyond a sequence's end all is zero; within, what the trace of the packed batch has."""
    lstm = torchlstm.LSTM(3, 4, 2, bidirectional=True, proj_size=2, dtype=torch.float64)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    found = lstm.trace(x, lengths=LENGTHS)
    packed = lstm.trace(pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False))
    for ours, theirs in zip(directions(found), directions(packed), strict=True):
        for value, rows in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, pad_packed_sequence(rows)[0], rtol=0, atol=1e-12)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2] = True
    whole = lstm.trace(x, resets=resets)
    for part, steps in ((lstm.trace(x[:2]), slice(0, 2)), (lstm.trace(x[2:]), slice(2, T))):
        for ours, theirs in zip(directions(whole), directions(part), strict=True):
            for value, alone in zip(ours, theirs, strict=True):
                torch.testing.assert_close(value[steps], alone, rtol=0, atol=1e-12)


def test_writing_into_a_trace_is_noticed(engine: str) -> None:
    module = torchlstm.LSTM(2, 3)
    found = module.trace(torch.randn(4, 2, 2))
    with pytest.raises(RuntimeError, match="returns multiple views"):
        found.layers[0][0].i.mul_(2)
    found.output.mul_(2)  # no backward needs it
    found.layers[0][0].i.sum().backward(retain_graph=True)
    if engine != "reference":  # it has copies
        with torch.no_grad():
            found.layers[0][0].c.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            found.layers[0][0].i.sum().backward()


def test_autocast_gives_the_dtypes_of_the_call() -> None:
    module, x = torchlstm.LSTM(4, 6, proj_size=2), torch.randn(3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.trace(x)
        output, (_, c_n) = module(x)
    states = found.layers[0][0]
    assert (states.h.dtype, states.c.dtype, states.f.dtype) == (output.dtype, c_n.dtype, output.dtype)
    assert torch.equal(states.c[-1], c_n[0])


def function(module: torchlstm.LSTM) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """All of a trace as a function of input, states and weights."""
    tracer, names = Tracer(module), [f"lstm.{name}" for name, _ in module.named_parameters()]
    x, _, h_0, c_0 = draw(module, "dense")

    def call(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(functional_call(tracer, dict(zip(names, weights, strict=True)), (x, (h, c))))

    return call, [t.detach().requires_grad_() for t in (x[:3], h_0, c_0, *module.parameters())]


class Tracer(torch.nn.Module):
    """A model that hands on all of a trace."""

    def __init__(self, lstm: torchlstm.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, hx: Any = None) -> list[Tensor]:
        return flat(self.lstm.trace(x, hx))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 2}], ids=["plain", "projected"])
def test_gradients_of_gradients(options: dict[str, Any], engine: str) -> None:
    call, arguments = function(build("dense", **options))
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


def test_a_batch_of_cotangents(engine: str) -> None:
    call, arguments = function(build("dense", bidirectional=True))
    values = call(*arguments)
    rows = [torch.randn(2, *value.shape, dtype=value.dtype) for value in values]
    together = torch.autograd.grad(values, arguments, rows, is_grads_batched=True, retain_graph=True)
    for k in range(2):
        alone = torch.autograd.grad(values, arguments, [row[k] for row in rows], retain_graph=True)
        torch.testing.assert_close([g[k] for g in together], list(alone))


@pytest.mark.parametrize("members", [False, True], ids=["samples", "ensemble"])
def test_gradients_under_vmap(members: bool, engine: str) -> None:
    models = [Tracer(torchlstm.LSTM(2, 3, dtype=torch.float64, bidirectional=True)) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(models)
    if not members:
        weights = {name: value[0] for name, value in weights.items()}
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        values = functional_call(models[0], weights, (x,))
        return sum(value.sin().sum() for value in values)

    found = vmap(grad(loss), in_dims=(0 if members else None, 0))(weights, x)
    for k in range(3):
        alone = grad(loss)({name: w[k] if members else w for name, w in weights.items()}, x[k])
        torch.testing.assert_close({name: value[k] for name, value in found.items()}, alone)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor scripts its own rules
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_compiled(packed: bool) -> None:
    torch._dynamo.reset()
    lstm = torchlstm.LSTM(2, 3, 2, bidirectional=True, dtype=torch.float64)
    input = torch.randn(4, 2, 2, dtype=torch.float64)
    x = input.requires_grad_()
    if packed:
        input = pack_padded_sequence(x.detach(), torch.tensor([2, 4]), enforce_sorted=False)
        x = input.data.requires_grad_()

    def everything(run: Any) -> list[Tensor]:
        values = flat(run(input))
        return [*values, *torch.autograd.grad(values, [x, *lstm.parameters()], cotangents(values))]

    torch.testing.assert_close(everything(torch.compile(lstm.trace, fullgraph=True)), everything(lstm.trace))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
def test_forward_mode() -> None:
    call, arguments = function(build("dense", bidirectional=True))
    primals = tuple(argument.detach() for argument in arguments)
    tangents = tuple(map(torch.randn_like, primals))
    _, pushed = torch.func.jvp(call, primals, tangents)
    rows = cotangents(list(pushed))
    pulled = torch.autograd.grad(call(*arguments), arguments, rows)
    there = sum((row * push).sum() for row, push in zip(rows, pushed, strict=True))
    back = sum((pull * tangent).sum() for pull, tangent in zip(pulled, tangents, strict=True))
    torch.testing.assert_close(there, back, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_traced_by_jit_for_any_length() -> None:
    tracer = Tracer(torchlstm.LSTM(2, 3, bidirectional=True))
    script = torch.jit.trace(tracer, torch.randn(4, 2, 2), check_trace=False)
    x = torch.randn(7, 2, 2)
    torch.testing.assert_close(list(script(x)), tracer(x))


def test_explain_names_the_engine_of_a_trace() -> None:
    module, x = torchlstm.LSTM(2, 3, checkpoint_every=4), torch.randn(4, 2, 2)
    for name in ENGINES:
        with torchlstm.use_engine(name):
            found = torchlstm.explain(module, x, trace=True)
        assert found.decisions[0].problem.trace
        assert ("step by step" in str(found)) == (name == "reference")
    with pytest.raises(TypeError, match="lengths, resets and trace are for an LSTM, got an LSTMCell"):
        torchlstm.explain(torchlstm.LSTMCell(2, 3), torch.zeros(2), trace=True)
    assert "traced" not in str(torchlstm.explain(module, x))
    assert "checkpoint_every=4" in str(torchlstm.explain(module, x))


def test_errors_are_those_of_the_call() -> None:
    module = torchlstm.LSTM(2, 3)
    with pytest.raises(RuntimeError, match="Expected 2, got 5"):
        module.trace(torch.randn(4, 1, 5))
    with pytest.raises(TypeError, match="expects hx to be a tuple"):
        module.trace(torch.randn(4, 1, 2), torch.zeros(2, 1, 1, 3))
