"""Every input form to packed rows and back: time-major, batch_first, unbatched, packed, jagged; lengths, resets."""

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..engines.contract import Dense, Ragged, Rows, check_batch_sizes
from .jagged import is_jagged, like, plan
from .segments import Segments

State: TypeAlias = tuple[Tensor, Tensor]


class Packed(NamedTuple):
    """An input as packed rows, and what it takes to give the output the input's form."""

    data: Tensor  # (P, I)
    rows: Rows
    batch: int  # B
    form: PackedSequence | None  # the input itself, if it was packed already
    batch_first: bool
    unbatched: bool
    segments: Segments | None = None  # which are the sequences of the rows, where lengths, resets or offsets say so
    jagged: Tensor | None = None  # the input itself, if it was a jagged nested tensor


def pack(
    input: Tensor | PackedSequence,
    batch_first: bool,
    hx: tuple[Tensor, ...] | None = None,
    segments: Segments | None = None,
) -> Packed:
    """Turn an input that has passed the module's checks into packed rows.

    input     (T, B, I), (B, T, I) if batch_first, (T, I) unbatched, a PackedSequence of rows (P, I), jagged (B, j, I)
    hx        the states that came with it
    segments  the plan of lengths and resets, if there are any
    returns   its rows, step by step
    """
    if is_jagged(input):
        assert isinstance(input, Tensor)
        found = plan(input)
        assert found.order is not None
        data, batch = input.values().index_select(0, found.order), found.enter.shape[1]
        return Packed(data, found.rows, batch, None, batch_first=True, unbatched=False, segments=found, jagged=input)
    if segments is not None and segments.order is not None:
        assert isinstance(input, Tensor)
        # What is padding is never looked at: nothing in it reaches a result or a gradient.
        data = input.flatten(0, -2).index_select(0, segments.order)
        return Packed(data, segments.rows, segments.enter.shape[1], None, batch_first, input.dim() == 2, segments)
    if isinstance(input, PackedSequence):
        sizes, batch = input.batch_sizes, batch_of(input, hx)
        steps = sizes.shape[0]
        # Sizes never rise: these sequences are equally long.
        dense = not _records() and int(sizes[-1]) == batch
        rows = Dense(steps, batch) if dense else Ragged(sizes)
        return Packed(input.data, rows, batch, input, batch_first, unbatched=False)
    if input.dim() == 2:
        return Packed(input, Dense(input.shape[0], 1), 1, None, batch_first, True, segments)
    time_major = input.transpose(0, 1) if batch_first else input
    steps, batch, features = time_major.shape
    data = time_major.reshape(steps * batch, features)
    return Packed(data, Dense(steps, batch), batch, None, batch_first, False, segments)


# As `view`, but the result is no view to autograd: whoever is handed it may detach it or write into it in place.  Right
# where the tensor that it is made from is given up, as matmul's own is.
_shaped: Any = torch.ops.aten._unsafe_view.default


def unpack(packed: Packed, y: Tensor, own: bool = True) -> Tensor | PackedSequence:
    """Give rows of output y (P, D*R) the form that the input had; `own`: they belong to nobody else."""
    form, segments = packed.form, packed.segments
    if segments is not None and segments.order is not None:
        whole = y.new_zeros(math.prod(segments.shape), y.shape[1]).index_add_(0, segments.order, y)
        if packed.jagged is not None:
            return like(packed.jagged, whole)
        return _shaped(whole, [*segments.shape, y.shape[1]])  # type: ignore[no-any-return]
    if form is not None:
        return PackedSequence(y, form.batch_sizes, form.sorted_indices, form.unsorted_indices)
    if packed.unbatched:
        return y
    assert isinstance(packed.rows, Dense)
    shape = [packed.rows.steps, packed.batch, y.shape[1]]
    if not own or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        # A trace would keep the shape of its example in an operator that is not torch's own method.
        y = y.view(shape)
        return y.transpose(0, 1) if packed.batch_first else y
    y = _shaped(y, shape)
    return y.transpose_(0, 1) if packed.batch_first else y


def with_reset_state(hx: State | None, reset_state: State | None, unbatched: bool) -> State | None:
    """States in the user's form, and the reset states behind them, (L*D, 2B, F); None and None are zeros, so None."""
    given = hx or reset_state
    if given is None:
        return None
    zeros = [torch.zeros_like(state) for state in given]
    join = torch.stack if unbatched else torch.cat
    h, c = (join(pair, 1) for pair in zip(hx or zeros, reset_state or zeros, strict=True))
    return h, c


def pack_state(packed: Packed, state: Tensor) -> Tensor:
    """A state in the user's form, (L*D, B, F) or unbatched (L*D, F), as (L*D, B, F) in the order of the rows.

    With resets, (L*D, 2B, F): see `with_reset_state`.
    """
    if packed.segments is not None:
        return _select(state, packed.segments.enter)
    if packed.unbatched:
        return state.unsqueeze(1)
    if packed.form is not None and packed.form.sorted_indices is not None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            # For the program, which makes no checks of its own: of too many states it would select some.
            state = state.reshape(state.shape[0], packed.form.sorted_indices.shape[0], state.shape[2])
        return state.index_select(1, packed.form.sorted_indices)
    return state


def unpack_state(packed: Packed, state: Tensor) -> Tensor:
    """The inverse of `pack_state`, of a state that belongs to nobody else."""
    if packed.segments is not None:
        state = _select(state, packed.segments.leave)
    if packed.unbatched:
        return state.squeeze_(1)
    if packed.form is not None and packed.form.unsorted_indices is not None:
        return state.index_select(1, packed.form.unsorted_indices)
    return state


def _select(state: Tensor, index: Tensor) -> Tensor:
    """States (L*D, M, F) of the sequences index (D, N) of each direction: (L*D, N, F)."""
    directions = index.shape[0]
    if directions == 1:
        return state.index_select(1, index[0])
    each = [state[d::directions].index_select(1, index[d]) for d in range(directions)]
    stacked = torch.stack(each, 1)
    return _shaped(stacked, [stacked.shape[0] * directions, *stacked.shape[2:]])  # type: ignore[no-any-return]


def check_packed(input: PackedSequence) -> None:
    """Raise RuntimeError unless the rows and the batch sizes of a PackedSequence belong together."""
    sizes = input.batch_sizes
    if sizes.dim() != 1 or sizes.dtype != torch.int64:
        raise RuntimeError(
            f"batch_sizes of a PackedSequence must be 1-D and torch.int64, got {sizes.dim()}-D and {sizes.dtype}"
        )
    if sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    # The operator, or the loop of a traced program, checks it when it runs.
    if not _records():
        check_batch_sizes(sizes, input.data.shape[0])


def batch_of(input: PackedSequence, hx: tuple[Tensor, ...] | None) -> int:
    """B; from a shape where a compiler is tracing and there is one; a tensor under jit.trace, which follows it."""
    if torch.compiler.is_compiling():
        if input.sorted_indices is not None:
            return input.sorted_indices.shape[0]
        if hx is not None:
            return hx[0].shape[1]
        # As torch.export traces, `int` would ask for the number itself.
        batch = input.batch_sizes[0].item()
        torch._check(batch >= 0)
        return batch  # type: ignore[return-value]
    first: Any = input.batch_sizes[0]
    return first if torch.jit.is_tracing() else int(first)  # type: ignore[attr-defined,no-untyped-call]


def _records() -> bool:
    """Whether this call is made once for programs of others: what is in its tensors is another thing there."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
