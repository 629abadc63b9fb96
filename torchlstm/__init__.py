"""torchlstm: torch.nn.LSTM and torch.nn.LSTMCell, hand-written, on engines of its own."""

from . import cells, convert, export, init, viz
from .cell import LSTMCell
from .cells import LayerNormLSTM, stack_cells
from .dispatch import EngineRefusal, engines, use_engine
from .explain import explain
from .lazy import LazyLSTM
from .lstm import LSTM
from .stream import Stream
from .swap import plan_swap, restore, swap

__version__ = "0.2.0"

__all__ = [
    "LSTM",
    "EngineRefusal",
    "LSTMCell",
    "LayerNormLSTM",
    "LazyLSTM",
    "Stream",
    "cells",
    "convert",
    "engines",
    "explain",
    "export",
    "init",
    "plan_swap",
    "restore",
    "stack_cells",
    "swap",
    "use_engine",
    "viz",
]
