"""Frozen modules in programs of others, and gradients: compiled, exported, traced, transformed, differentiated."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import torchlstm

pytestmark = [
    # torch's own, of what its compilers and exporters call.
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
FORMATS = (None, torch.bfloat16, torch.float16, torch.int8)
every_format = pytest.mark.parametrize("weights", FORMATS, ids=str)
T, B, F, H = 5, 3, 4, 6
X = torch.linspace(-2, 2, T * B * F).view(T, B, F)
NO_GRADIENT = r"a frozen LSTM has no gradients: call it under torch.no_grad\(\), or detach.*torchlstm.thaw\(model\)"


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def frozen(weights: Any, seed: int = 1, **options: Any) -> torchlstm.FrozenLSTM:
    torch.manual_seed(seed)
    return torchlstm.FrozenLSTM(F, H, weights=weights, **options)


def floats(module: Any) -> Any:
    """The float module with the same, rounded weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torchlstm.thaw(copy.deepcopy(module))


def close(found: Any, expected: Any, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


PACKED = pack_sequence([X[:2, 0], X[:, 1]], enforce_sorted=False)
CALLS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda m: m(X),
    "state": lambda m: m(X, (torch.ones(4, B, 2) / 3, torch.ones(4, B, H) / 2)),
    "unbatched": lambda m: m(X[:, 0]),
    "packed": lambda m: m(PACKED)[0].data,
    "lengths": lambda m: m(X, lengths=torch.tensor([2, 5, 0])),
    "resets": lambda m: m(X, resets=X[..., 0] > 1),
}


@every_format
@pytest.mark.parametrize("call", ["dense", "packed"])
def test_compile(call: str, weights: Any) -> None:
    """One operator, and the bits of the call that is not compiled."""
    module = frozen(weights, num_layers=2, bidirectional=True, proj_size=2)
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    run = CALLS[call]
    compiled = torch.compile(lambda: run(module), fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(), run(module), rtol=0, atol=0)
    names = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("torchlstm.frozen" in name for name in names) == 1
    assert not any("torchlstm.lstm" in name for name in names)


@pytest.mark.parametrize("call", CALLS)
def test_compile_every_form(call: str) -> None:
    module, run = frozen(torch.int8, num_layers=2, bidirectional=True, proj_size=2), CALLS[call]
    expected = run(module)
    compiled = torch.compile(lambda: run(module), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), expected, rtol=0, atol=0)


def test_compile_by_inductor_with_dynamic_shapes() -> None:
    model = torchlstm.freeze(nn.Sequential(nn.Linear(F, F), nn.LSTM(F, H, 2)), torch.int8)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for steps, batch in ((5, 3), (9, 2), (2, 7)):
            x = torch.randn(steps, batch, F)
            close(compiled(x)[0], model(x)[0], 1e-5)
    cell = torchlstm.FrozenLSTMCell(F, H, weights=torch.int8)
    close(torch.compile(cell, fullgraph=True)(X[0]), cell(X[0]), 1e-6)


