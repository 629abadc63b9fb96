"""Kernels as opaque operators of torch.library: what compile, export, vmap and dispatch modes see."""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..contract import Dense, Problem, Ragged, check_batch_sizes, problem_of
from . import chunks
from .access import access_of
from .gradients import gradients
from .imports import once_imported
from .kernel import Call, Kernel, unflatten

# Every operator begins with the eight arguments of `Arguments`.
#   lstm                the layer; gates, cells and h are saved for the backward, and are empty unless `save`.  With
#                       chunks, gates and cells are the states before each chunk; h is empty with chunks or without a
#                       projection.  See `chunks.forward`
#   lstm_backward       the gradients of x, h_0, c_0 and the weights that need one
#   lstm_backward_loop  what the loop delivers: dgates (D, P, 4H), h before each row (D, P, R); the gradient at h
#                       (D, P, R) and o * tanh(c) (D, P, H), both empty without a projection; dh_0 and dc_0
_ARGUMENTS = (
    "str kernel, Tensor x, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? batch_sizes, SymInt steps, int? every"
)
_COTANGENTS = "Tensor dy, Tensor dh_n, Tensor dc_n, Tensor? dacts, Tensor? dcells"
_BACKWARD = f"{_ARGUMENTS}, Tensor gates, Tensor cells, Tensor h, {_COTANGENTS}"

_library = torch.library.Library("torchlstm", "DEF")
_RESULTS = "Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells, Tensor h"
_library.define(f"lstm({_ARGUMENTS}, bool save) -> ({_RESULTS})")
_library.define(f"lstm_backward({_BACKWARD}, bool[] needs) -> Tensor[]")
_library.define(f"lstm_backward_loop({_BACKWARD}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")

lstm: Any = torch.ops.torchlstm.lstm.default
lstm_backward: Any = torch.ops.torchlstm.lstm_backward.default
lstm_backward_loop: Any = torch.ops.torchlstm.lstm_backward_loop.default


