"""Checks of inputs, states, weights and options, with torch.nn's errors; they run before any engine sees a tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..engines.contract import check_batch_sizes
from .jagged import check_jagged, is_jagged
from .precision import autocasts


def check_pair(owner: str, hx: object, name: str = "hx") -> None:
    """Raise unless hx is a pair of tensors; `owner` is the operator's name in messages ("lstm", "lstm_cell")."""
    if not isinstance(hx, (tuple, list)):
        what = f"one Tensor of shape {tuple(hx.shape)}" if isinstance(hx, Tensor) else type(hx).__name__
        raise TypeError(f"{owner} expects {name} to be a tuple (h_0, c_0) of two tensors, got {what}")
    if len(hx) != 2:
        raise RuntimeError(f"{owner} expects two hidden states, got {len(hx)}")
    for index, state in enumerate(hx):
        if not isinstance(state, Tensor):
            raise TypeError(f"{owner} expects {name}[{index}] to be a Tensor, got {type(state).__name__}")


def check_states(input: Tensor, hx: Sequence[Tensor], name: str = "hidden") -> None:
    """Raise RuntimeError unless the states have the input's device and dtype; autocast allows other dtypes."""
    device, dtype = input.device, input.dtype
    for index, state in enumerate(hx):
        if state.device != device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{device} and hidden tensor at {state.device}"
            )
        if state.dtype != dtype and not (autocasts(input) and autocasts(state)):
            raise RuntimeError(f"Expected {name}[{index}] dtype {dtype}, as the input has, got {state.dtype}")


def check_weight(input: Tensor, kind: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    """Raise RuntimeError unless a weight has this shape and the input's device and dtype; autocast allows others.

    kind  its name in the message, such as "w_ih"
    """
    device, dtype = input.device, input.dtype
    if weight.dtype != dtype and not (autocasts(input) and autocasts(weight)):
        raise RuntimeError(f"Input and parameter dtypes differ: input {dtype}, {kind} {weight.dtype}")
    if weight.device != device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{device} and parameter tensor at {weight.device}"
        )
    if weight.shape != shape:
        raise RuntimeError(f"Expected {kind} of shape {shape}, got {tuple(weight.shape)}")


def dtype_mismatch(input: Tensor, weight: Tensor) -> str | None:
    """nn.LSTM's message for an input whose dtype differs from the weight's, or None if the two fit."""
    if input.dtype == weight.dtype or (autocasts(input) and autocasts(weight)):
        return None
    return (
        f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
        f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
    )


def check_every(every: object) -> None:
    """Raise TypeError or ValueError unless this is a valid `checkpoint_every`: None or an int of at least 1."""
    if every is None:
        return
    if not isinstance(every, int) or isinstance(every, bool):
        raise TypeError(f"LSTM: Expected checkpoint_every to be an int or None, got {type(every).__name__}")
    if every < 1:
        raise ValueError(f"LSTM: Expected checkpoint_every to be at least 1, got {every}")


