"""The CUDA engine: refusals, the products around the time loop, projection, and the plan that each call follows."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..contract import Engine, Layer, Problem, Weights
from ..shared.autograd import layer_of
from ..shared.kernel import Accumulate
from . import loops, products, qualified, toolchain
from .device import GPU, gpu_of
from .launch import INTERPRETED
from .plan import Plan, plan, steps
from .work import Work, before_each, first_products, first_rows, neighbours, turned, work_of

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CAPABILITY = (8, 0)  # tensor cores for bfloat16 and TF32
# Multiprocessors left to NCCL, which reduces gradients while the backward runs: its kernels cannot run on one that a
# program fills.  By default it uses at most 32 channels, a block each.
_FOR_NCCL = 32


def _refuses(problem: Problem) -> str | None:
    device = problem.device
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"it runs on cuda, not on {device.type}"
    if problem.dtype not in _DTYPES:
        return f"{str(problem.dtype).removeprefix('torch.')} is not supported"
    if device.type == "cuda" and (capability := gpu_of(device.index).capability) < _CAPABILITY:
        return f"it needs a GPU of compute capability 8.0 or newer, this one has {capability[0]}.{capability[1]}"
    return problem.access.refusal


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _shared_with_nccl() -> bool:
    """Whether the backward of this process may overlap with NCCL's kernels."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
        return False
    return "nccl" in distributed.get_backend_config()


def _gpu(device: torch.device) -> GPU:
    """The GPU, without the multiprocessors that are left to NCCL."""
    gpu: GPU = gpu_of(device.index)
    if not _shared_with_nccl():
        return gpu
    return gpu._replace(multiprocessors=max(0, gpu.multiprocessors - _FOR_NCCL))