def test_a_compiled_module_has_the_weights_of_now() -> None:
    module = frozen(torch.int8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    first = compiled(X)[0]
    twin = copy.deepcopy(module)
    module.load_state_dict(frozen(torch.int8, seed=2).state_dict())
    assert torch.equal(compiled(X)[0], frozen(torch.int8, seed=2)(X)[0])
    assert torch.equal(torch.compile(twin, fullgraph=True, backend="aot_eager")(X)[0], first)


def test_compiled_dropout_follows_the_mode() -> None:
    module = frozen(torch.int8, num_layers=2, dropout=0.5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(X)[0], compiled(X)[0])
    module.eval()
    assert torch.equal(compiled(X)[0], module(X)[0])


@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
def test_compiled_under_autocast(weights: Any) -> None:
    module = frozen(weights)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = module(X)
        found = compiled(X)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    close(found, expected, 0.01)


def test_compiled_backward_is_an_error() -> None:
    module = frozen(torch.int8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = X.clone().requires_grad_()
    y = compiled(x)[0]
    assert y.requires_grad
    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        y.sum().backward()


@every_format
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export(strict: bool, weights: Any) -> None:
    """The program has the weights as floats, once, and runs after it was saved, whatever T is."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = frozen(weights, num_layers=2, bidirectional=True, proj_size=2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.lstm(x)[0] + self.lstm(2 * x)[0]
            return output

    model = Twice()
    exported = torch.export.export(model, (X,), dynamic_shapes={"x": {0: torch.export.Dim("T")}}, strict=strict)
    names = [str(node.target) for node in exported.graph.nodes]
    assert sum("torchlstm.lstm" in name for name in names) == 4
    constants = [value for value in exported.constants.values() if isinstance(value, Tensor)]
    assert {value.dtype for value in constants} == {torch.float32}
    count = sum(p.numel() for p in floats(model.lstm).parameters())
    assert sum(value.numel() for value in constants) == count
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    # No packed memory goes with them.
    assert buffer.tell() < 4 * count + 200_000
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    for x in (X, X[:2].contiguous()):
        close(program(x), model(x))
        with torch.no_grad():
            whole = floats(model.lstm)
            close(program(x), whole(x)[0] + whole(2 * x)[0], 1e-6)


def test_decomposed() -> None:
    module = frozen(torch.int8)
    exported = torch.export.export(module, (X,)).run_decompositions(torchlstm.export.decompositions())
    assert not any("torchlstm" in str(node.target) for node in exported.graph.nodes)
    close(exported.module()(X)[0], module(X)[0])


@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
def test_onnx(weights: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    module = frozen(weights)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = torch.onnx.export(module, (X,), dynamo=True, verbose=False)
    said = [str(w.message) for w in caught if "frozen LSTM" in str(w.message)]
    assert len(said) == (0 if weights is None else 1)
    assert weights is None or said[0] == (
        "a frozen LSTM is exported to ONNX with float32 weights, as torch.int8 has rounded them"
    )
    assert program is not None
    graph = program.model_proto.graph
    assert [node.op_type for node in graph.node].count("LSTM") == 1
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    weight = floats(module).weight_hh_l0.detach()
    i, f, g, o = weight.chunk(4)
    expected = torch.cat([i, o, f, g])
    assert any(a.shape == (1, 4 * H, H) and torch.equal(torch.tensor(a[0]), expected) for a in arrays)


@every_format
def test_jit_trace(weights: Any) -> None:
    module = frozen(weights, num_layers=2)
    traced = torch.jit.trace(module, (X,), check_trace=False)
    for x in (X, torch.randn(9, 2, F)):
        close(traced(x), module(x))
    # The weights are there as floats and no other way: nothing of them is computed, or unpacked, within.
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    assert "permute" not in str(traced.graph)
    assert "UInt8" not in str(traced.graph)


@every_format
def test_vmap(weights: Any) -> None:
    module = frozen(weights, num_layers=2)
    xs = torch.randn(4, T, B, F)
    y, (h, _) = torch.func.vmap(module)(xs)
    for k in range(4):
        close((y[k], h[k]), (module(xs[k])[0], module(xs[k])[1][0]))
    compiled = torch.compile(lambda: torch.func.vmap(lambda x: module(x)[0])(xs), fullgraph=True, backend="aot_eager")
    close(compiled(), y)


def test_derivatives_in_transforms_are_those_of_the_rounded_weights() -> None:
    module = frozen(torch.int8)
    whole = floats(module)
    found = torch.func.grad(lambda x: module(x)[0].pow(2).sum())(X)
    expected = torch.func.grad(lambda x: whole(x)[0].pow(2).sum())(X)
    close(found, expected, 1e-6)
    assert found.abs().max() > 1e-2
    _, tangent = torch.func.jvp(lambda x: module(x)[0], (X,), (X,))
    close(tangent, torch.func.jvp(lambda x: whole(x)[0], (X,), (X,))[1], 1e-6)


def test_flops_are_counted() -> None:
    module = frozen(torch.int8)
    with FlopCounterMode(display=False) as counter:
        y = module(X)[0]
    assert counter.get_total_flops() == 2 * T * B * 4 * H * (F + H)
    close(y, module(X)[0])


def jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(x.flatten(0, 1), torch.tensor([0, 4, 15]))


CAUSES: dict[str, Callable[[Any, Tensor], Any]] = {
    "input": lambda m, x: m(x)[0],
    "one-step": lambda m, x: m(x[:1])[0],
    "one-sequence": lambda m, x: m(x[:, :1])[0],
    "unbatched": lambda m, x: m(x[:, 0])[1][0],
    "state": lambda m, x: m(X, (torch.zeros(2, B, H) + x.sum(), torch.zeros(2, B, H)))[1][1],
    "packed": lambda m, x: m(pack_sequence([x[:, 0], x[:2, 1]]))[0].data,
    "unsorted": lambda m, x: m(pack_sequence([x[:2, 0], x[:, 1]], enforce_sorted=False))[0].data,
    "lengths": lambda m, x: m(x, lengths=[1, 5, 0])[0],
    "resets": lambda m, x: m(x, resets=X[..., 0] > 1)[0],
    "jagged": lambda m, x: m(jagged(x))[0].values(),
}


@pytest.mark.parametrize("weights", [None, torch.int8], ids=str)
@pytest.mark.parametrize("cause", CAUSES)
def test_backward_is_an_error(cause: str, weights: Any) -> None:
    """A gradient through it is no zero: the call works, its results are those without, and a backward says why not."""
    module = frozen(weights, num_layers=2)
    x = X.clone().requires_grad_()
    y = CAUSES[cause](module, x)
    assert y.requires_grad
    with torch.no_grad():
        close(y, CAUSES[cause](module, x), 1e-6)
    with pytest.raises(RuntimeError, match=NO_GRADIENT):
        (y.relu_().sum() + x.sum()).backward()
    assert not CAUSES[cause](module, x.detach()).requires_grad


def test_backward_through_a_cell_is_an_error() -> None:
    cell = torchlstm.FrozenLSTMCell(F, H, weights=torch.int8)
    for x in (X[0], X[0, 0]):
        with pytest.raises(RuntimeError, match=NO_GRADIENT):
            cell(x.clone().requires_grad_())[0].sum().backward()


def test_what_comes_behind_can_be_trained() -> None:
    model = torchlstm.freeze(nn.Sequential(nn.LSTM(F, H)), torch.int8)
    head = nn.Linear(H, 2)
    head(model(X)[0]).sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().max() > 0


def test_explain() -> None:
    module = frozen(torch.int8, num_layers=2)
    text = str(torchlstm.explain(module, X))
    assert "frozen, weights in torch.int8, packed" in text or "no kernel here" in text
    if torchlstm.engines()["cpu"] is None:
        lines = text.splitlines()
        assert lines[2].startswith("layer 0: packed for ")
        assert "int8" in lines[2]
        assert lines[3].startswith("layer 1: packed for ")
        assert [d.engine for d in torchlstm.explain(module, X).decisions] == ["cpu", "cpu"]
        assert "packed for" in str(torchlstm.explain(torchlstm.FrozenLSTMCell(F, H), X[0]))
        whole = torchlstm.explain(module, X, trace=True)
        assert whole.frozen == "frozen, weights in torch.int8, computed in torch.float32: a trace has the gates too"
        assert "-> cpu" in str(whole)
        assert "3 rows out of 15" in str(torchlstm.explain(module, X, lengths=[1, 2, 0]))
    with torchlstm.use_engine("reference"):
        decisions = torchlstm.explain(module, X)
    assert [d.engine for d in decisions.decisions] == ["reference", "reference"]
    training = frozen(torch.int8, num_layers=2, dropout=0.5)
    if torchlstm.engines()["cpu"] is None:
        assert "there is dropout between layers" in str(torchlstm.explain(training, X))
        assert "packed for" in str(torchlstm.explain(training.eval(), X))
        with torch.autocast("cpu", torch.bfloat16):
            assert "autocast computes in torch.bfloat16" in str(torchlstm.explain(frozen(None), X))
            assert "packed for" in str(torchlstm.explain(frozen(torch.int8), X))
    half = torchlstm.FrozenLSTM(F, H, dtype=torch.float16)
    assert "no kernel here reads weights in torch.float16 packed" in str(torchlstm.explain(half, X.half()))
    with pytest.raises(TypeError, match="lengths, resets and trace are for an LSTM"):
        torchlstm.explain(torchlstm.FrozenLSTMCell(F, H), X[0], lengths=[1])
