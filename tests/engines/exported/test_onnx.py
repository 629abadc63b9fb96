"""torch.onnx.export writes one LSTM node a layer, and ONNX Runtime computes the same from it."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import torchlstm

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

STEPS, BATCH = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)


def export(module: nn.Module, *arguments: Any, shapes: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        return torch.onnx.export(
            module.eval(), arguments, dynamo=True, dynamic_shapes=shapes, verbose=False
        ).model_proto


def export_decomposed(program: torch.export.ExportedProgram) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions(torchlstm.export.decompositions())
        return torch.onnx.export(program, (), dynamo=True, verbose=False).model_proto


def run(model: Any, *arguments: Tensor) -> list[Tensor]:
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(model.SerializeToString())
    names = [each.name for each in session.get_inputs()]
    given = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, given)]


def nodes(model: Any) -> int:
    return sum(node.op_type == "LSTM" for node in model.graph.node)


class WithStates(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = torchlstm.LSTM(3, 4, **options)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h_n, c_n) = self.lstm(x, (h, c))
        return output, h_n, c_n


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias": {"bias": False},
    "bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"proj_size": 2},
    "projected-bidirectional": {"num_layers": 2, "bidirectional": True, "proj_size": 3, "bias": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dynamic_axes_and_states(options: dict[str, Any]) -> None:
    module = WithStates(**options)
    lstm = module.lstm
    layers = lstm.num_layers * (1 + lstm.bidirectional)

    def draw(steps: int, batch: int) -> tuple[Tensor, ...]:
        x = torch.randn(steps, batch, 3)
        return x.transpose(0, 1) if lstm.batch_first else x, *(
            torch.randn(layers, batch, size) for size in (lstm.proj_size or 4, 4)
        )

    axes = {0: BATCH, 1: STEPS} if lstm.batch_first else {0: STEPS, 1: BATCH}
    model = export(module, *draw(5, 3), shapes=(axes, {1: BATCH}, {1: BATCH}))
    assert nodes(model) == lstm.num_layers
    for steps, batch in ((5, 3), (11, 2), (40, 7)):
        arguments = draw(steps, batch)
        torch.testing.assert_close(run(model, *arguments), list(module(*arguments)), atol=1e-5, rtol=1e-4)


def test_without_states_and_the_cell() -> None:
    for module, x in ((torchlstm.LSTM(3, 4), torch.randn(5, 2, 3)), (torchlstm.LSTMCell(3, 4), torch.randn(2, 3))):
        model = export(module, x)
        assert nodes(model) == 1
        output = module(x)[0]
        torch.testing.assert_close(run(model, x)[0], output, atol=1e-5, rtol=1e-4)


def test_a_projection_without_states() -> None:
    """Their zeros are made in the graph; and one step is the first and the last."""
    module = torchlstm.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    model = export(module, torch.randn(5, 3, 3), shapes={"input": {0: STEPS, 1: BATCH}})
    assert nodes(model) == 2
    for steps, batch in ((1, 2), (7, 1), (30, 4)):
        output, (h_n, c_n) = module(x := torch.randn(steps, batch, 3))
        torch.testing.assert_close(run(model, x), [output, h_n, c_n], atol=1e-5, rtol=1e-4)


class Calls(nn.Module):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.lstm, self.call = torchlstm.LSTM(3, 4), call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.lstm, x)


CALLS: dict[str, tuple[Any, str]] = {
    "lengths": (
        lambda lstm, x: lstm(x, lengths=[5, 2])[0],
        "takes no PackedSequence, lengths or resets: export a model",
    ),
    "resets": (lambda lstm, x: lstm(x, resets=x[..., 0] > 0)[0], "takes no PackedSequence, lengths or resets"),
    "packed": (
        lambda lstm, x: lstm(PackedSequence(x.flatten(0, 1), torch.tensor([2, 2, 2, 2, 2])))[0].data,
        "takes no PackedSequence, lengths or resets",
    ),
    "trace": (lambda lstm, x: lstm.trace(x).output, "gives no gates, and this call is LSTM.trace"),
}


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS)
def test_what_the_operator_cannot_do_is_said(call: Any, message: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(torch.onnx.OnnxExporterError):
            torch.onnx.export(Calls(call).eval(), (torch.randn(5, 2, 3),), dynamo=True, verbose=False)
    assert any(f"cannot be exported to ONNX: ONNX's LSTM operator {message}" in str(w.message) for w in caught)


def test_a_program_that_was_exported_before() -> None:
    """It has operators of ours; decomposed, its loop is ONNX's Scan."""
    module, x = torchlstm.LSTM(3, 4, bidirectional=True, proj_size=2).eval(), torch.randn(5, 3, 3)
    program = torch.export.export(module, (x,), dynamic_shapes={"input": {0: STEPS, 1: BATCH}})
    model = export_decomposed(program)
    for steps, batch in ((5, 3), (11, 2)):
        output, (h_n, c_n) = module(x := torch.randn(steps, batch, 3))
        torch.testing.assert_close(run(model, x), [output, h_n, c_n], atol=1e-5, rtol=1e-4)
