"""Per-sample gradients of a layer's weights: those of each sequence, which differentially private training clips."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..contract import Dense, Layer, Problem, Ragged, Recorder, Weights
from . import operators
from .kernel import flatten, spread, unflatten

EAGER_ONLY = (
    "per-sample gradients are recorded by an eager call: neither compile the private model nor transform it with "
    "torch.func (which computes them itself: torch.func.vmap(torch.func.grad(loss)))"
)

# A gradient is the sum over time of products of the rows of two factors, (P, a) and (P, b); a bias has only the first.
Factors = tuple[Tensor, Tensor | None]


class Samples:
    """The per-sample gradients of a layer's weights, in the order of the rows' sequences."""

    def __init__(self, kernel: str, problem: Problem, factors: Sequence[Factors]) -> None:
        self.kernel, self.batch = kernel, problem.batch
        self._factors = factors
        self._totals: dict[int, Tensor] = {}
        self._ragged, self._cut = isinstance(problem.rows, Ragged), _cutter(problem)
        self._last: tuple[Tensor, list[Tensor]] | None = None

    def gradient(self, index: int, scale: float = 1.0, order: Tensor | None = None) -> Tensor:
        """`scale` times the gradients (B, ..) of the weight at this index of `kernel.flatten`.

        order  (B,) the rows' sequences in the order of the result; None: as in the rows
        """
        left, right = self._factors[index]
        lefts = self._blocks(left)
        if right is None:
            gradient: Tensor = torch.cat([block.sum(1) for block in lefts]) * scale
        else:
            gradient = operators.empty(self.kernel, left, self.batch, left.shape[1], right.shape[1])
            starts = [0]
            if self._ragged:
                # Written in order at once, since copying all of them into order would be too slow.
                starts = list(range(self.batch)) if order is None else order.argsort().tolist()
                order = None
            for start, a, b in zip(starts, lefts, self._cut(right), strict=True):
                place = gradient[start : start + a.shape[0]]
                torch.baddbmm(place, a.transpose(1, 2), b, beta=0, alpha=scale, out=place)
        # Summing takes a tenth of the time of the product that would compute the total.
        self._totals[index] = gradient.sum(0) / (scale or 1.0)
        return gradient if order is None else gradient.index_select(0, order)

    def _blocks(self, left: Tensor) -> list[Tensor]:
        """A left factor, cut into blocks; cached, since consecutive weights share it."""
        if self._last is None or self._last[0] is not left:
            self._last = left, list(self._cut(left))
        return self._last[1]

    def norm(self, index: int) -> Tensor:
        """The 2-norms (B,) of `gradient(index)`, without computing the gradient where that is less work."""
        left, right = self._factors[index]
        if right is None:
            return _norm(self.gradient(index))
        a, b, norms = left.shape[1], right.shape[1], []
        for x, y in zip(self._blocks(left), self._cut(right), strict=True):
            if x.shape[1] * (a + b) < a * b:
                # |sum_t x_t y_t^T|^2 = sum_ts (x_t x_s) (y_t y_s), as in ghost clipping.
                squares = torch.bmm(x, x.transpose(1, 2)) * torch.bmm(y, y.transpose(1, 2))
                norms.append(squares.sum((1, 2)).clamp(min=0).sqrt())
            else:
                norms.append(_norm(torch.bmm(x.transpose(1, 2), y)))
        return torch.cat(norms)

    def total(self, index: int) -> Tensor:
        """The gradient of the weight, over all sequences."""
        if index in self._totals:
            return self._totals[index]
        left, right = self._factors[index]
        return left.sum(0) if right is None else left.t() @ right


class _Given(Samples):
    """As `Samples`, from gradients (B, ..) that have been computed."""

    def __init__(self, batch: int, gradients: Sequence[Tensor]) -> None:
        self.batch, self._gradients = batch, gradients

    def gradient(self, index: int, scale: float = 1.0, order: Tensor | None = None) -> Tensor:
        gradient = self._gradients[index]
        return (gradient if order is None else gradient.index_select(0, order)) * scale

    def norm(self, index: int) -> Tensor:
        return _norm(self._gradients[index])

    def total(self, index: int) -> Tensor:
        return self._gradients[index].sum(0)


def _norm(gradients: Tensor) -> Tensor:
    """The 2-norms (B,) of tensors (B, ..)."""
    norms: Tensor = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
    return norms


def _cutter(problem: Problem) -> Callable[[Tensor], Iterator[Tensor]]:
    """A function that cuts rows (P, F) into blocks (n, T, F) of n equally long sequences; the n sum to B."""
    rows = problem.rows
    if isinstance(rows, Dense):
        return lambda tensor: iter([tensor.view(rows.steps, problem.batch, tensor.shape[1]).transpose(0, 1)])
    places = _places(rows)
    places += [places[0][:0]] * (problem.batch - len(places))  # sequences without rows
    return lambda tensor: (tensor[place].unsqueeze(0) for place in places)


def _places(rows: Ragged) -> list[Tensor]:
    """For each sequence of a ragged batch the indices of its rows."""
    sizes = rows.batch_sizes
    starts = sizes.cumsum(0) - sizes
    return [starts[sizes > sequence] + sequence for sequence in range(int(sizes[0]))]


def by_operators(
    kernel: str, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, flat: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer on a kernel, whose backward gives the recorder the factors of the per-sample gradients."""
    _begin(problem)
    result: tuple[Tensor, Tensor, Tensor] = _ByOperators.apply(kernel, problem, x, h_0, c_0, *flat)  # type: ignore[no-untyped-call]
    return result


