"""The CUDA engine: refusals, the products around the time loop, projection, and the plan that each call follows."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..contract import Engine, Layer, Problem, Weights
from ..shared.autograd import layer_of
from ..shared.kernel import Accumulate
from . import loops, qualified
from .device import gpu_of
from .launch import INTERPRETED
from .plan import Plan, plan, steps
from .work import Work, first_products, first_rows, neighbours, turned, work_of

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CAPABILITY = (8, 0)  # tensor cores for bfloat16 and TF32


def _refuses(problem: Problem) -> str | None:
    device = problem.device
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"it runs on cuda, not on {device.type}"
    if problem.dtype not in _DTYPES:
        return f"{str(problem.dtype).removeprefix('torch.')} is not supported"
    if device.type == "cuda" and (capability := gpu_of(device.index).capability) < _CAPABILITY:
        return f"it needs a GPU of compute capability 8.0 or newer, this one has {capability[0]}.{capability[1]}"
    return problem.access.refusal


def tf32_allowed() -> bool:
    """Whether torch lets an LSTM of float32 round the operands of its products to TF32."""
    rnn: Any = torch.backends.cudnn.rnn
    return bool(rnn.fp32_precision == "tf32")


@contextmanager
def _matmul_tf32(allowed: bool) -> Iterator[None]:
    """Let torch's products do what is allowed to an LSTM's, which has a setting of its own.

    Settings are the process's: another thread's products meanwhile follow this one.
    """
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if (before == "tf32") == allowed:
        yield
        return
    # There is an older setting that torch wants to agree with the new one, unless only the new one has been used.
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "highest"
    torch._C._set_cublas_allow_tf32(allowed)
    try:
        yield
    finally:
        torch._C._set_cublas_allow_tf32(older != "highest")
        if older == "medium":
            torch.set_float32_matmul_precision(older)
        matmul.fp32_precision = before


def _products(dtype: torch.dtype) -> AbstractContextManager[None]:
    return _matmul_tf32(tf32_allowed()) if dtype == torch.float32 else nullcontext()


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _CUDA:
    """See `kernel.Kernel`.

    A projection is no loop of its own: with raw_t = o * tanh(c_t) and h_t = W_hr raw_t, the gates of the next step are
    x's part + (W_hh W_hr) raw_t.  So the loop runs over raw with that product as its weight, from raw = 0, the part of
    h_0 being added to the gates of each sequence's first step; y = W_hr raw is one product for all steps.

    loop  "fused", where it fits, or "steps": see `plan`
    """

    def __init__(self, name: str, loop: str) -> None:
        self.name, self.loop = name, loop

    def _plan(self, work: Work, direction: str) -> Plan:
        if self.loop == "steps":
            return steps()
        return plan(work.problem, direction, work.precise, gpu_of(work.problem.device.index))

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
        with _on(problem.device), _products(problem.dtype):
            work = work_of(problem, count, not tf32_allowed())
            for part, (w_ih, _, b_ih, b_hh, _) in zip(gates, weights, strict=True):
                if b_ih is None or b_hh is None:
                    torch.mm(x, w_ih.t(), out=part)
                else:
                    torch.addmm(b_ih + b_hh, x, w_ih.t(), out=part)
            w_hh = _stack([w_hh for _, w_hh, *_ in weights])
            path = self._plan(work, "forward")
            if problem.proj_size:
                w_hr, alive = _stack([w_hr for *_, w_hr in weights]), work.sizes[0]
                for d, part in enumerate(gates):
                    part[first_rows(work, d)] += h_0[d, :alive] @ w_hh[d].t()
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
        dh_n = torch.zeros_like(h_0) if dh_n is None else dh_n.contiguous()
        dc_n = torch.zeros_like(c_0) if dc_n is None else dc_n.contiguous()
        if not count:
            return dh_n.clone(), dc_n.clone(), acts.new_zeros(directions, 4 * hidden)
        dy = acts.new_zeros(count, directions * size) if dy is None else dy.contiguous()
        if dacts is not None or dcells is not None:
            dacts = torch.zeros_like(acts) if dacts is None else dacts.contiguous()
            dcells = torch.zeros_like(cells) if dcells is None else dcells.contiguous()
        with _on(problem.device), _products(problem.dtype):
            work = work_of(problem, count, not tf32_allowed())
            w_hh = _stack([w_hh for _, w_hh, *_ in weights])
            path = self._plan(work, "backward")
            if problem.proj_size:
                w_hr = _stack([w_hr for *_, w_hr in weights])
                fused, (draw, draw_n) = _exact_product(w_hh, w_hr), _before_projection(work, w_hr, dy, dh_n)
                args = (acts, cells, c_0, fused, draw, draw_n, dc_n, dacts, dcells)
                dgates, _, dc_0 = loops.backward(path, work, *args)
                dh_0 = first_products(work, dgates, w_hh, dh_n)
            else:
                args = (acts, cells, c_0, w_hh, dy, dh_n, dc_n, dacts, dcells)
                dgates, dh_0, dc_0 = loops.backward(path, work, *args)
            for d in range(directions):
                own, back = slice(d * size, (d + 1) * size), turned(work, d)
                h = raw = torch.tanh(cells[d]).mul_(acts[d, :, 3 * hidden :])
                dh = None
                if problem.proj_size:
                    h = projected_h[0][:, own]
                    dh = neighbours(work, dgates[d] @ w_hh[d], dh_n[d], backwards=not back).add_(dy[:, own])
                before = neighbours(work, h, h_0[d], backwards=back)
                accumulate(d, slice(0, count), dgates[d], before, dh, raw if problem.proj_size else None)
        return dh_0, dc_0, dgates.sum(1)

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        """As `kernel.Kernel`, by torch's own product."""
        with _products(out.dtype):
            if add:
                out.addmm_(left, right)
            else:
                torch.mm(left, right, out=out)

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
        torch.mm(raw[:, d * hidden : (d + 1) * hidden], w_hr[d].t(), out=y[:, d * size : (d + 1) * size])
        torch.mm(raw_n[d, :alive], w_hr[d].t(), out=h_n[d, :alive])
    return y, h_n