class Arguments(NamedTuple):
    """The arguments of a layer in the types that operators take; letters and shapes as in `contract.Layer`."""

    kernel: str  # its name
    x: Tensor
    h_0: Tensor
    c_0: Tensor
    weights: Sequence[Tensor]  # by `kernel.flatten`
    batch_sizes: Tensor | None  # None: dense
    steps: int
    every: int | None = None  # steps of a chunk; None: no chunks

    def check(self) -> None:
        """Raise RuntimeError if a kernel would read rows out of bounds.

        The module has checked shapes; while it was compiled, the values in batch_sizes were unknown.
        """
        rows, batch = self.x.shape[0], self.h_0.shape[1]
        if self.batch_sizes is None:
            if rows != self.steps * batch:
                raise RuntimeError(f"Expected {self.steps} steps of {batch} sequences, got {rows} rows")
            return
        check_batch_sizes(self.batch_sizes, rows)
        if int(self.batch_sizes[0]) > batch:
            raise RuntimeError(f"Expected states of {int(self.batch_sizes[0])} sequences, got {batch}")

    @property
    def problem(self) -> Problem:
        """The problem that these arguments pose."""
        directions, batch, _ = self.h_0.shape
        rows = Dense(self.steps, batch) if self.batch_sizes is None else Ragged(self.batch_sizes)
        problem = problem_of(self.x, self.h_0, unflatten(self.weights, directions), rows)
        return problem._replace(checkpoint_every=self.every)

    @property
    def call(self) -> Call:
        """The kernel and the problem."""
        return Call(_kernels[self.kernel], self.problem)

    def saved(self, gates: Tensor, cells: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """What the forward saved, without h where that is empty."""
        whole = self.every is None and _projected(self.h_0, self.weights)
        return (gates, cells, h) if whole else (gates, cells)


def _projected(h_0: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the weights of all directions, by `kernel.flatten`, have a projection."""
    return len(weights) // h_0.shape[0] % 2 == 1


_COUNT = len(Arguments._fields)
_SAVED = 3  # gates, cells, h
_Decorator: TypeAlias = Callable[[Callable[..., Any]], Any]
_kernels: dict[str, Kernel] = {}


def register(kernel: Kernel) -> None:
    """Let the operators find a kernel by its name."""
    _kernels[kernel.name] = kernel


def _impl(name: str) -> _Decorator:
    decorator: _Decorator = torch.library.impl(f"torchlstm::{name}", "default", lib=_library)
    return decorator


def _fake(name: str) -> _Decorator:
    decorator: _Decorator = torch.library.register_fake(f"torchlstm::{name}", lib=_library)
    return decorator


def _vmap(name: str) -> _Decorator:
    decorator: _Decorator = torch.library.register_vmap(f"torchlstm::{name}", lib=_library)
    return decorator


@_impl("lstm")
def _lstm(*args: Any) -> tuple[Tensor, ...]:
    call, (save,) = Arguments(*args[:_COUNT]), args[_COUNT:]
    call.check()
    weights = unflatten(call.weights, call.h_0.shape[0])
    y, h_n, c_n, saved = chunks.forward(call.call, call.x, call.h_0, call.c_0, weights, save)
    return y, h_n, c_n, *saved, *(call.x.new_empty(0) for _ in range(_SAVED - len(saved)))


@_fake("lstm")
def _lstm_fake(*args: Any) -> tuple[Tensor, ...]:
    (_, x, h_0, c_0, weights, _, steps, every), (save,) = args[:_COUNT], args[_COUNT:]
    (directions, batch, size), rows, hidden = h_0.shape, x.shape[0], c_0.shape[2]
    saved: Any = ((0,), (0,), (0,))
    if save and every is None:
        h = (rows, directions * size) if _projected(h_0, weights) else (0,)
        saved = ((directions, rows, 4 * hidden), (directions, rows, hidden), h)
    elif save:
        kept = chunks.count(steps, every) * batch
        saved = ((directions, kept, size), (directions, kept, hidden), (0,))
    return tuple(x.new_empty(shape) for shape in ((rows, directions * size), h_0.shape, c_0.shape, *saved))


@_impl("lstm_backward")
def _lstm_backward(*args: Any) -> list[Tensor]:
    call, rest = Arguments(*args[:_COUNT]), args[_COUNT:]
    *cotangents, needs = rest[_SAVED:]
    arguments = (call.x, call.h_0, call.c_0, *call.weights)
    grads = gradients(call.call, needs, call.saved(*rest[:_SAVED]), *cotangents, *arguments)
    return [gradient for gradient in grads if gradient is not None]


@_fake("lstm_backward")
def _lstm_backward_fake(*args: Any) -> list[Tensor]:
    call, needs = Arguments(*args[:_COUNT]), args[-1]
    arguments = (call.x, call.h_0, call.c_0, *call.weights)
    return [call.x.new_empty(t.shape) for t, needed in zip(arguments, needs, strict=True) if needed]


@_impl("lstm_backward_loop")
def _lstm_backward_loop(*args: Any) -> tuple[Tensor, ...]:
    call, rest = Arguments(*args[:_COUNT]), args[_COUNT:]
    *parts, _, _ = _lstm_backward_loop_fake(*args)

    def accumulate(d: int, rows: slice, dgates: Tensor, before: Tensor, dh: Tensor | None, raw: Tensor | None) -> None:
        for whole, part in zip(parts, (dgates, before, dh, raw), strict=True):
            if part is not None:
                whole[d, rows] = part

    weights = unflatten(call.weights, call.h_0.shape[0])
    arguments = (call.x, call.h_0, call.c_0, weights, *rest[_SAVED:], accumulate, True)
    dh_0, dc_0, _ = chunks.backward(call.call, call.saved(*rest[:_SAVED]), *arguments)
    return *parts, dh_0, dc_0


@_fake("lstm_backward_loop")
def _lstm_backward_loop_fake(*args: Any) -> tuple[Tensor, ...]:
    _, x, h_0, c_0, weights, *_ = args
    (directions, _, size), rows, hidden = h_0.shape, x.shape[0], c_0.shape[2]
    projected = _projected(h_0, weights)
    sizes = (4 * hidden, size, size if projected else 0, hidden if projected else 0)
    parts = [x.new_empty(directions, rows, size) for size in sizes]
    return *parts, x.new_empty(h_0.shape), x.new_empty(c_0.shape)


# Under vmap a mapped axis is merged into the batch, right after the axis of rows or sequences, so that the copies of a
# sequence lie side by side, and ragged ones stay sorted by falling length.  With mapped weights the members run one
# after another.
# These are the axes of x, h_0, c_0 and of gates, cells, h, dy, dh_n, dc_n, dacts, dcells.
_AXES = (0, 1, 1)
_BACKWARD_AXES = (1, 1, 0, 0, 1, 1, 1, 1)


def _fold(tensor: Tensor, dim: int | None, axis: int, count: int) -> Tensor:
    """Merge the mapped axis `dim` of a tensor into `axis`; a tensor without one is repeated `count` times."""
    if dim is None:
        before, after = tensor.shape[: axis + 1], tensor.shape[axis + 1 :]
        mapped = tensor.unsqueeze(axis + 1).expand(*before, count, *after)
    else:
        mapped = tensor.movedim(dim, axis + 1)
    folded: Tensor = mapped.flatten(axis, axis + 1)
    return folded


def _unfold(tensor: Tensor, axis: int, count: int) -> Tensor:
    """The inverse of `_fold`: the mapped axis is `axis` + 1."""
    unfolded: Tensor = tensor.unflatten(axis, (tensor.shape[axis] // count, count))
    return unfolded


def _folded(info: Any, dims: Sequence[Any], args: Sequence[Any]) -> list[Any] | None:
    """The arguments of one call for all members, or None if the weights are mapped."""
    if any(dim is not None for dim in dims[4]):
        return None
    folded, call = list(args), Arguments(*args[:_COUNT])
    axes = dict(enumerate(_AXES, 1))
    if len(args) >= _COUNT + len(_BACKWARD_AXES):
        axes.update(enumerate(_BACKWARD_AXES, _COUNT))
    for index, axis in axes.items():
        if args[index] is not None:
            folded[index] = _fold(args[index], dims[index], axis, info.batch_size)
    if call.batch_sizes is not None:
        folded[5] = call.batch_sizes * info.batch_size
    return folded


def _one_by_one(operator: Any, info: Any, dims: Sequence[Any], args: Sequence[Any]) -> Any:
    """The results of an operator called for one member after another, stacked."""

    def of(member: int, value: Any, dim: Any) -> Any:
        if isinstance(value, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [of(member, each, d) for each, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, member)

    results = [operator(*(of(i, v, d) for v, d in zip(args, dims, strict=True))) for i in range(info.batch_size)]
    stacked = type(results[0])(torch.stack(each) for each in zip(*results, strict=True))
    return stacked, type(results[0])([0] * len(stacked))


@_vmap("lstm")
def _lstm_vmap(info: Any, dims: Any, *args: Any) -> Any:
    folded = _folded(info, dims, args)
    if folded is None:
        return _one_by_one(lstm, info, dims, args)
    y, h_n, c_n, *saved = lstm(*folded)
    results = [_unfold(t, axis, info.batch_size) for t, axis in ((y, 0), (h_n, 1), (c_n, 1))]
    if not args[-1]:
        return (*results, *saved), (1, 2, 2, None, None, None)
    kept = [_unfold(t, axis, info.batch_size) for t, axis in zip(saved, (1, 1, 0), strict=True)]
    return (*results, *kept), (1, 2, 2, 2, 2, 1)


@_vmap("lstm_backward_loop")
def _lstm_backward_loop_vmap(info: Any, dims: Any, *args: Any) -> Any:
    folded = _folded(info, dims, args)
    if folded is None:
        return _one_by_one(lstm_backward_loop, info, dims, args)
    results = lstm_backward_loop(*folded)
    return tuple(_unfold(t, 1, info.batch_size) for t in results), (2,) * len(results)


@_vmap("lstm_backward")
def _lstm_backward_vmap(info: Any, dims: Any, *args: Any) -> Any:
    """One loop for all members, and for each the products that make its own gradients of the weights."""
    folded = _folded(info, dims, args)
    if folded is None:
        return _one_by_one(lstm_backward, info, dims, args)
    *arguments, needs = folded
    call, count = Arguments(*arguments[:_COUNT]), info.batch_size
    dgates, before, dh, raw, dh_0, dc_0 = lstm_backward_loop(*arguments)
    weights = unflatten(call.weights, call.h_0.shape[0])
    each, x = len(call.weights) // len(weights), _unfold(call.x, 0, count)
    needed, grads = iter(needs), []

    def give(dim: int, compute: Callable[..., Tensor], *operands: Any) -> None:
        """Add the next gradient and its mapped axis, if it is needed."""
        if next(needed):
            grads.append((compute(*operands), dim))

    give(1, lambda: _unfold(sum(dgates[d] @ w_ih for d, (w_ih, *_) in enumerate(weights)), 0, count))
    give(2, _unfold, dh_0, 1, count)
    give(2, _unfold, dc_0, 1, count)
    for d in range(len(weights)):
        left, right = _unfold(dgates[d], 0, count), _unfold(before[d], 0, count)
        give(0, _product_by_member, call.kernel, left, x)
        give(0, _product_by_member, call.kernel, left, right)
        for _ in range(2 if each >= 4 else 0):
            give(0, left.sum, 0)
        if each % 2:
            give(0, _product_by_member, call.kernel, _unfold(dh[d], 0, count), _unfold(raw[d], 0, count))
    return [gradient for gradient, _ in grads], [dim for _, dim in grads]


def _product_by_member(kernel: str, left: Tensor, right: Tensor) -> Tensor:
    """The products left^T right of rows (P, N, a) and (P, N, b), for each of N members: (N, a, b)."""
    left, right = left.permute(1, 2, 0), right.transpose(0, 1)
    if not access_of((left, right)).direct:
        return torch.bmm(left, right)
    product: Tensor = torch.bmm(left, right, out=empty(kernel, left, *left.shape[:2], right.shape[2]))
    return product


def empty(kernel: str, like: Tensor, *shape: int) -> Tensor:
    """A kernel's `empty`: per-sample gradients are large, and half of the time went into page faults of 4 KiB."""
    return _kernels[kernel].empty(like, *shape)


# For torch.utils.flop_counter: the product of a row and a matrix is 2 operations for each element of the matrix.
def _products(h_0: Sequence[int], weights: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Operations of one row with each weight, 0 for a bias; and the same with 0 for w_ih too."""
    each = len(weights) // h_0[0]
    all_of_them = [2 * math.prod(shape) if len(shape) == 2 else 0 for shape in weights]
    return all_of_them, [0 if index % each == 0 else count for index, count in enumerate(all_of_them)]


def _recomputed(h_0: Sequence[int], weights: Sequence[Sequence[int]], rest: Sequence[Any]) -> int:
    """Operations of one row that a backward with chunks recomputes; `rest` begins with batch_sizes, steps, every."""
    return 0 if rest[2] is None else sum(_products(h_0, weights)[0])


def _lstm_flops(_: Any, x: Sequence[int], h_0: Any, __: Any, weights: Any, *___: Any, **____: Any) -> int:
    return x[0] * sum(_products(h_0, weights)[0])


def _lstm_backward_loop_flops(_: Any, x: Sequence[int], h_0: Any, __: Any, weights: Any, *rest: Any, **___: Any) -> int:
    return x[0] * (sum(_products(h_0, weights)[1]) + _recomputed(h_0, weights, rest))


def _lstm_backward_flops(_: Any, x: Sequence[int], h_0: Any, __: Any, weights: Any, *rest: Any, **___: Any) -> int:
    needs = rest[-1]
    products, recurrent = _products(h_0, weights)
    of_x = sum(products) - sum(recurrent) if needs[0] else 0
    of_weights = sum(count for count, needed in zip(products, needs[3:], strict=True) if needed)
    return x[0] * (sum(recurrent) + of_x + of_weights + _recomputed(h_0, weights, rest))


def _register_flops() -> None:
    register = importlib.import_module("torch.utils.flop_counter").register_flop_formula
    register(torch.ops.torchlstm.lstm)(_lstm_flops)
    register(torch.ops.torchlstm.lstm_backward_loop)(_lstm_backward_loop_flops)
    register(torch.ops.torchlstm.lstm_backward)(_lstm_backward_flops)


# That module imports Triton, which takes longer than all of torchlstm.
once_imported("torch.utils.flop_counter", _register_flops)
