"""The launches of the fused loops: one kernel runs all steps of a layer without projection, forward or backward."""

from typing import Any

import torch
from torch import Tensor

from . import launch as launching
from .launch import INTERPRETED
from .plan import Rows, Slices, padded, power_of_two
from .work import Work, fast, first_products, wide

# How often a program reads in vain before the call fails.  A read takes at least half a microsecond: seconds in all, of
# which one that waits for its turn on a busy GPU has not used any, since all programs start together.
LIMIT = 1 << 24


def forward(
    plan: Rows | Slices, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `loops.forward`."""
    directions, batch, hidden = h_0.shape
    y = gates.new_empty(work.rows, directions * hidden)
    cells = gates.new_empty((directions, work.rows, hidden) if save else 0)
    h_0, c_0, w_hh = _aligned(h_0, c_0, w_hh)
    if isinstance(plan, Rows):
        h_n, c_n = torch.empty_like(h_0), torch.empty_like(c_0)
        launching.launch_again(
            "fused_rows", "forward", (-(-batch // plan.tile), directions), plan.warps,
            (gates, w_hh, y, cells, h_0, c_0, h_n, c_n, *_index(work)), (work.problem.rows.steps, batch, work.rows),
            H=hidden, D=directions, HP=plan.units, BB=plan.tile, SAVE=save, **_compiled(work),
        )  # fmt: skip
        return y, h_n, c_n, cells
    pad = padded(hidden)
    c_n = _states(plan, c_0, c_0)
    # Sequences without a step keep what they began with.
    h_n = torch.empty_like(h_0) if work.sizes[0] == batch else h_0.clone()
    exchange = y.new_empty(work.rows, directions * pad) if _apart(work, y) else y
    words = _empty(exchange)
    if pad > hidden:
        h_0 = torch.nn.functional.pad(h_0, (0, pad - hidden))
    launching.launch_again(
        "fused_slices", "forward", (directions * plan.tiles * plan.slices,), plan.warps,
        (gates, w_hh, words, y, cells, h_0.view(torch.int32), c_0, h_n, c_n, *_index(work)),
        (work.problem.rows.steps, batch, work.rows, plan.tiles, LIMIT, 0),
        H=hidden, PAD=pad, D=directions, SAVE=save, PEEK=plan.peek, SLICES_UP=power_of_two(plan.slices), together=True,
        **_cut(plan), **_compiled(work),
    )  # fmt: skip
    return y, h_n, c_n.to(c_0.dtype), cells


def backward(
    plan: Rows | Slices,
    work: Work,
    acts: Tensor,
    cells: Tensor,
    c_0: Tensor,
    w_hh: Tensor,
    dy: Tensor,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dacts: Tensor | None,
    dcells: Tensor | None,
    needs_h_0: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `loops.backward`."""
    directions, batch, hidden = c_0.shape
    dgates = torch.empty_like(acts)
    trace = dacts is not None
    acts, cells, c_0, w_hh, dy = _aligned(acts, cells, c_0, w_hh, dy)
    dh_n, dc_n, dacts, dcells = _aligned(dh_n, dc_n, dacts, dcells)
    if isinstance(plan, Rows):
        dh_0, dc_0 = torch.empty_like(c_0), torch.empty_like(c_0)
        launching.launch_again(
            "fused_rows", "backward", (-(-batch // plan.tile), directions), plan.warps,
            (acts, w_hh, cells, c_0, dy, dh_n, dc_n, dacts, dcells, dgates, dh_0, dc_0, *_index(work)),
            (work.problem.rows.steps, batch, work.rows),
            H=hidden, D=directions, HP=plan.units, BB=plan.tile, TRACE=trace, **_compiled(work),
        )  # fmt: skip
        return dgates, dh_0, dc_0
    pad = padded(hidden)
    dc_0 = _states(plan, c_0, dc_n)
    exchange = dgates.new_empty(directions, work.rows, 4 * pad) if _apart(work, dgates) else dgates
    words = _empty(exchange)
    launching.launch_again(
        "fused_slices", "backward", (directions * plan.tiles * plan.slices,), plan.warps,
        (acts, w_hh, words, cells, c_0, dy, dh_n, dc_n, dc_0, dacts, dcells, dgates, *_index(work)),
        (work.problem.rows.steps, batch, work.rows, plan.tiles, LIMIT, 0),
        H=hidden, PAD=pad, D=directions, TRACE=trace, together=True, **_cut(plan), **_compiled(work),
    )  # fmt: skip
    dh_0 = first_products(work, dgates, w_hh, c_0, dh_n) if needs_h_0 else dgates
    return dgates, dh_0, dc_0.to(c_0.dtype)


def _states(plan: Slices, like: Tensor, first: Tensor | None = None) -> Tensor:
    """Where a kernel leaves the last c, or the first's gradient (D, B, H).

    A program with several products a step keeps it there from step to step: it is float32 then, and begins as `first`,
    None for zero.
    """
    if plan.tile == plan.rows:
        return torch.empty_like(like)
    kind = wide(like.dtype)
    return torch.zeros_like(like, dtype=kind) if first is None else first.to(kind, copy=True)


def _index(work: Work) -> tuple[Tensor | None, Tensor | None]:
    return work.device_starts, work.lengths


def _compiled(work: Work) -> dict[str, Any]:
    """What the fused kernels are compiled for."""
    asm = not INTERPRETED
    ragged, reverse = work.places is not None, int(work.problem.reverse)
    return {"RAGGED": ragged, "REVERSE": reverse, "FAST": fast(work), "PRECISION": precision(work), "ASM": asm}


def _cut(plan: Slices) -> dict[str, int]:
    return {
        "HS": plan.units,
        "SLICES": plan.slices,
        "CHUNKS": plan.chunks,
        "KS": plan.parts,
        "KC": plan.part,
        "BB": plan.rows,
        "TILE": plan.tile,
    }


def precision(work: Work) -> str:
    """How operands of products are rounded; in the interpreter not at all, as nn.LSTM's are on a CPU."""
    # Three products of TF32 are as exact as one of float32, and use the tensor cores.
    return "ieee" if INTERPRETED else "tf32x3" if work.precise else "tf32"


def _aligned(*tensors: Tensor | None) -> list[Any]:
    """The tensors, or copies of those that do not begin at multiples of 16 bytes.

    Triton compiles a kernel anew, and a slower one, for a tensor that begins anywhere else.
    """
    return [t.clone() if t is not None and t.data_ptr() % 16 else t for t in tensors]


def _apart(work: Work, results: Tensor) -> bool:
    """Whether what is exchanged is other than the results: in rows of another length, or rounded to TF32."""
    hidden = work.problem.hidden_size
    return padded(hidden) > hidden or (results.dtype == torch.float32 and precision(work) == "tf32")


def _empty(exchange: Tensor) -> Tensor:
    """The memory of an exchange as words, all of them what no result is."""
    return exchange.view(torch.int32).fill_(-1)
