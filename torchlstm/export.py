"""Exported programs without operators of ours, for runtimes that know torch's only."""

from collections.abc import Callable
from typing import Any

import torch

from .engines.exported import decompose


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return torch.export's default table of decompositions, and with it those of torchlstm's operators.

    >>> exported = torch.export.export(model, (x,))
    >>> exported = exported.run_decompositions(torchlstm.export.decompositions())

    The program then has core ATen operators alone: an LSTM is unrolled, T steps a layer and direction, where it was
    exported for one T, and is a `torch.ops.higher_order.scan` where T is dynamic.  ExecuTorch runs either, the scan for
    a fixed batch size.  Gradients of a scan are torch's own, and wrong before torch 2.13.  To decompose a model with a
    PackedSequence, lengths or resets raises RuntimeError.
    """
    table: dict[Any, Callable[..., Any]] = torch.export.default_decompositions()
    table[torch.ops.torchlstm.lstm.default] = decompose.lstm
    table[torch.ops.torchlstm.cut.default] = decompose.refuse
    return table
