"""The table of what each LSTM can do: every cell that says yes or no is tried."""

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import opacus
import pytest
import torch
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm
import torchlstm.integrations.opacus

pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's classes
PAGE = Path(__file__).parent.parent.parent / "docs" / "differences.md"
KINDS: dict[str, Any] = {
    "nn.LSTM": nn.LSTM,
    "opacus DPLSTM": DPLSTM,
    "torch.ao LSTM": torch.ao.nn.quantizable.LSTM,
    "torchlstm": torchlstm.LSTM,
}
TIME, BATCH = torch.export.Dim("time", min=2), torch.export.Dim("batch", min=2)


def series(*shape: int) -> Tensor:
    return torch.randn(*(shape or (5, 3, 2)), generator=torch.Generator().manual_seed(0))


def packed(dtype: torch.dtype = torch.float32) -> PackedSequence:
    return pack_padded_sequence(series().to(dtype), torch.tensor([2, 5, 3]), enforce_sorted=False)


def twin(module: nn.Module, **options: Any) -> nn.LSTM:
    """nn.LSTM with a module's weights."""
    other, theirs = nn.LSTM(2, 4, **options), list(module.parameters())
    # Of every layer, all have two matrices and two biases, the input's first; who comes when differs.
    groups = [sorted(theirs[first : first + 4], key=lambda weight: -weight.dim()) for first in range(0, len(theirs), 4)]
    for weight, value in zip(other.parameters(), [weight for group in groups for weight in group], strict=True):
        weight.data.copy_(value.data)
    return other


def a_projection(kind: Any) -> None:
    kind(2, 4, proj_size=3)(series())


def rows_packed(kind: Any) -> None:
    module = kind(2, 4)
    output, (h_n, c_n) = module(packed())
    expected, state = twin(module)(packed())
    torch.testing.assert_close((output.data, h_n, c_n), (expected.data, *state))


def checkpoints(kind: Any) -> None:
    options = {"num_layers": 2, "bidirectional": True}
    kind(2, 4, **options).load_state_dict(nn.LSTM(2, 4, **options).state_dict())


def dropout(kind: Any) -> None:
    options: dict[str, Any] = {"num_layers": 2, "dropout": 0.5}
    module = kind(2, 4, **options)
    found = []
    for each in (module, twin(module, **options)):
        torch.manual_seed(0)
        found.append(each(series())[0])
    torch.testing.assert_close(*found)


def double(kind: Any) -> None:
    _, state = kind(2, 4).double()(packed(torch.float64))
    assert [each.dtype for each in state] == [torch.float64] * 2


def half(kind: Any) -> None:
    with torch.autocast("cpu", torch.float16):
        kind(2, 4)(series())[0].float().sum().backward()


def one_graph(kind: Any) -> None:
    torch._dynamo.reset()
    torch.compile(kind(2, 4), fullgraph=True, backend="eager")(series())


def graph_of_one_size(kind: Any) -> None:
    sizes: list[int] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        sizes.append(len(module.graph.nodes))
        return module

    for steps in (4, 16):
        torch._dynamo.reset()
        torch.compile(kind(2, 4), fullgraph=True, backend=backend)(series(steps, 3, 2))
    assert sizes[0] == sizes[1]


def exported(kind: Any) -> None:
    module, file = kind(2, 4).eval(), io.BytesIO()
    program = torch.export.export(module, (series(),), dynamic_shapes=({0: TIME, 1: BATCH},))
    torch.export.save(program, file)
    file.seek(0)
    other = series(9, 4, 2)
    torch.testing.assert_close(torch.export.load(file).module()(other)[0], module(other)[0])


def in_core_aten(kind: Any) -> None:
    module = kind(2, 4).eval()
    program = torch.export.export(module, (series(),), dynamic_shapes=({0: TIME, 1: BATCH},))
    program = program.run_decompositions(torchlstm.export.decompositions())
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, torch.fx.GraphModule)]
    calls = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    assert all(torch.Tag.core in call.tags for call in calls if isinstance(call, torch._ops.OpOverload))
    other = series(9, 4, 2)
    torch.testing.assert_close(program.module()(other)[0], module(other)[0])


