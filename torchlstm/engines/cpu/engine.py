"""The CPU engine: what it refuses, its buffers, and the calls into the C kernel."""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contract import Engine, Problem, Weights
from ..shared import threads
from ..shared.access import as_plain
from ..shared.autograd import layer_of
from ..shared.kernel import Accumulate
from .calls import Extension, Sizes, load

_kernel: Extension
_kernel, _missing = load()

# The kernel's numbers of instruction sets.  If the machine lacks the wanted set, the kernel uses the best that it has.
ISAS = {"portable": 0, "avx2": 1, "avx512": 2, "best": 3}
_BFLOAT16 = 4  # the best for products of bfloat16; without AVX512-BF16 the best for float32
_isa = os.environ.get("TORCHLSTM_ISA") or "best"

_WIDE = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)

# Tensors from this size in bytes on ask for large pages: a new one of 42 MB costs 14 ms in page faults of 4 KiB.
_HUGE = 4 << 20

# Bytes of dgates in a part of the backward, which the weight products then consume.  Measured at 1, 2, 4, 8, 16
# and 64 MB on eight workloads of `python -m benchmarks` (AMD Zen 4, two threads): 8 is within 5 % of the best on all of
# them, 1 is 38 % behind on the largest, 64 saves nothing and takes memory.
_PART = 8 << 20

# Padding of a row of dgates in elements: rows that are a power of two apart would share few cache sets.
_PAD = 16


def instruction_set() -> str:
    """The instruction set that the kernel uses."""
    return list(ISAS)[int(_kernel.isa(ISAS[_isa]))]


class Threads(NamedTuple):
    """The threads of the calling thread's latest layer or product."""

    given: int  # allowed by torch's setting and the cgroup's quota
    worth: int  # those of them that the work is worth
    wanted: int  # those of them for which the process has processors
    used: int
    processors: int  # that the process may use now

    @property
    def reason(self) -> str:
        """Why it used fewer than it was given; empty if it used all."""
        if self.used < self.wanted:
            return "OpenMP gave no more, or calls before it had waited for a thread that did not run"
        if self.wanted < self.worth:
            return "the process may use no more processors" if _kernel.openmp else "torch has no OpenMP runtime"
        return "the work is worth no more" if self.worth < self.given else ""


def latest_threads() -> Threads:
    """The threads of the calling thread's latest layer or product, and why so many; zeros before the first."""
    return Threads(*_kernel.threads())


def _refuses(problem: Problem) -> str | None:
    if problem.device.type != "cpu":
        return f"it runs on cpu, not on {problem.device.type}"
    if problem.dtype not in _WIDE + _HALF:
        return f"{str(problem.dtype).removeprefix('torch.')} is not supported"
    return problem.access.refusal


def _empty(like: Tensor, *shape: int) -> Tensor:
    """As `kernel.Kernel.empty`, with large pages for a large tensor."""
    tensor = like.new_empty(shape)
    if tensor.nbytes >= _HUGE:
        _kernel.huge(tensor)
    return tensor


