"""Strides and changes in place: whatever memory tensors have, and whatever a user writes into, nn.LSTM's numbers."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm

DRAWS, EACH = 20, 100


def any_stride(tensor: Tensor, draw: random.Random) -> Tensor:
    """The same numbers with other strides; differentiable."""
    way = draw.choice(["as it is", "axes in another order", "offset", "every other", "length 1"])
    if way == "axes in another order" and tensor.dim() > 1:
        order = list(range(tensor.dim()))
        draw.shuffle(order)
        back = [order.index(axis) for axis in range(tensor.dim())]
        return tensor.permute(order).contiguous().permute(back)
    if way == "offset":
        return torch.cat([tensor.new_full((3,), 7.0), tensor.flatten()])[3:].view(tensor.shape)
    if way == "every other":
        axis = draw.randrange(tensor.dim())
        spread = torch.stack([tensor, torch.full_like(tensor, 7.0)], axis + 1).flatten(axis, axis + 1)
        return spread[(slice(None),) * axis + (slice(None, None, 2),)]
    # An axis of length 1 may have any stride.
    tensor = tensor.contiguous()
    strides = [draw.randrange(9) if size == 1 else stride for size, stride in zip(*layout(tensor), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


def layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    """Sizes and strides."""
    return tensor.shape, tensor.stride()


def shared_memory(tensor: Tensor, draw: random.Random) -> Tensor:
    """A tensor of this shape, several elements of which are one; differentiable."""
    if draw.random() < 0.5:
        axis = draw.randrange(tensor.dim())
        return tensor.narrow(axis, 0, 1).expand(tensor.shape)
    # Windows that overlap: every stride is 1.
    return tensor.flatten().as_strided(tensor.shape, (1,) * tensor.dim())


class Call(NamedTuple):
    """What one random call computes with: leaves, and how they become the arguments."""

    options: dict[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    form: str
    lengths: list[int]
    with_state: bool
    seed: int


def draw_call(draw: random.Random) -> Call:
    """A call on sizes of which many are 1."""
    small = (1, 1, 2, 3, 5)
    options: dict[str, Any] = {
        "input_size": draw.choice((1, 1, 2, 5, 9)),
        "hidden_size": draw.choice((1, 1, 2, 5, 17)),
        "num_layers": draw.choice((1, 1, 2)),
        "bias": draw.random() < 0.8,
        "batch_first": draw.random() < 0.5,
        "bidirectional": draw.random() < 0.4,
    }
    if options["hidden_size"] > 1 and draw.random() < 0.3:
        options["proj_size"] = draw.randrange(1, options["hidden_size"])
    steps, batch = draw.choice(small), draw.choice(small)
    form = draw.choice(["dense", "dense", "unbatched", "packed", "lengths", "cell"])
    shape = (batch, steps) if options["batch_first"] else (steps, batch)
    if form == "unbatched":
        shape = (steps,)
    if form == "cell":
        shape = (batch,)
        options = {name: options[name] for name in ("input_size", "hidden_size", "bias")}
    lengths = [draw.randint(1, steps) for _ in range(batch)]
    lengths[0] = steps
    dtype = draw.choice([torch.float64, torch.float64, torch.float32])
    return Call(options, shape, dtype, form, lengths, draw.random() < 0.5, draw.randrange(1 << 30))


def pair(call: Call, draw: random.Random) -> tuple[nn.Module, nn.Module]:
    """nn's module and ours, with the same weights in the same memory layouts."""
    theirs: nn.Module
    ours: nn.Module
    if call.form == "cell":
        theirs, ours = nn.LSTMCell(**call.options), torchlstm.LSTMCell(**call.options)
    else:
        theirs, ours = nn.LSTM(**call.options), torchlstm.LSTM(**call.options)
    theirs.to(call.dtype), ours.to(call.dtype)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        a.data = b.data = any_stride(a.data, draw)
        a.data, b.data = a.data.clone(memory_format=torch.preserve_format), a.data
        a.requires_grad_(needed := draw.random() < 0.8)
        b.requires_grad_(needed)
    return theirs, ours


