"""Registers torchlstm's classes in tables of torch.nn's classes: the rule for nn.LSTM also holds for ours."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..cell import LSTMCell
from ..lstm import LSTM

Hook = Callable[[nn.Module, Any, Any], Any]

OURS: dict[type[nn.Module], type[nn.Module]] = {LSTM: nn.LSTM, LSTMCell: nn.LSTMCell}


def rules(table: dict[Any, Any]) -> dict[type[nn.Module], Hook]:
    """Return, for each class of ours, the forward hook that a table has for torch.nn's."""
    return {ours: _seen_as(theirs, table[theirs]) for ours, theirs in OURS.items()}


def _seen_as(kind: type[nn.Module], hook: Hook) -> Hook:
    """A hook that sees the module as one of torch.nn's class: such hooks ask for it with `isinstance`."""

    @functools.wraps(hook)
    def seen(module: nn.Module, input: Any, output: Any) -> Any:
        twin = object.__new__(kind)
        # The same attribute dictionary, not a copy: the hook adds to the module's own counters.
        object.__setattr__(twin, "__dict__", module.__dict__)
        return hook(twin, input, output)

    return seen
