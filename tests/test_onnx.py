"""torch.onnx.export writes one LSTM node a layer, and ONNX Runtime computes the same from it."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dynamic_axes_and_states(options: dict[str, Any]) -> None:
    module = WithStates(**options)
    lstm = module.lstm
    layers = lstm.num_layers * (1 + lstm.bidirectional)

    def draw(steps: int, batch: int) -> tuple[Tensor, ...]:
        x = torch.randn(steps, batch, 3)
        return x.transpose(0, 1) if lstm.batch_first else x, *torch.randn(2, layers, batch, 4)

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


def test_what_the_operator_cannot_do_is_said() -> None:
    module, x = torchlstm.LSTM(3, 4, proj_size=2).eval(), torch.randn(5, 2, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(torch.onnx.OnnxExporterError):
            torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert any(
        "ONNX's LSTM operator has no projection, and this LSTM has proj_size=2" in str(w.message) for w in caught
    )
