"""torch.compile and torch.export: one operator a layer, never an unrolled loop, and eager's numbers."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no engine with operators: {reason}", allow_module_level=True)

# Inductor, export and torch.func script rules of their own.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def packed(data: Tensor, lengths: list[int], sort: bool) -> PackedSequence:
    return pack_padded_sequence(data, torch.tensor(lengths), enforce_sorted=not sort)


def states(count: int, batch: int, *sizes: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(count, batch, size) for size in sizes)


def aliased() -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(1, 3, 4)
    return zeros, zeros


# Options, the input, and what comes with it.
FORMS: dict[str, tuple[dict[str, Any], Callable[[], Any], Callable[[], Any]]] = {
    "dense": ({}, lambda: torch.randn(5, 3, 2), lambda: None),
    "batch-first-unbiased": ({"batch_first": True, "bias": False}, lambda: torch.randn(3, 5, 2), lambda: None),
    "unbatched": ({}, lambda: torch.randn(5, 2), lambda: None),
    "everything": (
        {"num_layers": 2, "bidirectional": True, "proj_size": 3, "dropout": 0.4},
        lambda: torch.randn(5, 3, 2),
        lambda: states(4, 3, 3, 4),
    ),
    "aliased-states": ({}, lambda: torch.randn(5, 3, 2), aliased),
    "packed-unsorted": (
        {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
        lambda: packed(torch.randn(5, 3, 2), [2, 5, 1], sort=True),
        lambda: None,
    ),
    "packed-with-states": ({}, lambda: packed(torch.randn(5, 3, 2), [5, 2, 1], sort=False), lambda: states(1, 3, 4, 4)),
    "bfloat16": ({"dtype": torch.bfloat16}, lambda: torch.randn(5, 3, 2).bfloat16(), lambda: None),
    "tied-directions": ({"bidirectional": True}, lambda: torch.randn(5, 3, 2), lambda: None),
}


def build(name: str) -> torchlstm.LSTM:
    torch.manual_seed(0)
    module = torchlstm.LSTM(2, 4, **FORMS[name][0])
    if name == "tied-directions":
        module.weight_hh_l0_reverse = module.weight_hh_l0
    return module


def observe(run: Any, module: nn.Module, input: Any, state: Any) -> list[Tensor]:
    """Results and all gradients, under one seed."""
    data = input.data if isinstance(input, PackedSequence) else input
    torch.manual_seed(1)
    output, (h_n, c_n) = run(input, state)
    output = output.data if isinstance(output, PackedSequence) else output
    results = [output, h_n, c_n]
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in results]
    return results + list(torch.autograd.grad(results, [data, *module.parameters()], cotangents))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", FORMS)
def test_equal_to_eager(name: str, backend: str) -> None:
    module, (_, draw, draw_state) = build(name), FORMS[name]
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    input, state = draw(), draw_state()
    (input.data if isinstance(input, PackedSequence) else input).requires_grad_()
    with torch._inductor.config.patch(fallback_random=True):
        found = observe(compiled, module, input, state)
        torch.testing.assert_close(found, observe(module, module, input, state))
        with torch.no_grad():
            torch.manual_seed(1)
            output = compiled(input, state)[0]
    torch.testing.assert_close(output.data if isinstance(output, PackedSequence) else output, found[0].detach())


def test_cell_equal_to_eager() -> None:
    cell = torchlstm.LSTMCell(2, 4)
    compiled = torch.compile(cell, fullgraph=True)
    x = torch.randn(3, 2, requires_grad=True)
    given = tuple(torch.randn(3, 4, requires_grad=True) for _ in range(2))
    found = []
    for run in (compiled, cell):
        h, c = run(x, given)
        found.append([h, c, *torch.autograd.grad(h.sum() + c.pow(2).sum(), [x, *given, *cell.parameters()])])
    torch.testing.assert_close(*found)


class Graphs:
    """A backend that keeps what it is given to compile, forward and backward."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.Graph] = []

    def __call__(self, module: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs.append(module.graph)
        return make_boxed_func(module)

    def backend(self) -> Any:
        from torch._dynamo.backends.common import aot_autograd

        return aot_autograd(fw_compiler=self, bw_compiler=self)

    def operators(self) -> list[str]:
        """The operators of ours that all graphs call."""
        names = (str(node.target) for graph in self.graphs for node in graph.nodes)
        return [name.removeprefix("torchlstm.").removesuffix(".default") for name in names if "torchlstm" in name]


def test_the_graph_does_not_grow_with_time() -> None:
    sizes = []
    for steps in (64, 512):
        torch._dynamo.reset()
        graphs = Graphs()
        module = torch.compile(torchlstm.LSTM(2, 4, bidirectional=True), fullgraph=True, backend=graphs.backend())
        module(torch.randn(steps, 3, 2))[0].sum().backward()
        assert graphs.operators() == ["lstm", "lstm_backward"]
        sizes.append([len(graph.nodes) for graph in graphs.graphs])
    assert sizes[0] == sizes[1]


def test_inference_saves_nothing() -> None:
    graphs = Graphs()
    module = torch.compile(torchlstm.LSTM(2, 4), fullgraph=True, backend=graphs.backend())
    with torch.no_grad():
        module(torch.randn(5, 3, 2))
    (call,) = (node for node in graphs.graphs[0].nodes if "torchlstm" in str(node.target))
    assert call.args[-1] is False


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "packed"])
def test_no_recompilation_for_other_sizes(ragged: bool) -> None:
    module = torchlstm.LSTM(2, 4, 2)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")

    def run(steps: int, batch: int) -> None:
        x: Any = torch.randn(steps, batch, 2)
        x = packed(x, [max(1, steps - 2 * k) for k in range(batch)], sort=True) if ragged else x
        output, other = compiled(x)[0], module(x)[0]
        torch.testing.assert_close(*((output.data, other.data) if ragged else (output, other)))
        (output.data if ragged else output).sum().backward()

    run(5, 3)
    with torch.compiler.set_stance("fail_on_recompile"):
        for steps, batch in ((9, 3), (30, 4), (17, 7)):
            run(steps, batch)


