"""The contract of an engine: the problem that it is given, and what it returns.

Letters used everywhere: T steps, B batch, P packed rows, I input size, H hidden size, R = proj_size or H,
D directions, L layers.  Gates are i, f, g, o along the 4H axis, in this order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from .shared.access import DIRECT, Access


class Dense(NamedTuple):
    """Rows of a batch whose sequences are equally long: row t * batch + b is step t of sequence b."""

    steps: int
    batch: int


class Ragged(NamedTuple):
    """Rows of sequences sorted by falling length, step by step, as a PackedSequence holds them."""

    batch_sizes: Tensor  # (T,) CPU int64, non-increasing: how many sequences are alive at each step

    @property
    def steps(self) -> int:
        """T."""
        return self.batch_sizes.shape[0]


Rows: TypeAlias = Dense | Ragged


def rows_of(batch_sizes: Tensor, batch: int) -> Rows:
    """The rows of sequences, `Dense` if they are equally long: sizes never rise, so the last one is then B."""
    return Dense(len(batch_sizes), batch) if int(batch_sizes[-1]) == batch else Ragged(batch_sizes)


def check_batch_sizes(sizes: Tensor, rows: int) -> None:
    """Raise RuntimeError unless these are valid batch sizes (T,) that sum to this number of packed rows."""
    if int(sizes[-1]) < 0 or bool((sizes[1:] > sizes[:-1]).any()):
        raise RuntimeError(f"batch_sizes of a PackedSequence must not rise nor be negative, got {sizes.tolist()}")
    if int(sizes.sum()) != rows:
        raise RuntimeError(
            f"a PackedSequence whose batch_sizes sum to {int(sizes.sum())} must have as many rows of data, got {rows}"
        )


# One direction of one layer: w_ih (4H, I), w_hh (4H, R), b_ih (4H,), b_hh (4H,), w_hr (R, H).
Weights: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class Recorder(Protocol):
    """Receives the per-sample gradients of one layer's weights; see `per_sample`."""

    def begin(self, batch: int) -> None:
        """Note that a forward of `batch` sequences has begun; its backward will deliver their gradients."""

    def wanted(self) -> bool:
        """Whether the gradients are still wanted; asked when the backward runs."""

    def record(self, samples: Any) -> None:
        """Take a `per_sample.Samples`."""


class Problem(NamedTuple):
    """One layer, all its directions: what an engine must know to decide whether it can run it."""

    rows: Rows
    batch: int  # B, at least the rows' own batch size
    input_size: int
    hidden_size: int
    proj_size: int  # 0: no projection
    directions: int
    bias: bool
    dtype: torch.dtype
    device: torch.device
    access: Access = DIRECT  # how a kernel may access the tensors of this call
    trace: bool = False  # whether the states and gates of every step are results too
    checkpoint_every: int | None = None  # save only the states of every k-th step; never with `trace`
    reverse: bool = False  # the only direction runs backwards in time: the second of two, alone
    recorder: Recorder | None = None  # receives per-sample gradients of the weights
    loop: str | None = None  # which of its time loops the engine runs; None: it chooses
    cell: bool = False  # follows torch's TF32 setting for matmul, as nn.LSTMCell does, not that for RNNs

    @property
    def batch_sizes(self) -> Tensor | None:
        """(T,) of a ragged batch, None of a dense one."""
        return self.rows.batch_sizes if isinstance(self.rows, Ragged) else None


def stacked(first: Problem, layers: int) -> tuple[Problem, ...]:
    """The problems of all layers of a stack: each takes the output of the layer below."""
    features = first.directions * (first.proj_size or first.hidden_size)
    return (first, *(first._replace(input_size=features),) * (layers - 1))


def problem_of(x: Tensor, h_0: Tensor, weights: tuple[Weights, ...], rows: Rows) -> Problem:
    """The problem that these arguments pose; see `Layer` for their shapes."""
    w_ih, w_hh, b_ih, _, w_hr = weights[0]
    return Problem(
        rows=rows,
        batch=h_0.shape[1],
        input_size=w_ih.shape[1],
        hidden_size=w_hh.shape[0] // 4,
        proj_size=0 if w_hr is None else w_hr.shape[0],
        directions=len(weights),
        bias=b_ih is not None,
        dtype=x.dtype,
        device=x.device,
    )


# layer(problem, x, h_0, c_0, weights) -> y, h_n, c_n; with `Problem.trace` also acts, cells
#   x            (P, I)
#   h_0, c_0     (D, B, R), (D, B, H)
#   weights      D of Weights
#   y            (P, D*R), contiguous
#   h_n, c_n     (D, B, R), (D, B, H); they own their storage
#   acts, cells  (D, P, 4H), (D, P, H): the activated gates and c of every row, differentiable
# Direction 1, or the only one of a reverse problem, runs backwards in time.  A step updates only the states of the
# sequences that have this step: one that has ended, or in reverse has not begun, keeps its state.
Layer: TypeAlias = Callable[[Problem, Tensor, Tensor, Tensor, tuple[Weights, ...]], tuple[Tensor, ...]]


def _none(_: Problem) -> None:
    return None


def _present() -> None:
    return None


def _as_posed(problem: Problem) -> Problem:
    return problem


def only_if_asked(_: Problem) -> str:
    """The `automatic` of an engine that is never chosen automatically, only by `use_engine`."""
    return "but only if asked for"


@dataclass(frozen=True)
class Engine:
    """One way to compute a layer.

    name         its name for `use_engine`
    layer        the computation
    refuses      returns why this engine cannot run a problem, or None
    unavailable  returns why this engine is missing from this installation, or None
    automatic    called by automatic choice for a problem that the engine can run: returns the problem as the engine
                 runs it, or why it is not chosen, as a clause that follows "can run it, "
    """

    name: str
    layer: Layer
    refuses: Callable[[Problem], str | None] = _none
    unavailable: Callable[[], str | None] = _present
    automatic: Callable[[Problem], Problem | str] = _as_posed
