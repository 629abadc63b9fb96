"""Which engine computes a layer: automatic choice, `use_engine`, `engines`."""

import os
import warnings
from collections.abc import Iterator
from itertools import chain
from threading import get_ident

import torch
from torch import Tensor

from ..engines import ENGINES
from ..engines.contract import Dense, Engine, Problem, Recorder, Weights
from ..engines.exported import onnx
from ..engines.shared.access import DIRECT, access_of, as_plain
from ..engines.shared.torch_private import profiler

_AUTOMATIC = "auto"
_NATIVE = (_AUTOMATIC, "cpu")  # with which the fast path may be taken

# The name of the forced engine, or "auto".  Process-wide, like the flags of torch.backends.
_forced = os.environ.get("TORCHLSTM_ENGINE") or _AUTOMATIC

# Whether this process has been warned that the CPU engine is missing.  Not read while a compiler records the call.
_told = False

# The recorders of the next layers of a thread, by its id; see `record_layers`.
_recorders: dict[int, Iterator[Recorder | None]] = {}


def engines() -> dict[str, str | None]:
    """Return the engines by name, in order of preference.

    Returns:
        For each name None, or the reason why this engine is not available here.

    Examples:
        >>> import torchlstm
        >>> sorted(torchlstm.engines())
        ['cpu', 'cuda', 'reference']
        >>> torchlstm.engines()["reference"] is None
        True
    """
    return {name: engine.unavailable() for name, engine in ENGINES.items()}


def forced_engine() -> str | None:
    """Return the engine in force by `use_engine` or the variable TORCHLSTM_ENGINE.

    Returns:
        Its name, or None for automatic choice.

    Examples:
        >>> from torchlstm.dispatch import forced_engine, use_engine
        >>> with use_engine("reference"):
        ...     forced_engine()
        'reference'
    """
    return None if _forced == _AUTOMATIC else _forced


def takes_native() -> bool:
    """Whether a plain CPU call may take the fast path: the CPU engine would be chosen, and no recorder is set."""
    return _forced in _NATIVE and not _recorders and next(iter(ENGINES)) == "cpu"


class EngineRefusal(RuntimeError):
    """The engine that was asked for by name cannot run this module on this input; the message says why.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> lstm = torchlstm.LSTM(2, 3, dtype=torch.complex64)
        >>> try:
        ...     with torchlstm.use_engine("cpu"):
        ...         lstm(torch.zeros(1, 1, 2, dtype=torch.complex64))
        ... except RuntimeError as error:  # EngineRefusal is one
        ...     print("the CPU engine cannot run it")
        the CPU engine cannot run it
    """


class use_engine:
    """Compute every torchlstm module of this process with one engine, from now on or inside a `with`.

    An engine that is asked for and cannot run a module raises `EngineRefusal` with its reason. The variable
    TORCHLSTM_ENGINE sets the engine that a process starts with.

    Args:
        name: The name of an engine, or "auto" for the first that can run a module.

    Raises:
        ValueError: There is no engine of this name.
        RuntimeError: The engine is not available here.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> with torchlstm.use_engine("reference"):
        ...     output, state = torchlstm.LSTM(8, 16)(torch.randn(10, 4, 8))
        >>> before = torchlstm.use_engine("auto")
    """

    def __init__(self, name: str) -> None:
        global _forced
        if name != _AUTOMATIC:
            _present(name)
        self._before, _forced = _forced, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        global _forced
        _forced = self._before


def _present(name: str) -> Engine:
    """The engine of this name; raises if it is unknown or not available."""
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; engines: {', '.join([*ENGINES, _AUTOMATIC])}")
    if reason := ENGINES[name].unavailable():
        raise RuntimeError(f"engine {name!r} is not available: {reason}")
    return ENGINES[name]


def refusal(engine: Engine, problem: Problem) -> str | None:
    """Why this engine cannot run this problem, or None."""
    return engine.unavailable() or engine.refuses(problem)


