"""Every input form to packed rows and back: time-major, batch_first, unbatched, packed, jagged; lengths, resets."""

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..engines.contract import Ragged, Rows, rows_of
from ..engines.shared.torch_private import expect, peek_interpreter_stack, unsafe_view
from . import jagged
from .checks import recorded
from .plan import Form, Plan
from .segments import Segments, segment

State: TypeAlias = tuple[Tensor, Tensor]


class Packed(NamedTuple):
    """An input as packed rows, and what is needed to give results its form again."""

    data: Tensor  # (P, I)
    rows: Rows
    batch: int  # B of the rows; with lengths or resets the number of segments
    source: Any  # the input itself
    segments: Segments | None = None  # how the rows were cut, if by lengths, resets or jagged offsets


def pack(plan: Plan, input: Any, hx: tuple[Tensor, ...] | None, lengths: Any = None, resets: Any = None) -> Packed:
    """Turn the input of a planned call into packed rows.

    input            (T, B, I), (B, T, I), (T, I), a PackedSequence of rows (P, I), jagged (B, j, I);
                     of a cell (B, I) or (I,)
    hx               the states of the call, from which a compiler can learn B
    lengths, resets  as in `LSTM.forward`
    returns          its rows, step by step
    """
    form = plan.form
    if form is Form.PACKED:
        sizes, batch = input.batch_sizes, batch_of(input, hx)
        return Packed(input.data, Ragged(sizes) if recorded() else rows_of(sizes, batch), batch, input)
    if form is Form.JAGGED:
        sequences = jagged.plan(input)
        assert sequences.order is not None
        data = input.values().index_select(0, sequences.order)
        return Packed(data, sequences.rows, sequences.enter.shape[1], input, sequences)
    rows = plan.rows
    assert rows is not None
    segments = None
    if plan.segmented:
        segments = segment(input, form is Form.BATCH_FIRST, plan.directions, lengths, resets, plan.reset_state)
        if segments is not None and segments.order is not None:
            # Padding is never read, so nothing in it reaches a result or a gradient.
            data = input.flatten(0, -2).index_select(0, segments.order)
            return Packed(data, segments.rows, segments.enter.shape[1], input, segments)
    if form is Form.UNBATCHED or form is Form.STEP:
        return Packed(input, rows, rows.batch, input, segments)
    if form is Form.UNBATCHED_STEP:
        return Packed(input.unsqueeze(0), rows, 1, input)
    time_major = input.transpose(0, 1) if form is Form.BATCH_FIRST else input
    data = time_major.reshape(rows.steps * rows.batch, input.shape[2])
    return Packed(data, rows, rows.batch, input, segments)


def unpack(plan: Plan, packed: Packed, y: Tensor) -> Any:
    """Give rows of output y (P, D*R) the form that the input had.

    Unless the plan has a trace, no one else holds y, so it may be reshaped in place.
    """
    form, segments = plan.form, packed.segments
    if segments is not None and segments.order is not None:
        whole = y.new_zeros(math.prod(segments.shape), y.shape[1]).index_add_(0, segments.order, y)
        if form is Form.JAGGED:
            return jagged.like(packed.source, whole)
        return unsafe_view(whole, [*segments.shape, y.shape[1]])
    if form is Form.PACKED:
        source = packed.source
        return PackedSequence(y, source.batch_sizes, source.sorted_indices, source.unsorted_indices)
    if form is Form.UNBATCHED:
        return y
    assert plan.rows is not None
    steps, batch = plan.rows
    shape = [steps, batch, y.shape[1]]
    if plan.trace or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        # A method of Tensor, since torch.jit.trace would record the example's shape for any other operator.
        y = y.view(shape)
        return y.transpose(0, 1) if form is Form.BATCH_FIRST else y
    # In place where possible: a third of the time.
    alone = _is_eager() and (steps == 1 or batch == 1)
    y = y.unsqueeze_(0 if steps == 1 else 1) if alone else unsafe_view(y, shape)
    return y.transpose_(0, 1) if form is Form.BATCH_FIRST else y


