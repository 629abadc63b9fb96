"""Lengths and resets: each run of steps between two resets becomes a sequence (a segment) of a ragged batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.contract import Dense, Ragged, Rows, rows_of
from ..engines.shared.torch_private import is_batchedtensor


class Segments(NamedTuple):
    """N segments, sorted by falling length: the runs of steps between resets, up to the end of their sequence.

    A sequence without steps is one segment without steps, so its final state is its initial state.
    """

    rows: Rows  # of the N segments
    shape: tuple[int, ...]  # (T, B), (B, T) or (T,), as the input has it
    order: Tensor | None  # (P,): which row of the flattened input each packed row is; None: all rows, in their order
    # For each direction: the state from which a segment starts (b: the initial state of sequence b, B + b: its reset
    # state), and the segment whose last state is the final state of a sequence.
    enter: Tensor  # (D, N)
    leave: Tensor  # (D, B)


def segment(
    input: Tensor, batch_first: bool, directions: int, lengths: Any = None, resets: Any = None, always: bool = False
) -> Segments | None:
    """Cut an input that has passed the module's checks into segments.

    input    (T, B, I), (B, T, I) if batch_first, or (T, I) unbatched
    lengths  B integers, or None: all are T
    resets   bool, (T, B), (B, T) or (T,): the state restarts before that step; None: nowhere
    always   cut even if there is no reset, so that reset states are always part of the graph
    returns  the segments, or None if they are the sequences as they are

    This is done on the CPU, so lengths or resets on another device are waited for; nothing else is.
    """
    shape = tuple(input.shape[:-1])
    steps, batch = (shape[0], 1) if len(shape) == 1 else shape[::-1] if batch_first else shape
    # The distance in rows of the input between two steps, and between two sequences.
    strides = (1, steps) if batch_first else (batch, 1)
    if lengths is not None:
        if len(shape) == 1:
            raise RuntimeError("LSTM: lengths are for batched 3-D input, got unbatched 2-D input")
        lengths = _lengths(lengths, batch)
    if resets is not None:
        resets = _resets(resets, shape)
        resets = resets.unsqueeze(1) if len(shape) == 1 else resets.t() if batch_first else resets
    if torch.compiler.is_compiling():
        # A compiler does not know the numbers in a tensor.
        order, sizes, enter, leave = _opaque_cut(lengths, resets, steps, batch, *strides, input.device)
        return Segments(Ragged(sizes), shape, order, enter[:directions], leave[:directions])
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise RuntimeError("LSTM: torch.jit.trace would keep the lengths and resets of its example: use torch.export")
    lengths, resets = _here(lengths, resets, steps)
    whole = (lengths is None or bool((lengths == steps).all())) and (resets is None or not bool(resets[1:].any()))
    if whole and steps:
        if resets is None or not (always or bool(resets[0].any())):
            return None
        order, leave = None, _arange(batch).expand(2, batch)
        enter = leave + batch * torch.stack([resets[0], torch.zeros_like(resets[0])])
        rows: Rows = Dense(steps, batch)
    else:
        order, sizes, enter, leave = cut(lengths, resets, steps, batch, strides)
        rows = rows_of(sizes, enter.shape[1])
        order = order.to(input.device, non_blocking=True)
    # Such a copy does not wait for the device, although this memory is not pinned.
    enter, leave = (index[:directions].to(input.device, non_blocking=True) for index in (enter, leave))
    return Segments(rows, shape, order, enter, leave)


def cut(
    lengths: Tensor | None,
    resets: Tensor | None,
    steps: int,
    batch: int,
    strides: tuple[int, int],
    begins: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut a batch into segments; all tensors are on the CPU.

    lengths  (B,) or None
    resets   (T, B) or None
    strides  the distance in rows of the input between two steps, and between two sequences
    begins   (B,) the row at which each sequence begins, if they have no common distance; only without resets
    returns  order (P,), batch_sizes (steps of the longest segment,), enter (2, N), leave (2, B)
    """
    each = _arange(batch)
    if lengths is None:
        lengths = torch.full_like(each, steps)
    if resets is None or not steps:
        length, by_length = _sort(lengths)
        place = torch.empty_like(by_length).index_copy_(0, by_length, each)
        start = by_length * strides[1] if begins is None else begins.index_select(0, by_length)
        enter, leave = by_length.expand(2, batch), place.expand(2, batch)
    else:
        starts = resets.t() & (_arange(steps) < lengths.unsqueeze(1))  # (B, T)
        restarted = starts[:, 0].clone()
        starts[:, 0] = True
        sequence, begin = starts.nonzero().unbind(1)
        counts = starts.sum(1)
        last = counts.cumsum(0) - 1
        first = last - counts + 1
        # A segment ends where the next one of its sequence begins; the last one ends with the sequence.
        length, by_length = _sort(begin.roll(-1).index_copy_(0, last, lengths) - begin)
        place = torch.empty_like(by_length).index_copy_(0, by_length, _arange(len(by_length)))
        start = (begin * strides[0] + sequence * strides[1])[by_length]
        enter = (sequence + batch).repeat(2, 1)
        enter[0, first] = each + batch * restarted
        enter[1, last] = each
        enter, leave = enter[:, by_length], place[torch.stack([last, first])]
    # At each step k, how many segments have more than k steps.  Without any step it is one step of none.
    sizes = len(length) - length.bincount(minlength=2).cumsum(0)[:-1]
    step = _arange(len(sizes)).repeat_interleave(sizes)  # (P,)
    alive = _arange(len(step)) - (sizes.cumsum(0) - sizes).index_select(0, step)  # its place among those
    order = start.index_select(0, alive) + step * strides[0]
    return order, sizes, enter, leave


