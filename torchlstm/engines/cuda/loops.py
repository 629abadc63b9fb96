"""The time loop of one layer without projection on a GPU, forward and backward: the fused loop or the step loop."""

import warnings

from torch import Tensor

from . import fused, plan, steps
from .launch import NoRoom
from .plan import Plan, Steps
from .work import Work

# The beginning of the warning that a fused loop did not fit on the GPU, and whether it has been given.
REFUSED = "torchlstm: a GPU refused the kernel that computes all steps of an LSTM at once"
_said: list[str] = []


def forward(
    path: Plan, work: Work, gates: Tensor, h_0: Tensor, c_0: Tensor, w_hh: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The time loop forward.

    gates    (D, P, 4H) the part from x; activated in place if `save`, else not needed afterwards
    w_hh     (D, 4H, H)
    returns  y (P, D*H), h_n and c_n (D, B, H), cells (D, P, H), which is empty unless `save`
    """
    if not isinstance(path, Steps):
        try:
            return fused.forward(path, work, gates, h_0, c_0, w_hh, save)
        except NoRoom as error:
            # A refused kernel has not run: the gates are as they were.
            path = _without_room(error)
    return steps.forward(path, work, gates, h_0, c_0, w_hh, save)


def backward(
    path: Plan,
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
    needs_h_0: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The time loop backward; shapes as in `forward`, dacts (D, P, 4H) and dcells (D, P, H) both given or both None.

    dy, dh_n, dc_n  None for zero
    returns         dgates (D, P, 4H), dh_0, which may be anything unless `needs_h_0`, and dc_0 (D, B, H)
    """
    if not isinstance(path, Steps):
        whole = acts.new_zeros(work.rows, c_0.shape[0] * c_0.shape[2]) if dy is None else dy
        try:
            return fused.backward(path, work, acts, cells, c_0, w_hh, whole, dh_n, dc_n, dacts, dcells, needs_h_0)
        except NoRoom as error:
            path = _without_room(error)
    return steps.backward(path, work, acts, cells, c_0, w_hh, dy, dh_n, dc_n, dacts, dcells)


def _without_room(error: NoRoom) -> Steps:
    """The plan of the step loop, which needs no cooperative launch; warns once a process."""
    if not _said:
        _said.append(str(error))
        warnings.warn(
            f"{REFUSED} ({error}); such layers run step by step. Less room than the whole GPU is granted by MPS, by "
            "green contexts and to a MIG slice",
            RuntimeWarning,
            stacklevel=3,
        )
    return plan.steps()
