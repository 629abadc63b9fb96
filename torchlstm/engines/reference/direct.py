"""One direction on plain tensors with its gradient written out, in as few torch operations a step as possible.

On a GPU each operation is a launch, and launches are most of the time of such a loop.  A step of `lstm_step` takes 11,
and 17 in autograd's backward; here it takes 7 and 4, and each one more product with a projection.
`tests/engines/reference/test_direct.py` counts them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import Problem, Ragged, Weights

_aten = torch.ops.aten

# Other devices may lack the out= variants used here; there the loop runs.
DEVICES = ("cpu", "cuda")

# For fewer steps the loop over `lstm_step` is as fast or faster on the CPU, since 43 operations of a training step here
# do not depend on T (H=64, B=1, one thread of a Zen 4: this is 5 % slower at 6 steps, 5 % faster at 8).
LEAST = 7


class Steps(NamedTuple):
    """The steps of a direction.

    sizes    how many sequences are alive at each step
    reverse  whether the last step runs first
    """

    sizes: list[int]
    reverse: bool

    @property
    def order(self) -> Sequence[int]:
        """The steps in the order in which they run."""
        steps = range(len(self.sizes))
        return steps[::-1] if self.reverse else steps


def steps_of(problem: Problem, direction: int) -> Steps:
    """The steps of one direction of a problem."""
    rows = problem.rows
    sizes = rows.batch_sizes.tolist() if isinstance(rows, Ragged) else [rows.batch] * rows.steps
    return Steps(sizes, direction == 1 or problem.reverse)


def forward(
    steps: Steps, x: Tensor, h_0: Tensor, c_0: Tensor, weights: Weights, save: bool
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """Run a direction.

    x        (P, I)
    h_0, c_0 (B, R), (B, H)
    returns  y (P, R), h_n, c_n, and if `save` what `backward` needs: the activated gates (P, 4H), c (P, H), and of a
             projected layer h (P, R)
    """
    w_ih, w_hh, bias, w_hr = _weights(weights)
    hidden = c_0.shape[1]
    gates = F.linear(x, w_ih, bias)  # one product for all steps
    y = x.new_empty(x.shape[0], h_0.shape[1])
    cells = x.new_empty(x.shape[0] if save else 0, hidden)
    gate_rows, y_rows = gates.split(steps.sizes), y.split(steps.sizes)
    if save:
        cell_rows: Sequence[Tensor] = cells.split(steps.sizes)
    else:
        two = c_0.new_empty(2, *c_0.shape)  # c of this step and of the step before
        cell_rows = [two[t % 2, :n] for t, n in enumerate(steps.sizes)]
    h, c, h_n, c_n = h_0, c_0, h_0.clone(), c_0.clone()
    for t in steps.order:
        n = steps.sizes[t]
        h, c = _resized(h, n, h_0, h_n), _resized(c, n, c_0, c_n)
        gate_rows[t].addmm_(h, w_hh.t())
        i, f, g, o = _parts(gate_rows[t])
        g.tanh_()
        gate_rows[t][:, hidden:].sigmoid_()
        c = torch.mul(f, c, out=cell_rows[t]).addcmul_(i, g)
        if w_hr is None:
            h = torch.tanh(c, out=y_rows[t]).mul_(o)
        else:
            h = torch.mm(torch.tanh(c).mul_(o), w_hr.t(), out=y_rows[t])
    h_n[: h.shape[0]], c_n[: c.shape[0]] = h, c
    # The backward recomputes h as o * tanh(c).  With a projection it needs a copy, since the user may change y.
    return y, h_n, c_n, (gates, cells, *([] if w_hr is None else [y.clone()])) if save else ()


def backward(
    steps: Steps,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Weights,
    saved: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, h_0, c_0 and of each of `weights`; None for those that are not needed.

    saved       what `forward` saved
    cotangents  dy, dh_n, dc_n; None for zeros

    The factors by which a step multiplies the gradients of h and c do not depend on these gradients, so they are
    computed for all steps at once, into `product`.  Its columns belong to c, to the gates g, i and f, and to o.  Each
    step then overwrites its factors with its gradients.
    """
    gates, cells, *projected_h = saved
    rows, hidden = cells.shape
    w_ih, w_hh, _, w_hr = _weights(weights)
    i, f, g, o = _parts(gates)
    tanh = torch.tanh(cells)
    raw = o * tanh
    y = projected_h[0] if projected_h else raw
    product = gates.new_empty(rows, 5 * hidden)
    product[:, :hidden] = f
    dgates = product[:, hidden:]
    to_i, to_f, to_g, to_o = _parts(dgates)
    _aten.sigmoid_backward(g, i, grad_input=to_i)
    _aten.sigmoid_backward(_before(steps, cells, c_0), f, grad_input=to_f)
    _aten.tanh_backward(i, g, grad_input=to_g)
    _aten.sigmoid_backward(tanh, o, grad_input=to_o)
    from_h = _aten.tanh_backward(o, tanh)
    dh, dh_n, dc_n = (
        torch.zeros_like(like) if cotangent is None else cotangent.clone(memory_format=torch.contiguous_format)
        for cotangent, like in zip(cotangents, (y, h_0, c_0), strict=True)
    )
    dh_0, dc_0, dc = dh_n.clone(), dc_n.clone(), dc_n
    later = dgates[:0]  # the gradients of the gates of the step that ran after this one in the forward
    dh_rows, product_rows, from_h_rows = (tensor.split(steps.sizes) for tensor in (dh, product, from_h))
    for t in reversed(steps.order):
        n, k = steps.sizes[t], later.shape[0]
        dh_rows[t][:k].addmm_(later[:n], w_hh)
        if k < n:  # sequences that end here
            dh_rows[t][k:] += dh_n[k:n]
        elif k > n:  # sequences that began there
            torch.mm(later[n:], w_hh, out=dh_0[n:k])
        dc = _resized(dc, n, dc_n, dc_0)
        draw = dh_rows[t] if w_hr is None else dh_rows[t] @ w_hr
        dc = torch.addcmul(dc, draw, from_h_rows[t])
        step = product_rows[t].view(n, 5, hidden)
        step[:, :4].mul_(dc.unsqueeze(1))
        step[:, 4].mul_(draw)
        dc, later = step[:, 0], product_rows[t][:, hidden:]
    if needs[1]:
        torch.mm(later, w_hh, out=dh_0[: later.shape[0]])
    dc_0[: dc.shape[0]] = dc
    # Each is computed only if it is needed.
    makers: list[Callable[[], Tensor | None]] = [
        lambda: dgates @ w_ih,
        lambda: dh_0,
        lambda: dc_0,
        lambda: _usual(dgates.t() @ x),
        lambda: _usual(dgates.t() @ _before(steps, y, h_0)),
    ]
    if weights[2] is not None:
        bias = _usual(dgates.sum(0)) if needs[5] or needs[6] else None
        makers += [lambda: bias] * 2
    if w_hr is not None:
        makers.append(lambda: dh.t() @ raw)
    return [make() if needed else None for make, needed in zip(makers, needs, strict=True)]


