"""The time loop of one layer without projection on a GPU, forward and backward, by the plan's kind."""

from torch import Tensor

from . import fused, steps
from .plan import Plan, Steps
from .work import Work


def forward(
    plan: Plan, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The time loop forward.

    gates    (D, P, 4H) the part from x; activated in place if `save`
    w_hh     (D, 4H, H)
    returns  y (P, D*H), h_n and c_n (D, B, H), cells (D, P, H), which is empty unless `save`
    """
    if isinstance(plan, Steps):
        return steps.forward(plan, work, gates, h_0, c_0, w_hh, save)
    return fused.forward(plan, work, gates, h_0, c_0, w_hh, save)


def backward(
    plan: Plan,
    work: Work,
    acts: Tensor,
    cells: Tensor,
    c_0: Tensor,
    w_hh: Tensor,
    dy: Tensor,
    dh_n: Tensor,
    dc_n: Tensor,
    dacts: Tensor | None,
    dcells: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The time loop backward; shapes as in `forward`, dacts (D, P, 4H) and dcells (D, P, H) both given or both None.

    returns  dgates (D, P, 4H), dh_0 and dc_0 (D, B, H)
    """
    if isinstance(plan, Steps):
        return steps.backward(plan, work, acts, cells, c_0, w_hh, dy, dh_n, dc_n, dacts, dcells)
    return fused.backward(plan, work, acts, cells, c_0, w_hh, dy, dh_n, dc_n, dacts, dcells)
