"""The time loop over a cell as TorchScript: `torch.jit.trace` records it, so that a stack stays a loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.reference.loop import Loop, Step, time_loop, undeprecated
from ..engines.shared.torch_private import get_tracing_state, put_tensor, set_tracing_state


def scripted_loop(cell: nn.Module, step: Step, x: Tensor, state: list[Tensor]) -> tuple[Loop, list[Tensor]]:
    """Make the time loop over a step, and the weights that it takes as arguments.

    A script cannot call any cell, but it can call a trace of one step. The weights are arguments of that trace;
    otherwise they would be constants in it, and the parameters of the traced module would not be used.

    Args:
        cell: The cell.
        step: One step of it.
        x: An example of the step's input.
        state: An example of the state.

    Returns:
        The loop and the weights.
    """
    own: dict[str, Any] = {"recurse": False, "remove_duplicate": False}
    places = [
        (module, name)
        for module in cell.modules()
        for name, _ in (*module.named_parameters(**own), *module.named_buffers(**own))
    ]
    weights = [getattr(module, name) for module, name in places]

    def pure(x: Tensor, state: list[Tensor], given: list[Tensor]) -> list[Tensor]:
        with _replaced(places, given):
            return step(x, state, given)

    with _untraced(), undeprecated():
        example = (x.detach(), *([tensor.detach() for tensor in tensors] for tensors in (state, weights)))
        traced: Any = torch.jit.trace(pure, example, check_trace=False, strict=False)
        return torch.jit.script(time_loop(traced)), weights


@contextmanager
def _untraced() -> Iterator[None]:
    """Record nothing for the trace that is under way."""
    outer = get_tracing_state()
    set_tracing_state(None)
    try:
        yield
    finally:
        set_tracing_state(outer)


@contextmanager
def _replaced(places: list[tuple[nn.Module, str]], tensors: list[Tensor]) -> Iterator[None]:
    """Put tensors, which need not be Parameters, in the places of parameters and buffers."""

    def put(values: list[Any]) -> None:
        for (module, name), value in zip(places, values, strict=True):
            put_tensor(module, name, value)

    before = [getattr(module, name) for module, name in places]
    put(tensors)
    try:
        yield
    finally:
        put(before)