def test_packed_in_order_without_states() -> None:
    """B is then written nowhere but in a tensor."""
    module, input = torchlstm.LSTM(2, 4), packed(torch.randn(5, 3, 2), [5, 2, 1], sort=False)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    input.data.requires_grad_()
    torch.testing.assert_close(observe(compiled, module, input, None), observe(module, module, input, None))


def test_what_a_compiler_cannot_see_is_checked_at_run_time() -> None:
    module, data = torchlstm.LSTM(2, 4), torch.randn(6, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    state = states(1, 2, 4, 4)
    compiled(PackedSequence(data, torch.tensor([2, 2, 2])), state)
    for sizes, message in (([1, 2, 3], "must not rise"), ([3, 2, 2], "sum to 7"), ([3, 2, 1], "states of 3")):
        with pytest.raises(RuntimeError, match=message):
            compiled(PackedSequence(data, torch.tensor(sizes)), state)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size"):
        torch.compile(module, backend="eager")(PackedSequence(data, torch.tensor([2, 2, 2])), states(1, 2, 5, 4))


def test_on_the_reference_engine_and_in_other_dtypes() -> None:
    x = torch.randn(4, 3, 2)
    with torchlstm.use_engine("reference"):
        module = torchlstm.LSTM(2, 4)
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x)[0], module(x)[0])


def test_operators_by_torchs_own_checks() -> None:
    module, x = torchlstm.LSTM(2, 4, bidirectional=True, proj_size=3), torch.randn(15, 2)
    weights = [parameter.detach() for parameter in module.parameters()]
    state = states(2, 3, 3, 4)
    checks = ("test_schema", "test_faketensor")
    for sizes, every in itertools.product((None, torch.tensor([3, 3, 3, 3, 2, 1])), (None, 4)):
        layer = ("cpu", x, *state, weights, sizes, 5 if sizes is None else 6, every)
        torch.library.opcheck(torch.ops.torchlstm.lstm.default, (*layer, False), test_utils=checks)
        torch.library.opcheck(torch.ops.torchlstm.lstm.default, (*layer, True), test_utils=checks)
        y, h_n, c_n, gates, cells, h = torch.ops.torchlstm.lstm(*layer, True)
        more = (None, None) if every else (torch.randn_like(gates), torch.randn_like(cells))
        given = (*layer, gates, cells, h, torch.randn_like(y), torch.randn_like(h_n), torch.randn_like(c_n), *more)
        torch.library.opcheck(torch.ops.torchlstm.lstm_backward_loop.default, given, test_utils=checks)
        for needs in ([True] * 13, [False, True] * 6 + [True]):
            torch.library.opcheck(torch.ops.torchlstm.lstm_backward.default, (*given, needs), test_utils=checks)


# What torch 2.11 says where it loads a program of its own.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_export_with_dynamic_batch_and_time(strict: bool) -> None:
    module = torchlstm.LSTM(2, 4, 2, bidirectional=True, batch_first=True).eval()
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    shapes = {"input": {0: batch, 1: steps}, "hx": ({1: batch}, {1: batch})}
    program = torch.export.export(
        module, (torch.randn(3, 5, 2), states(4, 3, 4, 4)), dynamic_shapes=shapes, strict=strict
    )
    called = [node for node in program.graph.nodes if str(node.target) == "torchlstm.lstm.default"]
    assert [call.args[-1] for call in called] == [False, False]  # nothing is saved
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for b, t in ((3, 5), (7, 11), (2, 40)):
        arguments = torch.randn(b, t, 2), states(4, b, 4, 4)
        torch.testing.assert_close(loaded(*arguments), module(*arguments))


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}], ids=["plain", "projected"])
def test_compiled_under_autocast(options: dict[str, Any]) -> None:
    module, x = torchlstm.LSTM(2, 4, **options), torch.randn(5, 3, 2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for run in (compiled, module):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, (h_n, c_n) = run(x)
        loss = output.float().sum() + c_n.float().sum()
        found.append([output, h_n, c_n, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*found)
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export's own
def test_ahead_of_time(tmp_path: Path) -> None:
    """A package of AOTInductor calls the operator by its name: the process that loads it has imported torchlstm."""
    module, x = torchlstm.LSTM(2, 4, 2, bidirectional=True).eval(), torch.randn(5, 3, 2)
    shapes = {"input": {0: torch.export.Dim("steps", min=2), 1: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "lstm.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for steps, batch in ((5, 3), (11, 7)):
        x = torch.randn(steps, batch, 2)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), module(x))
