"""Exported programs decomposed for other runtimes: core ATen operators alone, and nn.LSTM's numbers."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm
from torchlstm.engines.exported import decompose

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no engine with operators: {reason}", allow_module_level=True)

# torch.export's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

STEPS, BATCH = Dim("steps", min=2), Dim("batch", min=2)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias": {"bias": False},
    "batch-first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "two-layers": {"num_layers": 2},
    "projected": {"proj_size": 3},
    "everything": {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True},
}


def pair(**options: Any) -> tuple[torchlstm.LSTM, nn.LSTM]:
    torch.manual_seed(0)
    ours, theirs = torchlstm.LSTM(2, 4, **options).eval(), nn.LSTM(2, 4, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def arguments(module: nn.LSTM, steps: int, batch: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    count = module.num_layers * (1 + module.bidirectional)
    x = torch.randn(batch, steps, 2) if module.batch_first else torch.randn(steps, batch, 2)
    return x, (torch.randn(count, batch, module.proj_size or 4), torch.randn(count, batch, 4))


def calls(program: ExportedProgram) -> list[Any]:
    """What a program calls, in bodies of loops too."""
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    return [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]


def is_core(target: Any) -> bool:
    """Whether a target is a core ATen operator, or arithmetic of sizes and tuples."""
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace == "aten" and torch.Tag.core in target.tags
    return target.__module__ == "_operator"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_static_time_is_unrolled(options: dict[str, Any]) -> None:
    ours, theirs = pair(**options)
    given = arguments(theirs, 5, 3)
    program = torch.export.export(ours, given)
    assert not all(map(is_core, calls(program.run_decompositions())))
    decomposed = program.run_decompositions(torchlstm.export.decompositions())
    assert all(map(is_core, calls(decomposed)))
    torch.testing.assert_close(decomposed.module()(*given), theirs(*given))


def exported(module: torchlstm.LSTM, theirs: nn.LSTM) -> ExportedProgram:
    """A program for any number of steps and sequences, decomposed."""
    axes = {0: BATCH, 1: STEPS} if module.batch_first else {0: STEPS, 1: BATCH}
    shapes = {"input": axes, "hx": ({1: BATCH}, {1: BATCH})}
    program = torch.export.export(module, arguments(theirs, 5, 3), dynamic_shapes=shapes)
    return program.run_decompositions(torchlstm.export.decompositions())


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dynamic_time_is_a_scan(options: dict[str, Any]) -> None:
    ours, theirs = pair(**options)
    program = exported(ours, theirs)
    loops = [target for target in calls(program) if not is_core(target)]
    assert loops == [torch.ops.higher_order.scan] * (ours.num_layers * (1 + ours.bidirectional))
    for steps, batch in ((40, 2), (2, 7)):
        given = arguments(theirs, steps, batch)
        torch.testing.assert_close(program.module()(*given), theirs(*given))


@torch.no_grad()
def test_a_scan_is_saved_and_decomposed_once_more() -> None:
    """As runtimes do."""
    ours, theirs = pair(bidirectional=True, proj_size=3)
    program, file, given = exported(ours, theirs), io.BytesIO(), arguments(theirs, 7, 2)
    torch.export.save(program, file)
    file.seek(0)
    for run in (torch.export.load(file), program.run_decompositions()):
        assert calls(run).count(torch.ops.higher_order.scan) == 2
        torch.testing.assert_close(run.module()(*given), theirs(*given))


class Traced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(2, 4, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        trace = self.lstm.trace(x)
        return trace.output, [(s.h, s.c, s.i, s.f, s.g, s.o) for s in trace.layers[0]]


@pytest.mark.parametrize("shapes", [None, {"x": {0: STEPS, 1: BATCH}}], ids=["static", "dynamic"])
def test_a_trace_and_gradients(shapes: Any) -> None:
    """Before torch 2.13 the gradients of torch's own scan are wrong."""
    module, x = Traced(), torch.randn(5, 3, 2, requires_grad=True)
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    program = program.run_decompositions(torchlstm.export.decompositions())
    found, expected = program.module()(x), module(x)
    torch.testing.assert_close(found, expected)
    if shapes and torch.__version__ < (2, 13):
        return
    ours, theirs = (torch.autograd.grad(y.pow(2).sum() + s[1][1].sum(), x)[0] for y, s in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_the_cell() -> None:
    cell, theirs, x = torchlstm.LSTMCell(2, 4), nn.LSTMCell(2, 4), torch.randn(3, 2)
    theirs.load_state_dict(cell.state_dict())
    program = torch.export.export(cell, (x,)).run_decompositions(torchlstm.export.decompositions())
    assert all(map(is_core, calls(program)))
    torch.testing.assert_close(program.module()(x), theirs(x))


def test_a_forward_of_training_is_left_alone() -> None:
    x, state, weights = torch.randn(6, 2), torch.randn(1, 3, 4), [torch.randn(16, 2), torch.randn(16, 4)]
    assert decompose.lstm("cpu", x, state, state, weights, None, 2, 1, True) is NotImplemented


class Ragged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(2, 4)


class WithLengths(Ragged):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output: Tensor = self.lstm(x, lengths=lengths)[0]
        return output


class Packed(Ragged):
    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        output: Tensor = self.lstm(PackedSequence(x, sizes))[0].data
        return output


def test_ragged_input_is_refused_by_name() -> None:
    sequence = pack_padded_sequence(torch.randn(5, 3, 2), torch.tensor([5, 3, 2]))
    for module, given in (
        (WithLengths(), (torch.randn(5, 3, 2), torch.tensor([5, 2, 3]))),
        (Packed(), (sequence.data, sequence.batch_sizes)),
    ):
        program = torch.export.export(module, given)
        torch.testing.assert_close(program.run_decompositions().module()(*given), module(*given))
        with pytest.raises(RuntimeError, match="a PackedSequence, lengths or resets cannot be decomposed"):
            program.run_decompositions(torchlstm.export.decompositions())


def test_tools_that_export_for_themselves() -> None:
    """On the reference engine torch's own table is enough."""
    ours, theirs = pair(**OPTIONS["everything"])
    given = arguments(theirs, 5, 3)
    with torchlstm.use_engine("reference"):
        program = torch.export.export(ours, given)
    program = program.run_decompositions()
    assert all(map(is_core, calls(program)))
    torch.testing.assert_close(program.module()(*given), theirs(*given))
