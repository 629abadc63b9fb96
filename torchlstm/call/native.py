"""The fast path: a plain call (plain CPU tensors, dense rows, no mode or transform active) runs entirely in C."""

from typing import Any

import torch
from torch.compiler import is_compiling

from ..engines.cpu import engine, training
from ..engines.shared import threads, torch_private
from . import dispatch

_kernel: Any = engine._kernel


def _connect() -> bool:
    """Give the extension the functions of torch that it calls; False if there is no extension."""
    if _kernel is None or engine.ENGINE.unavailable() is not None:
        return False
    functions = {
        "is_grad_enabled": torch.is_grad_enabled,
        "is_tracing": torch_private.is_tracing,
        "transforms": torch_private.peek_interpreter_stack,
        "modes": torch_private.len_torch_dispatch_stack,
        "function_modes": torch_private.len_torch_function_stack,
        "is_autocast": torch_private.is_any_autocast_enabled,
        "count_threads": threads.count,
        "empty_like": torch.empty_like,
        "forward_ad": vars(torch_private.forward_ad),
        "profiler": vars(torch_private.profiler),
        "engine": vars(engine),
        "isas": engine.ISAS,
    }
    _kernel.connect(functions)
    return True


_connected = _connect()
_apply = training.Training.apply


def call_lstm(module: Any, input: Any, hx: Any) -> Any:
    """What an LSTM returns for this call, or None if the call must take the path in Python.

    Bad input raises nothing here: it returns None, and the checks of the path in Python raise.
    """
    if is_compiling() or not _connected or not dispatch.takes_native():
        return None
    return _kernel.lstm(module, input, hx, _apply)


def call_cell(module: Any, input: Any, hx: Any) -> Any:
    """As `call_lstm`, of an LSTMCell."""
    if is_compiling() or not _connected or not dispatch.takes_native():
        return None
    return _kernel.cell(module, input, hx, _apply)