def by_transforms(
    layer: Layer, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer that torch.func can transform, whose backward recomputes it for each sequence."""
    _begin(problem)
    flat = flatten(weights)
    result: tuple[Tensor, Tensor, Tensor] = _ByTransforms.apply(layer, problem, x, h_0, c_0, *flat)  # type: ignore[no-untyped-call]
    return result


def _begin(problem: Problem) -> None:
    if problem.access.transformed:
        raise RuntimeError(EAGER_ONLY)
    _recorder(problem).begin(problem.batch)


def _recorder(problem: Problem) -> Recorder:
    assert problem.recorder is not None
    return problem.recorder


class _ByOperators(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: str, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        static = problem.batch_sizes, problem.rows.steps, None
        y, h_n, c_n, *saved = operators.lstm(kernel, x, h_0, c_0, list(flat), *static, True)
        ctx.kernel, ctx.problem = kernel, problem
        ctx.save_for_backward(*saved, x, h_0, c_0, *flat)
        return y, h_n, c_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        gates, cells, h, x, h_0, c_0, *flat = ctx.saved_tensors
        problem, needs = ctx.problem, ctx.needs_input_grad[2:]
        static = problem.batch_sizes, problem.rows.steps, None
        args = (ctx.kernel, x, h_0, c_0, flat, *static, gates, cells, h, *cotangents, None, None)
        if not _recorder(problem).wanted():
            return None, None, *spread(needs, operators.lstm_backward(*args, needs))
        dgates, before, dh, raw, dh_0, dc_0 = operators.lstm_backward_loop(*args)
        factors: list[Factors] = []
        weights = unflatten(flat, len(dgates))
        for d, (_, _, b_ih, _, w_hr) in enumerate(weights):
            left = dgates[d]
            factors += [(left, x), (left, before[d])]
            factors += [] if b_ih is None else [(left, None)] * 2
            factors += [] if w_hr is None else [(dh[d], raw[d])]
        samples = Samples(ctx.kernel, problem, factors)
        _recorder(problem).record(samples)
        dx = sum(dgates[d] @ w_ih for d, (w_ih, *_) in enumerate(weights)) if needs[0] else None
        totals = (samples.total(index) if needed else None for index, needed in enumerate(needs[3:]))
        return None, None, dx, dh_0, dc_0, *totals


class _ByTransforms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layer: Layer, problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.layer, ctx.problem = layer, problem
        ctx.save_for_backward(x, h_0, c_0, *flat)
        return layer(problem._replace(recorder=None), x, h_0, c_0, unflatten(flat, h_0.shape[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        problem, (x, h_0, c_0, *flat) = ctx.problem._replace(recorder=None), ctx.saved_tensors

        def pull(problem: Problem, tensors: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
            """The gradients of x, h_0, c_0 and weights, given these three and the cotangents of the results."""

            def run(x: Tensor, h_0: Tensor, c_0: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                result: tuple[Tensor, Tensor, Tensor] = ctx.layer(problem, x, h_0, c_0, unflatten(weights, len(h_0)))
                return result

            gradients: tuple[Tensor, ...] = torch.func.vjp(run, *tensors[:3], *weights)[1](tuple(tensors[3:]))
            return gradients

        tensors = (x, h_0, c_0, *cotangents)
        recorder = _recorder(ctx.problem)
        if not recorder.wanted():
            return None, None, *pull(problem, tensors, *flat)
        one, cut = problem._replace(batch=1), _cutter(problem)

        def alone(x: Tensor, h_0: Tensor, c_0: Tensor, *cotangents: Tensor) -> tuple[Tensor, ...]:
            """The gradients of one sequence (T, I)."""
            dy, *states = cotangents
            if x.shape[0] == 0:
                # A jagged tensor may have a sequence without steps; its states pass through.
                return torch.zeros_like(x), *states, *(torch.zeros_like(weight) for weight in flat)
            each = one._replace(rows=Dense(x.shape[0], 1))
            args = (x, *(state.unsqueeze(1) for state in (h_0, c_0)), dy, *(state.unsqueeze(1) for state in states))
            dx, dh_0, dc_0, *weights = pull(each, args, *flat)
            return dx, dh_0.squeeze(1), dc_0.squeeze(1), *weights

        states = [state.transpose(0, 1) for state in (h_0, c_0, *cotangents[1:])]  # (B, D, ..)
        blocks, first = [], 0
        for x_block, dy_block in zip(cut(x), cut(cotangents[0]), strict=True):
            end = first + x_block.shape[0]
            h, c, dh, dc = (state[first:end] for state in states)
            blocks.append(torch.func.vmap(alone)(x_block, h, c, dy_block, dh, dc))
            first = end
        dx, dh_0, dc_0, *gradients = (list(each) for each in zip(*blocks, strict=True))
        samples = _Given(problem.batch, [torch.cat(each) for each in gradients])
        recorder.record(samples)
        totals = [samples.total(index) for index in range(len(flat))]
        return None, None, _join(problem, dx), *(torch.cat(s).transpose(0, 1) for s in (dh_0, dc_0)), *totals


def _join(problem: Problem, blocks: Sequence[Tensor]) -> Tensor:
    """The inverse of what `_cutter` makes: blocks (n, T, F) as rows (P, F)."""
    rows = problem.rows
    if isinstance(rows, Dense):
        return blocks[0].transpose(0, 1).reshape(rows.steps * problem.batch, blocks[0].shape[2])
    joined = torch.cat([block[0] for block in blocks])
    return torch.empty_like(joined).index_copy_(0, torch.cat(_places(rows)), joined)
