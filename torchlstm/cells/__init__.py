"""Variants of the LSTM cell, stacks of them, and `stack_cells` for your own cell."""

from .gated import ClippedLSTM, ClippedLSTMCell, CoupledLSTM, CoupledLSTMCell, PeepholeLSTM, PeepholeLSTMCell
from .noise import (
    RecurrentDropoutLSTM,
    RecurrentDropoutLSTMCell,
    VariationalLSTM,
    VariationalLSTMCell,
    WeightDropLSTM,
    ZoneoutLSTM,
    ZoneoutLSTMCell,
)
from .norm import LayerNormLSTM, LayerNormLSTMCell
from .stack import CellStack, stack_cells

__all__ = [
    "CellStack",
    "ClippedLSTM",
    "ClippedLSTMCell",
    "CoupledLSTM",
    "CoupledLSTMCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "RecurrentDropoutLSTM",
    "RecurrentDropoutLSTMCell",
    "VariationalLSTM",
    "VariationalLSTMCell",
    "WeightDropLSTM",
    "ZoneoutLSTM",
    "ZoneoutLSTMCell",
    "stack_cells",
]
