"""The time loop of one direction over any cell: dense or ragged, forward or reverse."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, cat, jit

# step(x, state, weights) -> state: one step of the n sequences that are alive.
#   x        (n, F) the input
#   state    tensors (n, ..), the first is h
#   weights  those of the loop, the same at every step
Step: TypeAlias = Callable[[Tensor, list[Tensor], list[Tensor]], list[Tensor]]
Loop: TypeAlias = Callable[..., tuple[list[Tensor], list[Tensor]]]


@contextmanager
def undeprecated() -> Iterator[None]:
    """Suppress torch.jit's warning that it is deprecated, since a user who traces has already seen it.

    It is a DeprecationWarning, and a FutureWarning from torch 2.14 on.
    """
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def time_loop(step: Step) -> Loop:
    """Make the loop over a step; it can be scripted by TorchScript if the step can."""

    def loop(
        x: Tensor,
        batch_sizes: Tensor | None,
        state: list[Tensor],
        weights: list[Tensor],
        reverse: bool,
        kept: int = 1,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run all steps.

        x            (T, B, F) if batch_sizes is None, else (P, F)
        batch_sizes  (T,) or None: how many sequences are alive at each step
        state        tensors (B, ..), the first is h
        kept         how many tensors of the state, from the first on, are returned for every step
        returns      these, each (P, ..), and the final state
        """
        if jit.is_scripting():  # type: ignore[attr-defined]
            _check(x, batch_sizes, state)
        given = state
        # `unbind` and `split` cut all steps at once: their gradient is one concatenation, not a buffer for each step.
        if batch_sizes is None:
            steps = x.unbind(0)
        else:
            sizes: list[int] = batch_sizes.tolist()
            steps = x.split(sizes)
        every: list[list[Tensor]] = []
        for _ in range(kept):
            every.append([x] * len(steps))
        # The states of sequences that have ended or, in reverse, not begun.
        idle: list[Tensor] = []
        for k in range(len(steps)):
            t = len(steps) - 1 - k if reverse else k
            n, alive = steps[t].shape[0], state[0].shape[0]
            if n < alive:
                ended = [s[n:] for s in state]
                idle = ended if len(idle) == 0 else [cat([ended[j], idle[j]]) for j in range(len(idle))]
                state = [s[:n] for s in state]
            elif n > alive:
                state = [cat([state[j], idle[j][: n - alive]]) for j in range(len(idle))]
                idle = [s[n - alive :] for s in idle]
            state = step(steps[t], state, weights)
            for j in range(kept):
                every[j][t] = state[j]
        if len(idle) > 0:
            state = [cat([state[j], idle[j]]) for j in range(len(idle))]
        if jit.is_scripting():  # type: ignore[attr-defined]
            for j in range(len(state)):
                if state[j].shape != given[j].shape:
                    # A state of one unit would be broadcast.
                    raise RuntimeError(f"Expected a state of shape {state[j].shape}, got {given[j].shape}")
        return [cat(rows) for rows in every], state

    return loop


def _check(x: Tensor, batch_sizes: Tensor | None, state: list[Tensor]) -> None:
    """Raise RuntimeError for rows and states that do not fit.

    For programs of torch.jit.trace, in which the module's own checks ran on the example only.
    """
    if batch_sizes is None:
        batch = x.shape[1]
    else:
        sizes: list[int] = batch_sizes.tolist()
        batch = sizes[0]
        for k in range(1, len(sizes)):
            if sizes[k] > sizes[k - 1]:
                raise RuntimeError(f"batch_sizes of a PackedSequence must not rise, got {sizes}")
    for s in state:
        if s.shape[0] != batch:
            raise RuntimeError(f"Expected states of {batch} sequences, as the input has, got {s.shape[0]}")