def _sort(length: Tensor) -> tuple[Tensor, Tensor]:
    # Sort as `pack_padded_sequence` does, since dropout draws for the rows in this order.
    return length.sort(descending=True)


def _arange(end: int) -> Tensor:
    # On the CPU whatever the default device is.
    return torch.arange(end, device="cpu")


def _lengths(given: Any, batch: int) -> Tensor:
    """The user's lengths, checked, as int64 (B,)."""
    lengths = _tensor("lengths", "integers", given)
    # An empty list becomes a float tensor.
    if lengths.numel() and (lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex()):
        raise TypeError(f"LSTM: Expected lengths to be integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise RuntimeError(
            f"LSTM: Expected one length for each of {batch} sequences, got lengths of shape {tuple(lengths.shape)}"
        )
    return lengths.to(torch.int64)


def _resets(given: Any, shape: tuple[int, ...]) -> Tensor:
    """The user's resets, checked, as a bool mask of the input's leading shape."""
    resets = _tensor("resets", "a bool mask", given)
    if resets.dtype != torch.bool:
        raise TypeError(f"LSTM: Expected resets to be a bool mask, got {resets.dtype}")
    if resets.shape != shape:
        raise RuntimeError(
            f"LSTM: Expected resets of shape {shape}, one for each step of the input, got {tuple(resets.shape)}"
        )
    return resets


def _tensor(name: str, what: str, given: Any) -> Tensor:
    """The argument as a tensor; it may be anything that torch.as_tensor takes."""
    if isinstance(given, Tensor):
        if is_batchedtensor(given):
            raise RuntimeError(f"LSTM: {name} cannot be mapped by vmap: all members must have the same")
        return given
    try:
        return torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"LSTM: Expected {name} to be {what}, got {type(given).__name__}: {error}") from error


def _here(lengths: Tensor | None, resets: Tensor | None, steps: int) -> tuple[Tensor | None, Tensor | None]:
    """Lengths and resets on the CPU; raises RuntimeError for a length out of range."""
    lengths, resets = (None if tensor is None else tensor.cpu() for tensor in (lengths, resets))
    if lengths is not None and len(lengths):
        low, high = lengths.aminmax()
        if low < 0 or high > steps:
            index = int(lengths.argmin() if low < 0 else lengths.argmax())
            raise RuntimeError(
                f"LSTM: Expected lengths from 0 to {steps}, the steps of the input, "
                f"got {int(lengths[index])} for sequence {index}"
            )
    return lengths, resets


# `cut` as an operator: to compile and export its results have sizes that are known only at run time.
_library = torch.library.Library("torchlstm", "FRAGMENT")
_library.define(
    "cut(Tensor? lengths, Tensor? resets, SymInt steps, SymInt batch, SymInt step_stride, SymInt batch_stride, "
    "Device device) -> (Tensor order, Tensor batch_sizes, Tensor enter, Tensor leave)"
)
_opaque_cut: Any = torch.ops.torchlstm.cut.default


def _cut(
    lengths: Tensor | None, resets: Tensor | None, steps: int, batch: int, *strides_and_device: Any
) -> tuple[Tensor, ...]:
    *strides, device = strides_and_device
    order, sizes, enter, leave = cut(*_here(lengths, resets, steps), steps, batch, (strides[0], strides[1]))
    return order.to(device), sizes, enter.to(device).contiguous(), leave.to(device).contiguous()


def _cut_fake(_: Any, resets: Tensor | None, __: Any, batch: int, *strides_and_device: Any) -> tuple[Tensor, ...]:
    context, device = torch.library.get_ctx(), strides_and_device[-1]
    rows, longest = context.new_dynamic_size(), context.new_dynamic_size()
    count = batch if resets is None else context.new_dynamic_size()
    shapes = (((rows,), device), ((longest,), "cpu"), ((2, count), device), ((2, batch), device))
    return tuple(torch.empty(shape, dtype=torch.int64, device=place) for shape, place in shapes)


_library.impl("cut", _cut, "CompositeExplicitAutograd")
torch.library.register_fake("torchlstm::cut", _cut_fake, lib=_library)