def arguments(
    call: Call, x: Tensor, states: tuple[Tensor, Tensor] | None, ours: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call; lengths are nn.LSTM's by packing."""
    hx = () if states is None else (states,)
    if call.form in ("packed", "lengths") and not (ours and call.form == "lengths"):
        x = pack_padded_sequence(x, call.lengths, bool(call.options["batch_first"]), enforce_sorted=False)
    return (x, *hx), {"lengths": call.lengths} if ours and call.form == "lengths" else {}


def rows(call: Call, output: Any) -> Tensor:
    """The output as a tensor; lengths are nn.LSTM's by unpacking."""
    if isinstance(output, PackedSequence) and call.form == "lengths":
        output, _ = nn.utils.rnn.pad_packed_sequence(
            output, bool(call.options["batch_first"]), total_length=max(call.lengths)
        )
    return output.data if isinstance(output, PackedSequence) else output


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda tensor: tensor.mul_(2),
    "relu_": torch.relu_,
    "dropout": lambda tensor: nn.functional.dropout(tensor, 1.0, inplace=True),
    "zero_": lambda tensor: tensor.zero_(),
    "detach_": lambda tensor: tensor.detach_(),
}


def run(call: Call, module: nn.Module, ours: bool, changes: dict[str, str], seed: int) -> dict[str, Tensor] | str:
    """Results and all gradients of one call, with changes in place before the backward; or torch's error."""
    torch.manual_seed(call.seed)
    draw = random.Random(seed)
    features = call.options["input_size"]
    x_leaf = torch.randn(*call.shape, features, dtype=call.dtype, requires_grad=draw.random() < 0.8)
    leaves = [x_leaf]
    x = (shared_memory if draw.random() < 0.2 else any_stride)(x_leaf, draw)
    states = None
    if call.with_state:
        hidden = call.options["hidden_size"]
        count = call.options.get("num_layers", 1) * (2 if call.options.get("bidirectional") else 1)
        lead = {"cell": call.shape, "unbatched": (count,)}.get(call.form, (count, len(call.lengths)))
        sizes = (call.options.get("proj_size") or hidden, hidden)
        leaves += [torch.randn(*lead, size, dtype=call.dtype, requires_grad=draw.random() < 0.8) for size in sizes]
        h, c = ((shared_memory if draw.random() < 0.2 else any_stride)(leaf, draw) for leaf in leaves[1:])
        states = (h, c)
    args, kwargs = arguments(call, x, states, ours)
    results = module(*args, **kwargs)
    first, (h_n, c_n) = results if call.form != "cell" else (results[0], (results[0], results[1]))
    output = rows(call, first)
    named = {"output": output, "c_n": c_n} if call.form == "cell" else {"output": output, "h_n": h_n, "c_n": c_n}
    before = {name: tensor.detach().clone() for name, tensor in named.items()}
    given = {"x": x, **dict(zip(("h_0", "c_0"), states or (), strict=False)), **dict(module.named_parameters())}
    # Where nn.LSTM computes from a copy, that copy is what its backward reads: not from these.
    copied = call.form == "lengths" or call.options.get("batch_first") or call.form == "packed"
    try:
        for name, change in changes.items():
            if name in ("output", "h_n", "c_n"):
                if name not in named:
                    continue
                if change == "detach_" and (call.form in ("unbatched", "lengths")):
                    continue  # there nn's own results are views
                CHANGES[change](named[name])
            elif name not in ("x", "h_0", "c_0") or not (copied or not given[name].is_contiguous()):
                with torch.no_grad():
                    given[name].mul_(2)
        total = torch.zeros((), dtype=call.dtype)
        for tensor in named.values():
            if not tensor.requires_grad:
                continue
            cotangent = any_stride(torch.randn(tensor.shape, dtype=call.dtype), draw)
            # Not as a product with the cotangent, which would make a contiguous one.
            total = total + _Pull.apply(tensor, cotangent)
        if total.requires_grad:
            total.backward()
    except RuntimeError as error:
        return str(error)
    found = {f"d {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    found |= {f"d argument {k}": leaf.grad for k, leaf in enumerate(leaves) if leaf.grad is not None}
    return before | {f"{name} after": tensor.detach() for name, tensor in named.items()} | found


class _Pull(torch.autograd.Function):
    """A number whose gradient at a tensor is this cotangent, with its own strides."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, cotangent: Tensor) -> Tensor:
        ctx.cotangent = cotangent
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.cotangent, None


@pytest.mark.parametrize("number", range(DRAWS))
def test_strides_and_changes_in_place(number: int, one_thread: None) -> None:
    draw = random.Random(number)
    trained = 0
    for _ in range(EACH):
        call, engine = draw_call(draw), draw.choice(["auto", "auto", "auto", "reference"])
        theirs, ours = pair(call, draw)
        names = ["output", "h_n", "c_n", "x", *(name for name, _ in ours.named_parameters())]
        names += ["h_0", "c_0"] if call.with_state else []
        changes = {name: draw.choice(list(CHANGES)) for name in names if draw.random() < 0.15}
        seed = draw.randrange(1 << 30)
        with torchlstm.use_engine(engine):
            expected, found = run(call, theirs, False, changes, seed), run(call, ours, True, changes, seed)
        if isinstance(expected, str):
            # nn.LSTM's own backward needs what was changed; ours may, too.
            continue
        trained += 1
        assert not isinstance(found, str), (call, changes, engine, found)
        assert found.keys() == expected.keys(), (call, changes, engine)
        tolerance = 1e-10 if call.dtype == torch.float64 else 2e-5
        for name, tensor in expected.items():
            message = f"{name} of {call}, {changes}, {engine}"
            torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=message)
    assert trained > EACH // 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["dense", "packed", "lengths", "cell", "compiled"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")  # Inductor scripts rules of its own
def test_one_feature_in_a_transposed_series(form: str, dtype: torch.dtype) -> None:
    """An axis of length 1 has any stride, and `contiguous` leaves it as it is."""
    transposed = torch.randn(1, 2, dtype=dtype).t()
    assert transposed.is_contiguous()
    assert transposed.stride() == (1, 2)
    for weight in (torch.randn(4, 1, dtype=dtype), torch.randn(1, 4, dtype=dtype).t()):
        found = []
        for x in (transposed, transposed.clone(memory_format=torch.contiguous_format).view(2, 1)):
            x = x.detach().requires_grad_()
            module = (torchlstm.LSTMCell if form == "cell" else torchlstm.LSTM)(1, 1, dtype=dtype)
            for k, parameter in enumerate(module.parameters()):
                parameter.data = torch.full_like(parameter, 0.1 * (k + 1)) if k else weight
            given: Any = x.unsqueeze(1) if form in ("packed", "lengths") else x
            if form == "packed":
                given = pack_padded_sequence(given, [2])
            run = torch.compile(module, backend="aot_eager") if form == "compiled" else module
            first, _ = run(given, **({"lengths": [2]} if form == "lengths" else {}))
            (first.data if form == "packed" else first).sum().backward()
            found.append([x.grad, *(parameter.grad for parameter in module.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "deep": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 2},
}


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("engine", [name for name, missing in torchlstm.engines().items() if missing is None])
@pytest.mark.parametrize("form", ["dense", "unbatched", "packed", "lengths", "resets"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_results_are_tensors_of_their_own(options: dict[str, Any], form: str, engine: str, grad: bool) -> None:
    """A rollout detaches its state in place at every step; that, a view does not allow."""
    module = torchlstm.LSTM(3, 4, **options)
    x = torch.randn(2, 3) if form == "unbatched" else torch.randn(2, 2, 3)
    keywords = {"lengths": {"lengths": [2, 1]}, "resets": {"resets": torch.tensor([[False, True]] * 2)}}.get(form, {})
    given: Any = x
    if form == "packed":
        given = pack_padded_sequence(x, [1, 2], module.batch_first, enforce_sorted=False)
    with torchlstm.use_engine(engine), torch.set_grad_enabled(grad):
        output, states = module(given, **keywords)
    for tensor in (output.data if form == "packed" else output, *states):
        assert not tensor._is_view()
        tensor.detach_()


@pytest.mark.parametrize("batched", [True, False])
def test_results_of_a_cell_are_tensors_of_their_own(batched: bool) -> None:
    cell = torchlstm.LSTMCell(3, 4)
    for state in cell(torch.randn(2, 3) if batched else torch.randn(3)):
        assert not state._is_view()
        state.detach_()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_output_that_is_changed_in_place_is_not_missed(options: dict[str, Any]) -> None:
    """nn.Dropout(inplace=True) and relu_ behind an LSTM train, as they do behind nn.LSTM where it is bidirectional."""
    module = torchlstm.LSTM(3, 4, **options)
    x = torch.randn(5, 2, 3)

    def gradients(in_place: bool) -> list[Tensor]:
        module.zero_grad()
        output, (h_n, c_n) = module(x)
        output, h_n, c_n = (
            (torch.relu_(output.mul_(2)), h_n.mul_(3), c_n.mul_(4))
            if in_place
            else (torch.relu(output * 2), h_n * 3, c_n * 4)
        )
        (output.sum() + h_n.sum() + c_n.sum()).backward()
        return [parameter.grad.clone() for parameter in module.parameters()]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(a, b)


def test_nn_lstm_refuses_such_a_change() -> None:
    """As docs/differences.md says of torch 2.13, for dense input in one direction."""
    output, _ = nn.LSTM(3, 4)(torch.randn(5, 2, 3))
    torch.relu_(output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch.func scripts its own rules
@pytest.mark.parametrize(
    "shape", [(5, 1, 3), (1, 2, 3), (5, 3), (2, 3)], ids=["one sequence", "one step", "unbatched", "cell"]
)
def test_results_under_vmap_are_shaped_too(shape: tuple[int, ...]) -> None:
    """There results are views, which cannot be shaped in place."""
    module = (torchlstm.LSTMCell if shape == (2, 3) else torchlstm.LSTM)(3, 4, dtype=torch.float64)
    x = torch.randn(6, *shape, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        first, rest = module(x)
        return first.sum() + sum(tensor.pow(2).sum() for tensor in (rest if isinstance(rest, tuple) else (rest,)))

    alone = [torch.func.grad(loss)(each) for each in x]
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), torch.stack(alone))
    torch.testing.assert_close(torch.func.vmap(loss)(x.requires_grad_()), torch.stack([loss(each) for each in x]))


READ = ["x", "weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]


@pytest.mark.parametrize("engine", [name for name, missing in torchlstm.engines().items() if missing is None])
@pytest.mark.parametrize(
    ("changed", "steps", "with_state"),
    [
        *((name, steps, True) for name in [*READ, "h_0", "c_0"] for steps in (1, 4)),
        *((name, 4, False) for name in READ),
    ],
)
def test_what_the_backward_reads_is_guarded(changed: str, steps: int, with_state: bool, engine: str) -> None:
    """A change in place of an argument that the gradients are made of is an error, never another gradient."""
    module = torchlstm.LSTM(3, 4, proj_size=2)
    x, h_0, c_0 = (torch.randn(*shape, requires_grad=True) for shape in ((steps, 2, 3), (1, 2, 2), (1, 2, 4)))
    with torchlstm.use_engine(engine):
        output, _ = module(x, (h_0, c_0) if with_state else None)
    with torch.no_grad():
        ({"x": x, "h_0": h_0, "c_0": c_0} | dict(module.named_parameters()))[changed].mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|modified inplace"):
        output.sum().backward()
