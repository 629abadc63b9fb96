"""The step loop: a product by cuBLAS and a kernel for the cell at every step, no communication between programs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import graphs, products
from .launch import Repeated
from .plan import Steps, divide_up
from .work import Together, Work, fast, order_of, turned, wide


def forward(
    plan: Steps, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `loops.forward`."""
    directions, _, hidden = h_0.shape
    y = gates.new_empty(work.rows, directions * hidden)
    cells = gates.new_empty((directions, work.rows, hidden) if save else 0)
    h, c = h_0.clone(), c_0.to(wide(c_0.dtype), copy=True)
    rows = graphs.Rows([gates], [y, gates, cells] if save else [y], None)

    def body(part: Work, rows: graphs.Rows, states: Sequence[Tensor], w_hh: Tensor, order: Sequence[Together]) -> None:
        (gates,), (y, *saved) = rows.read, rows.written
        h, c = states
        run_forward(plan, part, gates, y, saved[-1] if save else cells, h, c, w_hh, order)

    done = graphs.run("forward", plan, work, rows, (h, c), w_hh, body)
    body(work, rows, (h, c), w_hh, order_of(work, directions)[done:])
    return y, h, c if c.dtype == c_0.dtype else c.to(c_0.dtype), cells


def run_forward(
    plan: Steps,
    work: Work,
    gates: Tensor,
    y: Tensor,
    cells: Tensor,
    h: Tensor,
    c: Tensor,
    w_hh: Tensor,
    order: Sequence[Together],
) -> None:
    """Some steps forward: h and c (D, B, H) are updated in place, cells is empty if nothing is saved."""
    if not order:
        return
    directions, batch, hidden = h.shape
    kernel = Repeated(
        "pointwise", "forward", plan.warps, (gates, y, cells, h, c), work.rows,
        H=hidden, D=directions, BLOCK=plan.block, SAVE=cells.dim() > 1, FAST=fast(work),
    )  # fmt: skip
    sizes, starts, rows, add = work.sizes, work.starts, work.rows, _adding(work)
    parts, states, weights = _parts(work, gates, order), _alive(h), [each.t() for each in w_hh.unbind()]
    for step, now in enumerate(order):
        for d, t in enumerate(now):
            add(parts[d][step], states(d, sizes[t]), weights[d])
        first, last = now[0], now[-1]
        count_0, count_1 = sizes[first], sizes[last]
        grid = (divide_up(max(count_0, count_1) * hidden, plan.block), directions)
        kernel(grid, starts[first], starts[last], count_0, count_1, batch, rows)


def backward(
    plan: Steps,
    work: Work,
    acts: Tensor,
    cells: Tensor,
    c_0: Tensor,
    w_hh: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dacts: Tensor | None,
    dcells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `loops.backward`."""
    directions = c_0.shape[0]
    dgates, kind = torch.empty_like(acts), wide(c_0.dtype)
    dh = torch.zeros_like(c_0) if dh_n is None else dh_n.clone()
    dc = torch.zeros_like(c_0, dtype=kind) if dc_n is None else dc_n.to(kind, copy=True)
    rows = graphs.Rows([acts, cells] if dy is None else [acts, cells, dy], [dgates], c_0)

    def body(part: Work, rows: graphs.Rows, states: Sequence[Tensor], w_hh: Tensor, order: Sequence[Together]) -> None:
        (acts, cells, *dy), (dgates,), c_0 = rows
        assert c_0 is not None
        dh, dc = states
        given = (acts, cells, c_0, dy[0] if dy else None, dh, dc, dacts, dcells, dgates)
        run_backward(plan, part, *given, w_hh, order)

    # Gradients of a trace are rare, and would be two more tensors to copy.
    done = graphs.run("backward", plan, work, rows, (dh, dc), w_hh, body) if dacts is None else 0
    body(work, rows, (dh, dc), w_hh, order_of(work, directions)[::-1][done:])
    return dgates, dh, dc if dc.dtype == c_0.dtype else dc.to(c_0.dtype)


def run_backward(
    plan: Steps,
    work: Work,
    acts: Tensor,
    cells: Tensor,
    c_0: Tensor,
    dy: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    dacts: Tensor | None,
    dcells: Tensor | None,
    dgates: Tensor,
    w_hh: Tensor,
    order: Sequence[Together],
) -> None:
    """Some steps backward: dh and dc (D, B, H) are updated in place."""
    if not order:
        return
    directions, batch, hidden = c_0.shape
    kernel = Repeated(
        "pointwise", "backward", plan.warps, (acts, cells, c_0, dy, dh, dc, dacts, dcells, dgates), work.rows,
        H=hidden, D=directions, BLOCK=plan.block, TRACE=dacts is not None, FAST=fast(work),
    )  # fmt: skip
    sizes, starts, steps, rows = work.sizes, work.starts, work.problem.rows.steps, work.rows
    write, parts, states, weights = _writing(work), _parts(work, dgates, order), _alive(dh), w_hh.unbind()
    # From a step to the one before it in the direction of the forward.
    back = [1 if turned(work, d) else -1 for d in range(directions)]

    def before(d: int, t: int) -> tuple[int, int]:
        """The first row of the step before, and how many sequences had one."""
        earlier = t + back[d]
        if 0 <= earlier < steps:
            return starts[earlier], min(sizes[t], sizes[earlier])
        return starts[t], 0

    for step, now in enumerate(order):
        first, last = now[0], now[-1]
        count_0, count_1 = sizes[first], sizes[last]
        (before_0, begun_0), (before_1, begun_1) = before(0, first), before(directions - 1, last)
        grid = (divide_up(max(count_0, count_1) * hidden, plan.block), directions)
        kernel(
            grid, starts[first], starts[last], count_0, count_1, before_0, before_1, begun_0, begun_1, batch, rows
        )  # fmt: skip
        for d, t in enumerate(now):
            write(states(d, sizes[t]), parts[d][step], weights[d])


def _adding(work: Work) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function that adds a product to a tensor, chosen once for all steps."""
    if products.strict(work.problem.dtype, work.precise):
        return lambda out, left, right: products.own(out, left, right, exact=True, add=True)
    return Tensor.addmm_


def _writing(work: Work) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """As `_adding`, for a product that is written."""
    if products.strict(work.problem.dtype, work.precise):
        return lambda out, left, right: products.own(out, left, right, exact=True)
    return lambda out, left, right: torch.mm(left, right, out=out)


def _parts(work: Work, tensor: Tensor, order: Sequence[Together]) -> list[Sequence[Tensor]]:
    """The rows of each step of an order, of every direction of a tensor (D, P, F)."""
    found: list[Sequence[Tensor]] = []
    for d, each in enumerate(tensor.unbind()):
        first, last = sorted((order[0][d], order[-1][d]))
        rows = each[work.starts[first] : work.starts[last] + work.sizes[last]].split(work.sizes[first : last + 1])
        found.append(rows if order[0][d] == first else rows[::-1])
    return found


def _alive(state: Tensor) -> Callable[[int, int], Tensor]:
    """The first sequences of a direction of a state (D, B, F), by their number; each slice is made once."""
    known: list[dict[int, Tensor]] = [{} for _ in range(len(state))]

    def alive(d: int, count: int) -> Tensor:
        found = known[d].get(count)
        if found is None:
            found = known[d][count] = state[d, :count]
        return found

    return alive