def pack_states(
    plan: Plan, packed: Packed, hx: tuple[Tensor, ...] | None, reset_state: State | None = None
) -> list[Tensor]:
    """The initial states in the order of the rows, (L*D, B, size) for each size; zeros if hx is None."""
    if packed.segments is not None and plan.segmented:
        hx = _with_reset_state(hx, reset_state, plan.unbatched) if plan.resets else hx
    if hx is not None:
        return [_pack_state(plan, packed, state) for state in hx]
    x = packed.data
    sizes = plan.sizes
    if plan.layers and sizes[0] == sizes[-1]:
        # No engine writes into them, so one tensor serves as both.
        zeros = x.new_zeros(plan.states, packed.batch, sizes[0])
        return [zeros, zeros]
    return [x.new_zeros(plan.states, packed.batch, size) for size in sizes]


def _with_reset_state(hx: tuple[Tensor, ...] | None, reset_state: State | None, unbatched: bool) -> State | None:
    """Initial and reset states, concatenated to (L*D, 2B, F); a missing one is zeros, and None if both are missing."""
    states = hx or reset_state
    if states is None:
        return None
    zeros = [torch.zeros_like(state) for state in states]
    join = torch.stack if unbatched else torch.cat
    h, c = (join(pair, 1) for pair in zip(hx or zeros, reset_state or zeros, strict=True))
    return h, c


def _pack_state(plan: Plan, packed: Packed, state: Tensor) -> Tensor:
    """A state in the user's form as (L*D, B, F) in the order of the rows.

    state  (L*D, B, F), of unbatched input (L*D, F), of a cell (B, F) or (F,); with resets (L*D, 2B, F): see
           `_with_reset_state`
    """
    if packed.segments is not None:
        return _select(state, packed.segments.enter)
    form = plan.form
    if form is Form.STEP:
        return state.unsqueeze(0)
    if form is Form.UNBATCHED_STEP:
        return state.view(1, 1, -1)
    if form is Form.UNBATCHED:
        return state.unsqueeze(1)
    if form is Form.PACKED and (order := packed.source.sorted_indices) is not None:
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            # A check for the traced program, which has no others: of too many states it would select some.
            state = state.reshape(state.shape[0], order.shape[0], state.shape[2])
        return state.index_select(1, order)
    return state


def _is_eager() -> bool:
    """Whether a result may be reshaped in place: not in a compiler, which would guard on every size, nor under vmap."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is None


def _squeezed(state: Tensor, axis: int) -> Tensor:
    """A state without an axis of length 1."""
    return state.squeeze_(axis) if _is_eager() else state.squeeze(axis)


def unpack_state(plan: Plan, packed: Packed, state: Tensor) -> Tensor:
    """A final state (L*D, B, F), which no one else holds, in the user's form."""
    if packed.segments is not None:
        state = _select(state, packed.segments.leave)
    form = plan.form
    if form is Form.STEP:
        return _squeezed(state, 0)
    if form is Form.UNBATCHED_STEP:
        return unsafe_view(state, [state.shape[2]])  # type: ignore[no-any-return]
    if form is Form.UNBATCHED:
        return _squeezed(state, 1)
    if form is Form.PACKED and (order := packed.source.unsorted_indices) is not None:
        return state.index_select(1, order)
    return state


def _select(state: Tensor, index: Tensor) -> Tensor:
    """Select states (L*D, M, F) by index (D, N), one row for each direction: (L*D, N, F)."""
    directions = index.shape[0]
    if directions == 1:
        return state.index_select(1, index[0])
    each = [state[d::directions].index_select(1, index[d]) for d in range(directions)]
    stacked = torch.stack(each, 1)
    return unsafe_view(stacked, [stacked.shape[0] * directions, *stacked.shape[2:]])  # type: ignore[no-any-return]


def batch_of(input: PackedSequence, hx: tuple[Tensor, ...] | None) -> int:
    """B: an int; while a compiler traces, from a shape if one has it; under jit.trace a tensor, which it records."""
    if torch.compiler.is_compiling():
        if input.sorted_indices is not None:
            return input.sorted_indices.shape[0]
        if hx is not None:
            return hx[0].shape[1]
        # Under torch.export, `int` would need the value itself.
        batch = input.batch_sizes[0].item()
        expect(batch >= 0)
        return batch  # type: ignore[return-value]
    first: Any = input.batch_sizes[0]
    return first if torch.jit.is_tracing() else int(first)  # type: ignore[attr-defined,no-untyped-call]
