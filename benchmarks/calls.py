"""What is timed: one call of a module in inference, or one training step, as a function without arguments."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from torchlstm import LSTM, LSTMCell, Stream
from torchlstm.parity.observe import Inputs, build

from .workloads import Workload

Call = Callable[[], Any]


class Streamed(LSTM):
    """An LSTM whose inference is timed through a `torchlstm.Stream`."""


def kinds_of(workload: Workload, ours: bool) -> tuple[type[nn.Module], type[nn.Module]]:
    """The classes of LSTM and LSTMCell, torchlstm's or torch.nn's."""
    if ours:
        return Streamed if workload.streamed else LSTM, LSTMCell
    return nn.LSTM, nn.LSTMCell


def module_of(workload: Workload, ours: bool, device: str = "cpu") -> nn.Module:
    """The workload's module, torchlstm's or torch.nn's, both with the same weights."""
    return build(workload.case, *kinds_of(workload, ours), workload.case.dtype).to(device)


def arguments(inputs: Inputs, grad: bool) -> tuple[Any, Any, list[Tensor]]:
    """Input (packed if the batch is ragged), states or None, and those of them that get a gradient, as new leaves."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(grad)

    hx = None if inputs.h_0 is None or inputs.c_0 is None else (leaf(inputs.h_0), leaf(inputs.c_0))
    data = inputs.data
    packed = None
    if inputs.lengths is not None:
        packed = pack_padded_sequence(data, torch.tensor(inputs.lengths), enforce_sorted=False)
        data = packed.data
    data = leaf(data)
    # Neither packing nor its gradient is measured.
    input = data if packed is None else PackedSequence(data, *packed[1:])
    return input, hx, [data, *(hx or ())]


def tensors(result: Any) -> dict[str, Tensor]:
    """The results of a call by name; a cell has no output."""
    if isinstance(result[1], Tensor):
        return {"h_n": result[0], "c_n": result[1]}
    output, (h_n, c_n) = result
    return {"output": output.data if isinstance(output, PackedSequence) else output, "h_n": h_n, "c_n": c_n}


def results(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return the results of one call in eval mode, without gradients."""
    input, hx, _ = arguments(inputs, grad=False)
    with torch.no_grad():
        return tensors(module.eval()(input, hx, **inputs.keywords))


def inference(module: nn.Module, inputs: Inputs) -> Call:
    """Return one call, to be run under `torch.no_grad()`; given states are replaced by those of the call before.

    A call of 10 us is timed through this, so everything is decided before the functions run, nothing inside them.
    """
    module.eval()
    input, hx, _ = arguments(inputs, grad=False)
    keywords = inputs.keywords
    if hx is None:
        return (lambda: module(input, **keywords)) if keywords else (lambda: module(input))
    if isinstance(module, Streamed):
        stream = Stream(module, hx)
        return lambda: stream(input)
    state = hx

    def step_of_cell() -> None:
        nonlocal state
        state = module(input, state)

    def step_of_layer() -> None:
        nonlocal state
        state = module(input, state, **keywords)[1]

    return step_of_layer if "output" in inputs.cotangents else step_of_cell


def training(module: nn.Module, inputs: Inputs) -> Call:
    """Forward, and the gradients of input, given states and all parameters from fixed cotangents of all results."""
    module.train()
    input, hx, leaves = arguments(inputs, grad=True)
    leaves += module.parameters()
    keywords, packed = inputs.keywords, isinstance(input, PackedSequence)
    if "output" not in inputs.cotangents:
        states = [inputs.cotangents[name] for name in ("h_n", "c_n")]
        return lambda: torch.autograd.grad(module(input, hx), leaves, states)
    cotangents = [inputs.cotangents[name] for name in ("output", "h_n", "c_n")]

    def step() -> tuple[Tensor, ...]:
        output, states = module(input, hx, **keywords)
        return torch.autograd.grad((output.data if packed else output, *states), leaves, cotangents)

    return step


def call_of(mode: str, module: nn.Module, inputs: Inputs) -> Call:
    """The call of one of the modes."""
    return training(module, inputs) if mode == "training" else inference(module, inputs)
