"""ONNX Runtime's LSTM operator, inference only: a model with one node per layer, with int8 weights if asked."""

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from torchlstm.parity.observe import Inputs

from .calls import arguments, module_of
from .unfit import Unfit
from .workloads import Workload

_OPSET = 17


def _gates(weight: Tensor) -> Tensor:
    """The gates along the first axis reordered from torch's i, f, g, o to ONNX's i, o, f, c; c is torch's g."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g])


def _weights(module: nn.Module, suffixes: list[str]) -> dict[str, Tensor]:
    """W (D, 4H, I), R (D, 4H, H) and B (D, 8H) of one layer."""

    def parameter(name: str, suffix: str) -> Tensor:
        return _gates(module.get_parameter(name + suffix).detach())

    return {
        "W": torch.stack([parameter("weight_ih", suffix) for suffix in suffixes]),
        "R": torch.stack([parameter("weight_hh", suffix) for suffix in suffixes]),
        "B": torch.stack(
            [torch.cat([parameter("bias_ih", suffix), parameter("bias_hh", suffix)]) for suffix in suffixes]
        ),
    }


def _is_alone(workload: Workload) -> bool:
    return workload.layers == workload.directions == 1


def model_of(workload: Workload, module: nn.Module) -> bytes:
    """The module as an ONNX model: X (T, B, I), lengths (B,), h_0 and c_0 -> Y (T, B, D*H), h_n, c_n.

    One layer in one direction is one node with its own Y (T, 1, B, H), so that nothing else is measured.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    directions, hidden = workload.directions, workload.case.hidden_size
    given, ragged = workload.case.hx != "none", workload.lengths is not None
    nodes, constants = [], []
    x, states, alone = "X", [], _is_alone(workload)
    for layer in range(workload.layers):
        ends = [f"_l{layer}", f"_l{layer}_reverse"][:directions]
        for name, value in _weights(module, [""] if workload.case.cell else ends).items():
            constants.append(numpy_helper.from_array(value.numpy(), f"{name}{layer}"))
        more = ["lengths" if ragged else "", *(["h_0", "c_0"] if given else [])]
        states.append((f"h_n{layer}", f"c_n{layer}"))
        nodes.append(
            helper.make_node(
                "LSTM",
                [x, f"W{layer}", f"R{layer}", f"B{layer}", *more],
                [f"Y{layer}", *(("h_n", "c_n") if alone else states[-1])],
                hidden_size=hidden,
                direction="bidirectional" if directions == 2 else "forward",
            )
        )
        if alone:
            x = "Y0"
            break
        # (T, D, B, H) -> (T, B, D*H)
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"S{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"S{layer}", "flat"], [f"Z{layer}"]))
        x = f"Z{layer}"
    if not alone:
        constants.append(numpy_helper.from_array(torch.tensor([0, 0, -1]).numpy(), "flat"))
        for index, name in enumerate(("h_n", "c_n")):
            nodes.append(helper.make_node("Concat", [pair[index] for pair in states], [name], axis=0))

    def tensor(name: str, rank: int, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, [None] * rank)

    takes = [tensor("X", 3)]
    takes += [tensor("lengths", 1, TensorProto.INT32)] if ragged else []
    takes += [tensor("h_0", 3), tensor("c_0", 3)] if given else []
    graph = helper.make_graph(
        nodes, "lstm", takes, [tensor(x, 4 if alone else 3), tensor("h_n", 3), tensor("c_n", 3)], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def quantized(model: bytes) -> bytes:
    """Return the model with int8 weights: com.microsoft's `DynamicQuantizeLSTM`, made by ONNX Runtime's own tool."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The tool writes only to files, and recommends a pass that changes nothing in a model of LSTMs.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "quantized.onnx"
            quantize_dynamic(onnx.load_model_from_string(model), file, weight_type=QuantType.QInt8)
            return file.read_bytes()
    finally:
        logging.disable(before)


def prepare(
    workload: Workload, inputs: Inputs, device: str, int8: bool = False
) -> tuple[Callable[[], Any], dict[str, Tensor]]:
    """Return a call with its own session, which ends with the call's last reference, and the results of one call.

    Where states are given, each call gets those of the call before; a ragged batch is padded and has its lengths.

    int8  whether the model is `quantized`
    """
    if device != "cpu":
        raise Unfit("ONNX Runtime is measured on the CPU only")
    if workload.proj_size:
        raise Unfit("ONNX's LSTM has no projection")
    if workload.case.dtype != torch.float32:
        raise Unfit(f"ONNX Runtime's LSTM on the CPU takes float32, not {workload.sizes()['dtype']}")
    if workload.layers > 1 and workload.case.hx != "none":
        raise Unfit("this model takes no states for several layers")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = model_of(workload, module_of(workload, False))
    model = quantized(model) if int8 else model
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    input, hx, _ = arguments(inputs, grad=False)
    cell, lengths = workload.case.cell, None
    if isinstance(input, PackedSequence):
        input, lengths = pad_packed_sequence(input)
    feeds = {"X": (input[None] if cell else input).numpy()}
    if lengths is not None:
        feeds["lengths"] = lengths.int().numpy()
    if hx is not None:
        h_0, c_0 = (state[None] if cell else state for state in hx)
        feeds |= {"h_0": h_0.numpy(), "c_0": c_0.numpy()}

    def call() -> Any:
        found = session.run(None, feeds)
        if hx is not None:
            feeds["h_0"], feeds["c_0"] = found[1:]
        return found

    output, h_n, c_n = (torch.from_numpy(each) for each in session.run(None, feeds))
    if output.dim() == 4:
        output = output[:, 0]
    if cell:
        return call, {"h_n": h_n[0], "c_n": c_n[0]}
    if lengths is not None:
        # The output's rows in the order of a PackedSequence.
        output = nn.utils.rnn.pack_padded_sequence(output, lengths, enforce_sorted=False).data
    return call, {"output": output, "h_n": h_n, "c_n": c_n}
