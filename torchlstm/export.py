"""Exported programs without torchlstm's operators, for runtimes that only know torch's."""

from collections.abc import Callable
from typing import Any

import torch

from .engines.exported import decompose


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return torch.export's default table of decompositions, extended by those of torchlstm's operators.

    The decomposed program has core ATen operators only. An LSTM that was exported for one T is unrolled: T steps for
    each layer and direction. Where T is dynamic, it is a `torch.ops.higher_order.scan`. ExecuTorch runs both, the scan
    for a fixed batch size. Gradients of a scan are torch's own, and wrong before torch 2.13.

    Returns:
        A table for `ExportedProgram.run_decompositions`. Decomposing a model that uses a PackedSequence, lengths or
        resets raises RuntimeError.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> program = torch.export.export(torchlstm.LSTM(3, 4), (torch.randn(2, 1, 3),))
        >>> program = program.run_decompositions(torchlstm.export.decompositions())
        >>> any("torchlstm" in str(node.target) for node in program.graph.nodes)
        False
    """
    table: dict[Any, Callable[..., Any]] = torch.export.default_decompositions()
    table[torch.ops.torchlstm.lstm.default] = decompose.lstm
    table[torch.ops.torchlstm.cut.default] = decompose.refuse
    return table