def onnx(kind: Any, **options: Any) -> None:
    module = kind(2, 4, **options).eval()
    shapes = ({0: TIME, 1: BATCH},)
    model = torch.onnx.export(module, (series(),), dynamo=True, dynamic_shapes=shapes, verbose=False).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString())
    other = series(9, 4, 2)
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), module(other)[0], atol=1e-5, rtol=1e-4)


def onnx_projected(kind: Any) -> None:
    onnx(kind, proj_size=3)


def over_inputs(kind: Any) -> None:
    module, x = kind(2, 4).eval(), series(6, 5, 3, 2)
    torch.testing.assert_close(vmap(lambda each: module(each)[0])(x), torch.stack([module(each)[0] for each in x]))


def over_an_ensemble(kind: Any) -> None:
    members = [kind(2, 4) for _ in range(3)]
    (weights, buffers), x = stack_module_state(members), series()
    found = vmap(lambda *state: functional_call(members[0], state, (x,))[0])(weights, buffers)
    torch.testing.assert_close(found, torch.stack([member(x)[0] for member in members]))


def by_transforms(kind: Any) -> None:
    module = kind(2, 4)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, weights, (sample.unsqueeze(1),))[0].pow(2).sum()

    together = vmap(grad(loss), in_dims=(None, 1))(weights, series())
    for sample in range(3):
        alone = grad(loss)(weights, series()[:, sample])
        torch.testing.assert_close({name: value[sample] for name, value in together.items()}, alone)


def forward_mode(kind: Any) -> None:
    module, x = kind(2, 4), series()
    jvp(lambda each: module(each)[0], (x,), (x,))


def _by_opacus(kind: Any, input: Any) -> None:
    module = kind(2, 4)
    other, weight = twin(module), next(iter(module.parameters()))
    private = opacus.GradSampleModule(module, loss_reduction="sum")
    private(input)[1][0].pow(2).sum().backward()
    for sample in range(3):
        h_n = other(input)[1][0]
        (expected,) = torch.autograd.grad(h_n[:, sample].pow(2).sum(), other.weight_ih_l0)
        torch.testing.assert_close(weight.grad_sample[sample], expected)


def by_opacus(kind: Any) -> None:
    _by_opacus(kind, series())


def by_opacus_packed(kind: Any) -> None:
    _by_opacus(kind, packed())


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def scripted(kind: Any) -> None:
    torch.jit.script(Around(kind(2, 4)))(series())


PROBES: dict[str, Callable[[Any], None]] = {
    "`proj_size`": a_projection,
    "`PackedSequence`, unsorted": rows_packed,
    "`state_dict` of nn.LSTM": checkpoints,
    "Dropout as nn.LSTM's": dropout,
    "float64 states of packed float64": double,
    "Training under float16 autocast, CPU": half,
    "`torch.compile(fullgraph=True)`": one_graph,
    "Graph of the same size for any T": graph_of_one_size,
    "`torch.export`, dynamic time": exported,
    "The same in core ATen": in_core_aten,
    "ONNX file for any T and B": onnx,
    "The same with `proj_size`": onnx_projected,
    "`vmap` over inputs": over_inputs,
    "`vmap` over an ensemble": over_an_ensemble,
    "Per-sample gradients, `vmap(grad)`": by_transforms,
    "Forward mode (`jvp`)": forward_mode,
    "Per-sample gradients, opacus": by_opacus,
    "The same, of unsorted packed input": by_opacus_packed,
    "`torch.jit.script`": scripted,
}


def cells() -> dict[str, dict[str, str]]:
    """The page's table: row, column, what it says."""
    text = PAGE.read_text(encoding="utf-8").split("<!-- comparison -->")[1].strip()
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n\n")[0].splitlines()
    ]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_every_row_has_a_probe() -> None:
    assert list(cells()) == ["Runs on", *PROBES]
    assert list(cells()["Runs on"]) == [*list(KINDS)[:3], "flashrnn", "haste", "torchlstm"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", PROBES)
def test_the_table_says_what_is(row: str, kind: str) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            PROBES[row](KINDS[kind])
            works, why = True, None
        except Exception as error:
            works, why = False, error
    cell = cells()[row][kind]
    assert re.match("yes|no", cell), cell
    assert works == cell.startswith("yes"), f"{row}, {kind}: the page says {cell!r}; {why}"