def _weights(weights: Weights) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """w_ih, w_hh and the sum of the biases with gates in the order g, i, f, o, and w_hr unchanged."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    bias = None if b_ih is None or b_hh is None else _reordered(b_ih + b_hh)
    return _reordered(w_ih), _reordered(w_hh), bias, w_hr


def _reordered(weight: Tensor) -> Tensor:
    """Reorder rows from i, f, g, o to g, i, f, o, so that the gates with a sigmoid are adjacent and o is last."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([g, i, f, o])


def _usual(weight: Tensor) -> Tensor:
    """Reorder rows from g, i, f, o to i, f, g, o."""
    g, i, f, o = weight.chunk(4)
    return torch.cat([i, f, g, o])


def _parts(gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The columns (n, H) of i, f, g, o."""
    g, i, f, o = gates.chunk(4, dim=1)
    return i, f, g, o


def _resized(state: Tensor, n: int, joining: Tensor, left: Tensor) -> Tensor:
    """The states of the first n sequences, given those of the first k.

    joining  (B, ..) from which the states of joining sequences are taken, if n > k
    left     (B, ..) into which the states of leaving sequences are written, if n < k
    """
    k = state.shape[0]
    if n > k:
        return torch.cat([state, joining[k:n]])
    if n < k:
        left[n:k] = state[n:]
        return state[:n]
    return state


def _before(steps: Steps, states: Tensor, initial: Tensor) -> Tensor:
    """For each row the state before its step, from the states (P, F) of all rows and the initial ones (B, F)."""
    sizes, parts = steps.sizes, states.split(steps.sizes)
    if sizes[0] == sizes[-1]:
        n, count = sizes[0], states.shape[0]
        return torch.cat([states[n:], initial[:n]] if steps.reverse else [initial[:n], states[: count - n]])
    if steps.reverse:
        following = (*parts[1:], initial[:0])
        pieces = [piece for n, part in zip(sizes, following, strict=True) for piece in (part, initial[len(part) : n])]
    else:
        pieces = [initial[: sizes[0]], *(part[:n] for part, n in zip(parts, sizes[1:], strict=False))]
    return torch.cat(pieces)