def _before_projection(work: Work, w_hr: Tensor, dy: Tensor, dh_n: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients at raw = o * tanh(c) from those at h = W_hr raw: of all rows (P, D*H), of the last ones (D, B, H).

    w_hr, dy, dh_n  (D, R, H), (P, D*R), (D, B, R)
    """
    directions, size, hidden = w_hr.shape
    draw, draw_n = dy.new_empty(len(dy), directions * hidden), dy.new_zeros(directions, dh_n.shape[1], hidden)
    alive = work.sizes[0]
    for d in range(directions):
        torch.mm(dy[:, d * size : (d + 1) * size], w_hr[d], out=draw[:, d * hidden : (d + 1) * hidden])
        torch.mm(dh_n[d, :alive], w_hr[d], out=draw_n[d, :alive])
    return draw, draw_n


def _exact_product(w_hh: Tensor, w_hr: Tensor) -> Tensor:
    """W_hh W_hr (D, 4H, H), rounded once: TF32 would round it a second time before the loop does."""
    with _matmul_tf32(False) if w_hh.dtype == torch.float32 else nullcontext():
        return torch.bmm(w_hh, w_hr)


def _unavailable() -> str | None:
    if not torch.cuda.is_available() and not INTERPRETED:
        return f"torch {torch.__version__} sees no CUDA device"
    return _missing


_missing = None if find_spec("triton") else "it needs Triton, which is not installed: pip install triton"

# By the loop that a problem asks for.  To operators they are two kernels, so that a backward takes its forward's loop.
_LAYERS: dict[str | None, Layer] = {
    "fused": layer_of(_CUDA("cuda", "fused")),
    "steps": layer_of(_CUDA("cuda_steps", "steps")),
}
_LAYERS[None] = _LAYERS["fused"]


def _layer(problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]) -> tuple[Tensor, ...]:
    return _LAYERS[problem.loop](problem, x, h_0, c_0, weights)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _tf32_allowed() -> bool:
    return tf32_allowed()


def may_round(problem: Problem) -> bool:
    """Whether a problem's products may round their operands to TF32."""
    return problem.dtype == torch.float32 and _tf32_allowed()


def _automatic(problem: Problem) -> Problem | str:
    return qualified.automatic(problem, may_round(problem))


ENGINE = Engine("cuda", _layer, _refuses, _unavailable, automatic=_automatic)
