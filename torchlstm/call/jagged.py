"""A jagged nested tensor to packed rows and back: its sequences lie one behind the other, and nothing is padded."""

from typing import Any

import torch
from torch import Tensor

from ..engines.contract import Dense, Ragged, Rows
from ..engines.shared.torch_private import known_lengths, ragged_axis
from .segments import Segments, cut


def is_jagged(input: object) -> bool:
    """Whether this is a nested tensor of torch.jagged layout."""
    # It has a class of its own: a plain tensor is told from it in 30 ns, by its layout in 200.
    return type(input) is not Tensor and isinstance(input, Tensor) and input.layout == torch.jagged


def check_jagged(owner: str, input: Any) -> None:
    """Raise ValueError unless this jagged tensor is (B, j, I), sequences by steps by features."""
    if input.dim() != 3 or ragged_axis(input) != 1:
        raise ValueError(
            f"{owner}: Expected a jagged input of shape (B, j, I), whose second axis is the ragged one, "
            f"got {tuple(input.shape)}"
        )


def plan(input: Any) -> Segments:
    """Plan the computation of a jagged tensor (B, j, I) whose values are (V, I): its sequences, by falling length.

    Rows of the values that belong to no sequence, which `torch.nested.narrow` leaves, are no packed rows.
    The plan is made on the CPU: offsets that live elsewhere are waited for.
    """
    offsets, lengths, rows, device = input.offsets(), input.lengths(), input.values().shape[0], input.device
    if torch.compiler.is_compiling():
        if lengths is not None:
            # torch's AOTAutograd fails on such an input, whatever is done with it.
            raise RuntimeError("LSTM: torch.compile takes no jagged input with holes, as of narrow: input.contiguous()")
        # What is in a tensor is not known now.
        order, sizes, enter, leave = _opaque_cut(offsets, rows, device)
        return Segments(Ragged(sizes), (rows,), order, enter, leave)
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise RuntimeError("LSTM: torch.jit.trace would keep the offsets of its example: use torch.compile")
    order, sizes, enter, leave = _cut(offsets, lengths, rows)
    alike = int(sizes[-1]) == enter.shape[1]
    kind: Rows = Dense(len(sizes), enter.shape[1]) if alike else Ragged(sizes)
    # Such a copy waits for nothing on the device, though this memory is not pinned.
    order, enter, leave = (index.to(device, non_blocking=True) for index in (order, enter, leave))
    return Segments(kind, (rows,), order, enter, leave)


def like(input: Any, values: Tensor) -> Tensor:
    """Values (V, F) as a jagged tensor (B, j, F) with the very offsets of another: both have the same ragged size j."""
    # Kept as far as they are known: `to_padded_tensor` under torch.compile has nothing else to go by.
    shortest, longest = known_lengths(input)
    return torch.nested.nested_tensor_from_jagged(
        values, input.offsets(), input.lengths(), min_seqlen=shortest, max_seqlen=longest
    )


def _cut(offsets: Tensor, lengths: Tensor | None, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut values of so many rows into sequences, on the CPU.

    offsets  (B + 1,): where each sequence begins, and where the last one ends
    lengths  (B,), or None: each ends where the next begins
    returns  order (P,), batch_sizes (steps of the longest sequence,), enter (1, B), leave (1, B): see `Segments`, one
             direction's for all
    """
    offsets = offsets.cpu().to(torch.int64)
    counts = offsets.diff() if lengths is None else lengths.cpu().to(torch.int64)
    if len(counts):
        # Sequences that overlap would have one output where each needs its own.
        wrong = (counts < 0) | (offsets[:-1] + counts > offsets[1:])
        if bool(wrong.any()) or int(offsets[0]) < 0 or int(offsets[-1]) > rows:
            also = "" if lengths is None else f" and lengths {counts.tolist()}"
            raise RuntimeError(
                f"LSTM: Expected a jagged input whose sequences lie one behind the other within its {rows} rows, "
                f"got offsets {offsets.tolist()}{also}"
            )
    order, sizes, enter, leave = cut(counts, None, rows, len(counts), (1, 0), offsets[:-1])
    return order, sizes, enter[:1], leave[:1]


# `_cut` as an operator: a compiler sees results of sizes that are known when it runs.
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