def check_tensor(owner: str, input: object) -> None:
    """Raise TypeError for what is not a tensor, RuntimeError for a sparse or nested tensor."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{owner}: Expected input to be a Tensor, got {type(input).__name__}")
    if input.is_nested:
        kind = "jagged" if input.layout == torch.jagged else "strided"
        raise RuntimeError(
            f"{owner}: Expected a dense input, got a nested tensor of {kind} layout; those of jagged layout, "
            "layout=torch.jagged, are for an LSTM or a stack of cells"
        )
    if input.layout != torch.strided:
        raise RuntimeError(f"{owner}: Expected a dense (strided) input, got {input.layout}")


def check_packed(input: PackedSequence) -> None:
    """Raise RuntimeError unless the batch sizes of a PackedSequence are valid and fit its rows."""
    sizes = input.batch_sizes
    if sizes.dim() != 1 or sizes.dtype != torch.int64:
        raise RuntimeError(
            f"batch_sizes of a PackedSequence must be 1-D and torch.int64, got {sizes.dim()}-D and {sizes.dtype}"
        )
    if sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    # In a recorded program the operator, or the scripted loop, checks the values when it runs.
    if not recorded():
        check_batch_sizes(sizes, input.data.shape[0])


def recorded() -> bool:
    """Whether a compiler or torch.jit.trace records this call: the values in its tensors are then not final."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def check_lstm_call(module: Any, input: Any, hx: Any) -> None:
    """Raise nn.LSTM's error for a bad input or bad states, or a clearer error of the same type."""
    jagged, packed = is_jagged(input), isinstance(input, PackedSequence)
    if hx is not None:
        check_pair("lstm", hx)
    if packed:
        check_packed(input)
        data, what, rank = input.data, "a PackedSequence", 3
    elif jagged:
        check_jagged("LSTM", input)
        data, what, rank = input.values(), "a jagged input", 3
    else:
        check_tensor("LSTM", input)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        data, rank = input, input.dim()
        what = "batched 3-D input" if rank == 3 else "unbatched 2-D input"
    if hx is not None and (hx[0].dim() != rank or hx[1].dim() != rank):
        raise RuntimeError(
            f"For {what}, hx and cx should also be {rank}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    check_lstm_input(data, packed, module.weight_ih_l0, module.input_size)
    if hx is None:
        return
    if rank == 2:
        hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        batch = 1
    elif packed:
        # A compiler does not know the values of batch_sizes, so B is hx's; see `packing.batch_of`.
        batch = hx[0].shape[1] if torch.compiler.is_compiling() else int(input.batch_sizes[0])
    else:
        batch = input.shape[0 if jagged or module.batch_first else 1]
    _check_state_sizes("hidden", module, (batch,), hx)
    check_states(data, hx)


def _check_state_sizes(name: str, module: Any, batch: tuple[int, ...], states: Sequence[Tensor]) -> None:
    """Raise RuntimeError unless the states of an LSTM are (L*D, *batch, R) and (L*D, *batch, H)."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    for index, size in enumerate((module.proj_size or module.hidden_size, module.hidden_size)):
        expected, shape = (count, *batch, size), states[index].shape
        if shape != expected:
            raise RuntimeError(f"Expected {name}[{index}] size {expected}, got {list(shape)}")


def check_lstm_input(data: Tensor, packed: bool, weight: Tensor, input_size: int) -> None:
    """Raise nn.LSTM's error unless dtype, rank and feature size of these rows, or of this batch, fit the LSTM."""
    if problem := dtype_mismatch(data, weight):
        # nn.LSTM checks the dtype of dense input itself; packed input fails later, in a product.
        raise (RuntimeError if packed else ValueError)(problem)
    expected = (2,) if packed else (2, 3)
    if data.dim() not in expected:
        raise RuntimeError(f"input must have {expected[-1]} dimensions, got {data.dim()}")
    if data.shape[-1] != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {data.shape[-1]}")


def check_segmented_call(module: Any, input: Any, resets: Any, reset_state: Any) -> None:
    """Raise if lengths, resets or reset_state do not fit an input that has passed `check_lstm_call`."""
    if isinstance(input, PackedSequence):
        raise TypeError("LSTM: lengths and resets are for tensors, and input is a PackedSequence: unpack it first")
    if is_jagged(input):
        raise TypeError("LSTM: lengths and resets are for dense tensors, and input is jagged, which has its own")
    if reset_state is None:
        return
    if resets is None:
        raise TypeError("LSTM: reset_state is where the state restarts at resets, and there are no resets")
    check_pair("lstm", reset_state, "reset_state")
    batch = () if input.dim() == 2 else (input.shape[0 if module.batch_first else 1],)
    _check_state_sizes("reset_state", module, batch, reset_state)
    check_states(input, reset_state, "reset_state")


def check_cell_call(module: Any, input: Any, hx: Any) -> None:
    """Raise nn.LSTMCell's error for a bad input or bad states, or a clearer error of the same type."""
    check_tensor("LSTMCell", input)
    if input.dim() not in (1, 2):
        raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None:
        check_pair("lstm_cell", hx)
    expected = (*input.shape[:-1], module.hidden_size)
    fits = hx is None or (hx[0].shape == expected and hx[1].shape == expected)
    if hx is not None and not fits:
        _check_cell_ranks(input, hx)
    if input.shape[-1] != module.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {module.input_size}")
    if problem := dtype_mismatch(input, module.weight_ih):
        raise RuntimeError(problem)
    if hx is not None:
        if not fits:
            _check_cell_sizes(input, hx, module.hidden_size)
        check_states(input, hx)


def _check_cell_ranks(input: Tensor, hx: Sequence[Tensor]) -> None:
    for index, state in enumerate(hx):
        if state.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead")
        if state.dim() != input.dim():
            raise RuntimeError(
                f"LSTMCell: For {input.dim()}-D input, hx[{index}] should also be {input.dim()}-D, got {state.dim()}-D"
            )


def _check_cell_sizes(input: Tensor, hx: Sequence[Tensor], hidden_size: int) -> None:
    for index, state in enumerate(hx):
        if input.dim() == 2 and state.shape[0] != input.shape[0]:
            raise RuntimeError(
                f"Input batch size {input.shape[0]} doesn't match hidden{index} batch size {state.shape[0]}"
            )
        if state.shape[-1] != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.shape[-1]}, expected {hidden_size}"
            )


def check_stack_call(module: Any, input: Any, hx: Any) -> None:
    """Raise for an input or states that a `CellStack` cannot take."""
    name = type(module).__name__
    data = input
    if isinstance(input, PackedSequence):
        check_packed(input)
        data = input.data
    elif is_jagged(input):
        check_jagged(name, input)
        data = input.values()
    else:
        check_tensor(name, input)
        if input.dim() not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
    if data.shape[-1] != module.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {module.input_size}, got {data.shape[-1]}"
        )
    if hx is None:
        return
    count = len(module.state_sizes)
    if not isinstance(hx, (tuple, list)) or len(hx) != count:
        what = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"{name} expects hx to be a tuple of {count} tensors, got {what}")
    check_states(data, hx)


def check_stack_states(sizes: Sequence[int], count: int, batch: tuple[int, ...], hx: Sequence[Tensor]) -> None:
    """Raise RuntimeError unless the states of a `CellStack` are (L*D, *batch, size) for each size."""
    for index, (tensor, size) in enumerate(zip(hx, sizes, strict=True)):
        expected = (count, *batch, size)
        if tensor.shape != expected:
            raise RuntimeError(f"Expected hx[{index}] of shape {expected}, got {tuple(tensor.shape)}")