class _CUDA:
    """See `kernel.Kernel`.

    A projection is no loop of its own: with raw_t = o * tanh(c_t) and h_t = W_hr raw_t, the gates of the next step are
    x's part + (W_hh W_hr) raw_t.  So the loop runs over raw with that product as its weight, from raw = 0, the part of
    h_0 being added to the gates of each sequence's first step; y = W_hr raw is one product for all steps.

    loop   "fused", where it fits, or "steps": see `plan`
    exact  products of float32 are exact to float32; else they may round their operands to TF32
    The precision is fixed for a kernel.  It is not read from torch's settings again, so a backward has its forward's.
    """

    def __init__(self, name: str, loop: str, exact: bool) -> None:
        self.name, self.loop, self.exact = name, loop, exact

    def _plan(self, work: Work, direction: str) -> Plan:
        if self.loop == "steps":
            return steps()
        return plan(work.problem, direction, work.precise, _gpu(work.problem.device))

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """As `kernel.Kernel`."""
        x, h_0, c_0 = x.contiguous(), h_0.contiguous(), c_0.contiguous()
        count, hidden = x.shape[0], problem.hidden_size
        gates = x.new_empty(problem.directions, count, 4 * hidden)
        if not count:
            y = x.new_empty(0, problem.directions * h_0.shape[2])
            saved = (gates, gates.new_empty(problem.directions, 0, hidden))
            return y, h_0.clone(), c_0.clone(), saved if save else ()
        with _on(problem.device):
            work = work_of(problem, count, self.exact)
            for part, (w_ih, _, b_ih, b_hh, _) in zip(gates.unbind(), weights, strict=True):
                bias = None if b_ih is None or b_hh is None else b_ih + b_hh
                products.affine(part, bias, x, w_ih.t(), self.exact)
            w_hh = _stack([w_hh for _, w_hh, *_ in weights])
            path = self._plan(work, "forward")
            if problem.proj_size:
                w_hr, alive = _stack([w_hr for *_, w_hr in weights]), work.sizes[0]
                for d, part in enumerate(gates):
                    part[first_rows(work, d)] += products.product(h_0[d, :alive], w_hh[d].t(), self.exact)
                fused = _exact_product(w_hh, w_hr)
                raw, raw_n, c_n, cells = loops.forward(path, work, gates, torch.zeros_like(c_0), c_0, fused, save)
                y, h_n = _projection(work, w_hr, raw, raw_n, h_0)
            else:
                y, h_n, c_n, cells = loops.forward(path, work, gates, h_0, c_0, w_hh, save)
        return y, h_n, c_n, (gates, cells) if save else ()

    def backward(
        self,
        problem: Problem,
        saved: tuple[Tensor, ...],
        h_0: Tensor,
        c_0: Tensor,
        weights: tuple[Weights, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        dacts: Tensor | None,
        dcells: Tensor | None,
        accumulate: Accumulate,
        needs_h_0: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `kernel.Kernel`; all rows are one part."""
        acts, cells, *projected_h = saved
        directions, count, hidden, size = *acts.shape[:2], problem.hidden_size, h_0.shape[2]
        h_0, c_0 = h_0.contiguous(), c_0.contiguous()
        dy, dh_n, dc_n = (None if t is None else t.contiguous() for t in (dy, dh_n, dc_n))
        if not count:
            ends = [torch.zeros_like(s) if ds is None else ds.clone() for s, ds in ((h_0, dh_n), (c_0, dc_n))]
            return ends[0], ends[1], acts.new_zeros(directions, 4 * hidden)
        if dacts is not None or dcells is not None:
            dacts = torch.zeros_like(acts) if dacts is None else dacts.contiguous()
            dcells = torch.zeros_like(cells) if dcells is None else dcells.contiguous()
        with _on(problem.device):
            work = work_of(problem, count, self.exact)
            w_hh = _stack([w_hh for _, w_hh, *_ in weights])
            path = self._plan(work, "backward")
            if not problem.proj_size:
                args = (acts, cells, c_0, w_hh, dy, dh_n, dc_n, dacts, dcells)
                dgates, dh_0, dc_0 = loops.backward(path, work, *args, needs_h_0)
            else:
                dy = acts.new_zeros(count, directions * size) if dy is None else dy
                dh_n = torch.zeros_like(h_0) if dh_n is None else dh_n
                w_hr = _stack([w_hr for *_, w_hr in weights])
                fused, (draw, draw_n) = _exact_product(w_hh, w_hr), _before_projection(work, w_hr, dy, dh_n)
                args = (acts, cells, c_0, fused, draw, draw_n, dc_n, dacts, dcells)
                dgates, _, dc_0 = loops.backward(path, work, *args, needs_h_0=False)
                dh_0 = first_products(work, dgates, w_hh, h_0, dh_n)
            for d in range(directions):
                own, back, o = slice(d * size, (d + 1) * size), turned(work, d), acts[d, :, 3 * hidden :]
                if dy is None or dh_n is None or not problem.proj_size:
                    before = before_each(work, cells[d], o, h_0[d], backwards=back)
                    accumulate(d, slice(0, count), dgates[d], before, None, None)
                    continue
                before = neighbours(work, projected_h[0][:, own], h_0[d], backwards=back)
                product = products.product(dgates[d], w_hh[d], self.exact)
                dh = neighbours(work, product, dh_n[d], backwards=not back).add_(dy[:, own])
                accumulate(d, slice(0, count), dgates[d], before, dh, torch.tanh(cells[d]).mul_(o))
        return dh_0, dc_0, dgates.sum(1)

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        """As `kernel.Kernel`."""
        with _on(out.device):
            products.multiply(out, left, right, self.exact, add)

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """As `kernel.Kernel`."""
        return like.new_empty(shape)


def _stack(weights: list[Tensor | None]) -> Tensor:
    """A weight of all directions: (D, ...), contiguous."""
    first = weights[0]
    assert first is not None
    return first.contiguous().unsqueeze(0) if len(weights) == 1 else torch.stack(weights)  # type: ignore[arg-type]


def _projection(work: Work, w_hr: Tensor, raw: Tensor, raw_n: Tensor, h_0: Tensor) -> tuple[Tensor, Tensor]:
    """y (P, D*R) and h_n (D, B, R) from raw (P, D*H) and raw_n (D, B, H); sequences without a step keep h_0."""
    directions, size, hidden = w_hr.shape
    y, h_n, alive = raw.new_empty(len(raw), directions * size), h_0.clone(), work.sizes[0]
    for d in range(directions):
        own, turned_w = slice(d * hidden, (d + 1) * hidden), w_hr[d].t()
        products.multiply(y[:, d * size : (d + 1) * size], raw[:, own], turned_w, work.precise)
        products.multiply(h_n[d, :alive], raw_n[d, :alive], turned_w, work.precise)
    return y, h_n


def _before_projection(work: Work, w_hr: Tensor, dy: Tensor, dh_n: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients at raw = o * tanh(c) from those at h = W_hr raw: of all rows (P, D*H), of the last ones (D, B, H).

    w_hr, dy, dh_n  (D, R, H), (P, D*R), (D, B, R)
    """
    directions, size, hidden = w_hr.shape
    draw, draw_n = dy.new_empty(len(dy), directions * hidden), dy.new_zeros(directions, dh_n.shape[1], hidden)
    alive = work.sizes[0]
    for d in range(directions):
        own = slice(d * hidden, (d + 1) * hidden)
        products.multiply(draw[:, own], dy[:, d * size : (d + 1) * size], w_hr[d], work.precise)
        products.multiply(draw_n[d, :alive], dh_n[d, :alive], w_hr[d], work.precise)
    return draw, draw_n


def _exact_product(w_hh: Tensor, w_hr: Tensor) -> Tensor:
    """W_hh W_hr (D, 4H, H) in exact float32: the loop rounds it to TF32, and a product in TF32 would round it twice."""
    result = w_hh.new_empty(*w_hh.shape[:2], w_hr.shape[2])
    for out, left, right in zip(result, w_hh, w_hr, strict=True):
        products.multiply(out, left, right, exact=True)
    return result


def _unavailable() -> str | None:
    if not INTERPRETED and torch.version.hip is not None:
        return f"it needs CUDA, torch {torch.__version__} is built for ROCm"
    if not INTERPRETED and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    reason: str | None = toolchain.missing()
    return reason


# By the loop that a problem asks for, and whether its products have to be exact.  Each is a kernel of its own to the
# operators, so that a backward runs as its forward did even if torch's settings have changed since.
_LAYERS: dict[tuple[str, bool], Layer] = {
    (loop, exact): layer_of(_CUDA(f"cuda{'_steps' * (loop == 'steps')}{'_exact' * exact}", loop, exact))
    for loop in ("fused", "steps")
    for exact in (False, True)
}


def _layer(problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]) -> tuple[Tensor, ...]:
    return _LAYERS[problem.loop or "fused", products.exact(problem)](problem, x, h_0, c_0, weights)


def may_round(problem: Problem) -> bool:
    """Whether a problem's products may round their operands to TF32."""
    return problem.dtype == torch.float32 and not products.exact(problem)


def _automatic(problem: Problem) -> Problem | str:
    return qualified.automatic(problem, may_round(problem))


ENGINE = Engine("cuda", _layer, _refuses, _unavailable, automatic=_automatic)