class _CPU:
    """See `kernel.Kernel`; float32 and float64.

    bfloat16  whether to round the operands of products to bfloat16, on a processor with instructions for that
    """

    def __init__(self, bfloat16: bool = False) -> None:
        self.bfloat16 = bfloat16
        self.name = "cpu_bfloat16" if bfloat16 else "cpu"

    @property
    def _isa(self) -> int:
        return _BFLOAT16 if self.bfloat16 and _isa in ("avx512", "best") else ISAS[_isa]

    def forward(
        self, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...], save: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """As `kernel.Kernel`."""
        directions, batch, hidden, size = problem.directions, problem.batch, problem.hidden_size, h_0.shape[2]
        x, h_0, c_0 = x.contiguous(), h_0.contiguous(), c_0.contiguous()
        rows = x.shape[0]
        y = _empty(x, rows, directions * size)
        h_n, c_n = x.new_empty(directions, batch, size), x.new_empty(directions, batch, hidden)
        saved = (_empty(x, directions, rows, 4 * hidden), _empty(x, directions, rows, hidden)) if save else ()
        if not rows:
            return y, h_n.copy_(h_0), c_n.copy_(c_0), saved
        gates, cells = saved or (None, None)
        w_ih, w_hh, b_ih, b_hh, w_hr = zip(*[_contiguous(direction) for direction in weights], strict=True)
        sizes = self._sizes(problem)
        need = _kernel.forward_scratch(sizes)
        scratch = _empty(x, need) if need else None
        _kernel.forward(
            sizes=sizes,
            y=y,
            h_n=h_n,
            c_n=c_n,
            gates=gates,
            cells=cells,
            x=x,
            h_0=h_0,
            c_0=c_0,
            w_ih=w_ih,
            w_hh=w_hh,
            b_ih=b_ih,
            b_hh=b_hh,
            w_hr=w_hr,
            scratch=scratch,
        )
        return y, h_n, c_n, saved

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
        """As `kernel.Kernel`, in parts of a few steps."""
        # Under vmap, tensors that all members share are expanded.
        gates, cells, *projected_h = _contiguous(saved)
        directions, batch, hidden, size = problem.directions, problem.batch, problem.hidden_size, h_0.shape[2]
        dh_0, dc_0 = gates.new_empty(directions, batch, size), gates.new_empty(directions, batch, hidden)
        db = gates.new_empty(directions, 4 * hidden)
        if not gates.shape[1]:
            for to, grad in ((dh_0, dh_n), (dc_0, dc_n), (db, None)):
                to.zero_() if grad is None else to.copy_(grad)
            return dh_0, dc_0, db
        h_0, c_0 = h_0.contiguous(), c_0.contiguous()
        y = projected_h[0] if projected_h else None
        dy, dh_n, dc_n, dacts, dcells = _contiguous((dy, dh_n, dc_n, dacts, dcells))
        w_hh, w_hr = zip(*[_contiguous((w_hh, w_hr)) for _, w_hh, _, _, w_hr in weights], strict=True)
        projected = problem.proj_size > 0
        sizes = self._sizes(problem)
        scratch = _empty(gates, _kernel.backward_scratch(sizes))

        def run(
            first: int,
            end: int,
            dgates: Tensor,
            before: Tensor | None = None,
            dh: Tensor | None = None,
            raw: Tensor | None = None,
            dh_0: Tensor | None = None,
        ) -> None:
            """Run steps [first, end), in the order of the backward."""
            _kernel.backward(
                sizes=sizes,
                first=first,
                end=end,
                dgates=dgates,
                before=before,
                dh=dh,
                raw=raw,
                dh_0=dh_0,
                dc_0=dc_0,
                db=db,
                gates=gates,
                cells=cells,
                y=y,
                h_0=h_0,
                c_0=c_0,
                dy=dy,
                dh_n=dh_n,
                dc_n=dc_n,
                dacts=dacts,
                dcells=dcells,
                w_hh=w_hh,
                w_hr=w_hr,
                scratch=scratch,
            )

        if _is_step(problem):
            # A single part; h of the step before is h_0, and dh_0 is one product.
            n = gates.shape[1]
            dgates = gates.new_empty(directions, n, 4 * hidden)
            run(0, 1, dgates)
            for d in range(directions):
                accumulate(d, slice(0, n), dgates[d], h_0[d, :n], None, None)
                if not needs_h_0:
                    continue
                self.multiply(dh_0[d, :n], dgates[d], w_hh[d], False)
                if n < batch:
                    dh_0[d, n:] = 0 if dh_n is None else dh_n[d, n:]
            return dh_0, dc_0, db
        steps, batch_sizes = problem.rows.steps, problem.batch_sizes
        first_rows = None if batch_sizes is None else [0, *batch_sizes.cumsum(0).tolist()]

        def row(step: int) -> int:
            return step * batch if first_rows is None else first_rows[step]

        per_part = max(1, min(steps, _PART // (4 * hidden * directions * gates.itemsize * max(row(1), 1))))
        room, stride = row(per_part), 4 * hidden + _PAD
        dgates = _empty(gates, directions, room, stride)[..., : 4 * hidden]
        before = _empty(gates, directions, room, size)
        dh, raw = (_empty(gates, directions, room, k) if projected else None for k in (size, hidden))
        for first in range(0, steps, per_part):
            end = min(steps, first + per_part)
            run(first, end, dgates, before, dh, raw, dh_0)
            for d in range(directions):
                low, high = (first, end) if d or problem.reverse else (steps - end, steps - first)
                part = slice(row(low), row(high))
                n = part.stop - part.start
                accumulate(d, part, *(_first(tensor, d, n) for tensor in (dgates, before, dh, raw)))
        return dh_0, dc_0, db

    empty = staticmethod(_empty)

    def multiply(self, out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
        """As `kernel.Kernel`.

        By the kernel's own microkernel: for large products 10 % faster than torch.mm on an AMD Zen 4 (one thread,
        2560 x 4096 x 1024: 105 against 94 GFLOP/s), and it does not use threads that a fork has lost.
        """
        left, right = _readable(left, turned=True), _readable(right, turned=False)
        isa, count = self._isa, threads.count()
        need = _kernel.gemm_scratch(isa=isa, threads=count, out=out, left=left, right=right)
        scratch = _empty(out, need) if need else None
        _kernel.gemm(isa=isa, threads=count, out=out, left=left, right=right, add=add, scratch=scratch)

    def _sizes(self, problem: Problem) -> Sizes:
        """The arguments that all calls of the kernel for a problem share."""
        batch_sizes = problem.batch_sizes
        return _kernel.sizes(
            isa=self._isa,
            threads=threads.count(),
            element=problem.dtype.itemsize,
            steps=problem.rows.steps,
            batch=problem.batch,
            input=problem.input_size,
            hidden=problem.hidden_size,
            output=problem.proj_size or problem.hidden_size,
            directions=problem.directions,
            projected=problem.proj_size > 0,
            reverse=problem.reverse,
            batch_sizes=None if batch_sizes is None else as_plain(batch_sizes).long().contiguous(),
        )


def _readable(matrix: Tensor, turned: bool) -> Tensor:
    """The matrix, or a copy that a product can read; if `turned`, a transposed matrix is read without a copy."""
    return matrix if _kernel.readable(matrix=matrix, turned=turned) else matrix.contiguous()


def _contiguous(tensors: Iterable[Tensor | None]) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _first(tensor: Tensor | None, direction: int, rows: int) -> Any:
    """The first rows of one direction, or None."""
    if tensor is None:
        return None
    return tensor[direction] if rows == tensor.shape[1] else tensor[direction, :rows]


def _is_step(problem: Problem) -> bool:
    """Whether this is a single step, whose backward computes dh_0 by a separate product."""
    return problem.rows.steps == 1 and not problem.proj_size


# Also used by calls of the fast path for gradients of gradients.
FLOATS = _CPU()
_layer_of_floats = layer_of(FLOATS)
_layer_of_bfloat16 = layer_of(_CPU(bfloat16=True))


def _layer(problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]) -> tuple[Tensor, ...]:
    """See `contract.Layer`; half precision computes in float32 and rounds at the end."""
    run = _layer_of_bfloat16 if problem.dtype == torch.bfloat16 else _layer_of_floats
    if problem.dtype in _WIDE:
        return run(problem, x, h_0, c_0, weights)
    wide = tuple(tuple(None if tensor is None else tensor.float() for tensor in direction) for direction in weights)
    problem = problem._replace(dtype=torch.float32)
    results = run(problem, x.float(), h_0.float(), c_0.float(), wide)  # type: ignore[arg-type]
    return tuple(result.to(x.dtype) for result in results)


def _unavailable() -> str | None:
    if _isa not in ISAS:
        return f"TORCHLSTM_ISA is {_isa!r}; instruction sets: {', '.join(ISAS)}"
    return _missing


ENGINE = Engine("cpu", _layer, _refuses, _unavailable)
