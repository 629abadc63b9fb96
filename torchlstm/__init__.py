"""torchlstm: torch.nn.LSTM and torch.nn.LSTMCell, hand-written, on engines of its own.

Examples:
    >>> import torch
    >>> import torchlstm
    >>> lstm = torchlstm.LSTM(8, 16)
    >>> output, (h_n, c_n) = lstm(torch.randn(10, 4, 8))
    >>> output.shape
    torch.Size([10, 4, 16])
"""

from . import cells, convert, export, init, viz
from .cell import LSTMCell
from .cells import LayerNormLSTM, stack_cells
from .dispatch import EngineRefusal, engines, use_engine
from .explain import explain
from .freeze import freeze, plan_freeze, thaw
from .frozen import FrozenLSTM, FrozenLSTMCell
from .lazy import LazyLSTM
from .lstm import LSTM
from .stream import Stream
from .swap import plan_swap, restore, swap

__version__ = "0.2.0"

__all__ = [
    "LSTM",
    "EngineRefusal",
    "FrozenLSTM",
    "FrozenLSTMCell",
    "LSTMCell",
    "LayerNormLSTM",
    "LazyLSTM",
    "Stream",
    "cells",
    "convert",
    "engines",
    "explain",
    "export",
    "freeze",
    "init",
    "plan_freeze",
    "plan_swap",
    "restore",
    "stack_cells",
    "swap",
    "thaw",
    "use_engine",
    "viz",
]
