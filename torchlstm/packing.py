"""Every input form of nn.LSTM to packed rows and back: time-major, batch_first, unbatched, PackedSequence."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .engines.contract import Dense, Ragged, Rows, check_batch_sizes


class Packed(NamedTuple):
    """An input as packed rows, and what it takes to give the output the input's form."""

    data: Tensor  # (P, I)
    rows: Rows
    batch: int  # B
    form: PackedSequence | None  # the input itself, if it was packed already
    batch_first: bool
    unbatched: bool


def pack(input: Tensor | PackedSequence, batch_first: bool, hx: tuple[Tensor, ...] | None = None) -> Packed:
    """Turn an input that has passed the module's checks into packed rows.

    input    (T, B, I), (B, T, I) if batch_first, (T, I) unbatched, or a PackedSequence of rows (P, I)
    hx       the states that came with it
    returns  its rows, step by step
    """
    if isinstance(input, PackedSequence):
        sizes, batch = input.batch_sizes, batch_of(input, hx)
        steps = sizes.shape[0]
        # Sizes never rise: these sequences are equally long.
        dense = not torch.compiler.is_compiling() and int(sizes[-1]) == batch
        rows = Dense(steps, batch) if dense else Ragged(sizes)
        return Packed(input.data, rows, batch, input, batch_first, unbatched=False)
    if input.dim() == 2:
        return Packed(input, Dense(input.shape[0], 1), 1, None, batch_first, unbatched=True)
    time_major = input.transpose(0, 1) if batch_first else input
    steps, batch, features = time_major.shape
    data = time_major.reshape(steps * batch, features)
    return Packed(data, Dense(steps, batch), batch, None, batch_first, unbatched=False)


def unpack(packed: Packed, y: Tensor) -> Tensor | PackedSequence:
    """Give rows of output y (P, D*R) the form that the input had."""
    form = packed.form
    if form is not None:
        return PackedSequence(y, form.batch_sizes, form.sorted_indices, form.unsorted_indices)
    if packed.unbatched:
        return y
    assert isinstance(packed.rows, Dense)
    y = y.view(packed.rows.steps, packed.batch, y.shape[1])
    return y.transpose(0, 1) if packed.batch_first else y


def pack_state(packed: Packed, state: Tensor) -> Tensor:
    """A state in the user's form, (L*D, B, F) or unbatched (L*D, F), as (L*D, B, F) in the order of the rows."""
    if packed.unbatched:
        return state.unsqueeze(1)
    if packed.form is not None and packed.form.sorted_indices is not None:
        return state.index_select(1, packed.form.sorted_indices)
    return state


def unpack_state(packed: Packed, state: Tensor) -> Tensor:
    """The inverse of `pack_state`."""
    if packed.unbatched:
        return state.squeeze(1)
    if packed.form is not None and packed.form.unsorted_indices is not None:
        return state.index_select(1, packed.form.unsorted_indices)
    return state


def check_packed(input: PackedSequence) -> None:
    """Raise RuntimeError unless the rows and the batch sizes of a PackedSequence belong together."""
    sizes = input.batch_sizes
    if sizes.dim() != 1 or sizes.dtype != torch.int64:
        raise RuntimeError(
            f"batch_sizes of a PackedSequence must be 1-D and torch.int64, got {sizes.dim()}-D and {sizes.dtype}"
        )
    if sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    # What is in a tensor is not known to a compiler; the operator checks it when it runs.
    if not torch.compiler.is_compiling():
        check_batch_sizes(sizes, input.data.shape[0])


def batch_of(input: PackedSequence, hx: tuple[Tensor, ...] | None) -> int:
    """B, from a shape where a compiler is tracing and there is one."""
    if torch.compiler.is_compiling():
        if input.sorted_indices is not None:
            return input.sorted_indices.shape[0]
        if hx is not None:
            return hx[0].shape[1]
    return int(input.batch_sizes[0])