def support_of(problem: Problem) -> dict[str, str]:
    """For each engine, in order of preference, in words: does it run this problem, and would it be chosen?"""

    def answer(engine: Engine) -> str:
        if reason := refusal(engine, problem):
            return f"refuses: {reason}"
        chosen = engine.automatic(problem)
        return f"can run it, {chosen}" if isinstance(chosen, str) else "can run it"

    return {name: answer(engine) for name, engine in ENGINES.items()}


def choose(problem: Problem) -> tuple[Engine, Problem]:
    """The engine for this problem, and the problem as that engine runs it.

    This is the forced engine, or the first in order of preference that does not refuse and that agrees to be chosen
    automatically (`Engine.automatic`).
    """
    if _forced != _AUTOMATIC:
        engine = _present(_forced)
        if reason := engine.refuses(problem):
            able = ", ".join(e.name for e in ENGINES.values() if refusal(e, problem) is None)
            raise EngineRefusal(f"engine {_forced!r} cannot run this LSTM: {reason}; engines that can: {able}")
        return engine, problem
    for engine in ENGINES.values():
        if refusal(engine, problem) is None:
            chosen = engine.automatic(problem)
            if not isinstance(chosen, str):
                return engine, chosen
    reasons = "; ".join(f"{name} {answer}" for name, answer in support_of(problem).items())
    raise RuntimeError(f"no engine can run this LSTM: {reasons}")


def record_layers(recorders: Iterator[Recorder | None] | None) -> None:
    """Give each layer that this thread runs from now on the next of these recorders; None ends that."""
    if recorders is None:
        _recorders.pop(get_ident(), None)
    else:
        _recorders[get_ident()] = recorders


def layer(problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]) -> tuple[Tensor, ...]:
    """One layer, all its directions, on the engine chosen for it; see `contract.Layer`.

    problem  from shapes and options; its `access` is determined here
    """
    if isinstance(problem.rows, Dense) and problem.rows.steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    access = access_of((x, h_0, c_0, *chain.from_iterable(weights)))
    if access is not DIRECT:
        if access.subclass:
            return _layer_of_subclasses(problem, x, h_0, c_0, weights)
        problem = problem._replace(access=access)
    if onnx.exporting(problem):
        return onnx.layer(problem, x, h_0, c_0, weights)
    engine, problem = choose(problem)
    if engine.name == "reference" and problem.access.direct and not _told:
        _tell_of_missing_kernel(problem)
    if _recorders and (mine := _recorders.get(get_ident())):
        problem = problem._replace(recorder=next(mine))
    if not profiler._is_profiler_enabled or torch.compiler.is_compiling():
        return engine.layer(problem, x, h_0, c_0, weights)
    with torch.profiler.record_function(f"torchlstm::layer {engine.name}"):
        return engine.layer(problem, x, h_0, c_0, weights)


def _tell_of_missing_kernel(problem: Problem) -> None:
    """Warn, once in a process, if the CPU engine would run this layer but is not available, and none is forced."""
    global _told
    cpu = ENGINES.get("cpu")
    reason = cpu.unavailable() if cpu else None
    if cpu is None or reason is None or forced_engine() or cpu.refuses(problem):
        return
    _told = True
    warnings.warn(
        f"torchlstm's CPU kernel is not available: {reason}.  LSTMs on the CPU run as a loop in torch operations, "
        "which is slower, most of all for few sequences; `torchlstm.use_engine('reference')` or "
        "TORCHLSTM_ENGINE=reference asks for that loop without this warning.",
        RuntimeWarning,
        stacklevel=2,
    )


def _layer_of_subclasses(
    problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
) -> tuple[Tensor, ...]:
    """`layer` with some tensors of subclasses of Tensor: their `__torch_function__` sees it as one operation.

    By default, `__torch_function__` gives the results the subclass's type.
    """
    given = [tensor for tensor in (x, h_0, c_0, *chain.from_iterable(weights)) if tensor is not None]
    if torch.overrides.has_torch_function(given):
        result: tuple[Tensor, ...]
        result = torch.overrides.handle_torch_function(layer, given, problem, x, h_0, c_0, weights)
        return result
    plain = tuple(tuple(None if tensor is None else as_plain(tensor) for tensor in each) for each in weights)
    return layer(problem, as_plain(x), as_plain(h_0), as_plain(c_0), plain)  # type: ignore[arg-type]
