"""Jagged nested tensors to packed rows and back: their sequences lie one after another, without padding."""

from typing import Any

import torch
from torch import Tensor

from ..engines.contract import Ragged, rows_of
from ..engines.shared.torch_private import known_lengths, ragged_axis
from .segments import Segments, cut


def is_jagged(input: object) -> bool:
    """Whether this is a nested tensor of torch.jagged layout."""
    # A nested tensor has its own class.  The test of the type takes 30 ns, that of the layout 200.
    return type(input) is not Tensor and isinstance(input, Tensor) and input.layout == torch.jagged


def check_jagged(owner: str, input: Any) -> None:
    """Raise ValueError unless this jagged tensor is (B, j, I): sequences, steps, features."""
    if input.dim() != 3 or ragged_axis(input) != 1:
        raise ValueError(
            f"{owner}: Expected a jagged input of shape (B, j, I), whose second axis is the ragged one, "
            f"got {tuple(input.shape)}"
        )


def plan(input: Any) -> Segments:
    """Sort the sequences of a jagged tensor (B, j, I), whose values are (V, I), by falling length.

    Rows of the values that belong to no sequence, which `torch.nested.narrow` leaves, are left out.
    This is done on the CPU, so offsets on another device are waited for.
    """
    offsets, lengths, rows, device = input.offsets(), input.lengths(), input.values().shape[0], input.device
    if torch.compiler.is_compiling():
        if lengths is not None:
            # torch's AOTAutograd fails on such an input, whatever is computed from it.
            raise RuntimeError("LSTM: torch.compile takes no jagged input with holes, as of narrow: input.contiguous()")
        # A compiler does not know the numbers in a tensor.
        order, sizes, enter, leave = _opaque_cut(offsets, rows, device)
        return Segments(Ragged(sizes), (rows,), order, enter, leave)
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise RuntimeError("LSTM: torch.jit.trace would keep the offsets of its example: use torch.compile")
    order, sizes, enter, leave = _cut(offsets, lengths, rows)
    kind = rows_of(sizes, enter.shape[1])
    # Such a copy does not wait for the device, although this memory is not pinned.
    order, enter, leave = (index.to(device, non_blocking=True) for index in (order, enter, leave))
    return Segments(kind, (rows,), order, enter, leave)


def like(input: Any, values: Tensor) -> Tensor:
    """Values (V, F) as a jagged tensor (B, j, F) that shares another's offsets, and with them its ragged size j."""
    # Kept if known, since `to_padded_tensor` under torch.compile needs them.
    shortest, longest = known_lengths(input)
    return torch.nested.nested_tensor_from_jagged(
        values, input.offsets(), input.lengths(), min_seqlen=shortest, max_seqlen=longest
    )


def _cut(offsets: Tensor, lengths: Tensor | None, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut a number of rows into sequences, on the CPU.

    offsets  (B + 1,) where each sequence begins, and where the last one ends
    lengths  (B,), or None: each ends where the next begins
    returns  order (P,), batch_sizes (steps of the longest sequence,), enter (1, B), leave (1, B): see `Segments`, one
             direction's for all
    """
    offsets = offsets.cpu().to(torch.int64)
    counts = offsets.diff() if lengths is None else lengths.cpu().to(torch.int64)
    if len(counts):
        # Overlapping sequences would need two outputs for one row.
        wrong = (counts < 0) | (offsets[:-1] + counts > offsets[1:])
        if bool(wrong.any()) or int(offsets[0]) < 0 or int(offsets[-1]) > rows:
            also = "" if lengths is None else f" and lengths {counts.tolist()}"
            raise RuntimeError(
                f"LSTM: Expected a jagged input whose sequences lie one behind the other within its {rows} rows, "
                f"got offsets {offsets.tolist()}{also}"
            )
    order, sizes, enter, leave = cut(counts, None, rows, len(counts), (1, 0), offsets[:-1])
    return order, sizes, enter[:1], leave[:1]


# `_cut` as an operator: to a compiler its results have sizes that are known only at run time.
_library = torch.library.Library("torchlstm", "FRAGMENT")
_library.define(
    "cut_jagged(Tensor offsets, SymInt rows, Device device) -> "
    "(Tensor order, Tensor batch_sizes, Tensor enter, Tensor leave)"
)
_opaque_cut: Any = torch.ops.torchlstm.cut_jagged.default


def _cut_there(offsets: Tensor, rows: int, device: torch.device) -> tuple[Tensor, ...]:
    order, sizes, enter, leave = _cut(offsets, None, rows)
    return order.to(device), sizes, enter.to(device).contiguous(), leave.to(device).contiguous()


def _cut_fake(offsets: Tensor, _: int, device: torch.device) -> tuple[Tensor, ...]:
    context, batch = torch.library.get_ctx(), offsets.shape[0] - 1
    rows, longest = context.new_dynamic_size(), context.new_dynamic_size()
    shapes = (((rows,), device), ((longest,), "cpu"), ((1, batch), device), ((1, batch), device))
    return tuple(torch.empty(shape, dtype=torch.int64, device=place) for shape, place in shapes)


_library.impl("cut_jagged", _cut_there, "CompositeExplicitAutograd")
torch.library.register_fake("torchlstm::cut_jagged", _cut_fake, lib=_library)
