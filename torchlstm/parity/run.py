"""Runs parity cases on an engine: nn.LSTM in float64, nn.LSTM, torchlstm, and the verdicts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import LSTM, EngineRefusal, LSTMCell, use_engine
from .cases import CASES, Case
from .judge import Verdict, judge
from .observe import Observation, build, draw, observe


class Result(NamedTuple):
    """The result of one case on one engine and device.

    Attributes:
        case: The case.
        verdicts: One `Verdict` for every output and gradient.
        skipped: Why the case was not run: the engine's refusal, or a limit of the device; else None.
        note: How nn.LSTM had to be run, if not directly; else None.
    """

    case: Case
    verdicts: list[Verdict]
    skipped: str | None = None
    note: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the case ran and no tensor failed.

        Returns:
            True or False; False for a skipped case.
        """
        return self.skipped is None and all(verdict.reason is None for verdict in self.verdicts)

    @property
    def worst(self) -> Verdict | None:
        """The tensor that failed, or came closest to its bound.

        Returns:
            Its `Verdict`, or None for a skipped case.
        """
        return max(self.verdicts, key=lambda v: (v.reason is not None, v.used), default=None)

    def row(self) -> dict[str, Any]:
        """Return the result as plain data, for JSON.

        Returns:
            A dictionary of the case's name, the outcome, and the errors and bounds of every tensor.
        """
        outcome = "skip" if self.skipped else "pass" if self.passed else "fail"
        return {
            "case": self.case.name,
            "outcome": outcome,
            "skipped": self.skipped,
            "note": self.note,
            "tensors": {v.name: {"error": v.error, "nn_error": v.rival_error, "bound": v.bound, "reason": v.reason}
                        for v in self.verdicts},
        }  # fmt: skip


# The backends that may round products of float32 to TF32 on CUDA: nn.LSTM's, and the one of nn.LSTMCell and all else.
_BACKENDS: dict[str, Any] = {"rnn": torch.backends.cudnn.rnn, "matmul": torch.backends.cuda.matmul}


def tf32_allowed(what: str) -> bool:
    """Say whether "rnn" or "matmul" may round to TF32 now. Unlike `allow_tf32`, this can be asked after any setting."""
    return bool(_BACKENDS[what].fp32_precision == "tf32")


@contextmanager
def tf32(allowed: tuple[str, ...]) -> Iterator[None]:
    """Let products of float32 on CUDA round to TF32 in the named backends, "rnn" or "matmul", and in no other."""
    before = {name: backend.fp32_precision for name, backend in _BACKENDS.items()}
    try:
        for name, backend in _BACKENDS.items():
            backend.fp32_precision = "tf32" if name in allowed else "ieee"
        yield
    finally:
        for name, backend in _BACKENDS.items():
            backend.fp32_precision = before[name]


def run_case(case: Case, device: str = "cpu", engine: str = "auto", large: bool = False) -> Result:
    """Run one case and judge it.

    Args:
        case: The case, from `CASES` or your own.
        device: The device, such as "cpu" or "cuda".
        engine: The engine that computes torchlstm's results, or "auto".
        large: Run on a CPU also the cases that are slow there.

    Returns:
        A `Result`. A refusal by the forced engine is a skip; any other error is raised.

    Raises:
        RuntimeError: The engine is not available here.
        ValueError: There is no engine of this name.

    Examples:
        >>> from torchlstm.parity import Case, run_case
        >>> run_case(Case("small"), engine="reference").passed
        True
    """
    if device == "cpu" and case.large and engine == "cuda":
        return Result(case, [], "too large for the interpreter; run on a GPU")
    if device == "cpu" and case.large and not large:
        return Result(case, [], "slow on a CPU; run on a GPU, or by itself with --case")
    if device == "cpu" and case.tf32:
        return Result(case, [], "TF32 is a GPU's; run on a GPU")
    with nullcontext() if device == "cpu" else tf32(case.tf32):
        return _run_case(case, device, engine)


def _run_case(case: Case, device: str, engine: str) -> Result:
    if device != "cpu" and case.dropout not in (0, 1):
        return Result(case, [], "cuDNN draws dropout masks of its own: compared at 0 and 1 only")
    place = torch.device(device)
    inputs = draw(case)
    wide = torch.complex128 if case.dtype.is_complex else torch.float64

    def run(lstm: type[nn.Module], cell: type[nn.Module], this: Case, dtype: torch.dtype, on: str) -> Observation:
        module = build(this, lstm, cell, dtype).to(on)
        seen = observe(module, this, inputs.to(torch.device(on), dtype))
        return {name: None if tensor is None else tensor.to(place) for name, tensor in seen.items()}

    with use_engine(engine):
        try:
            ours = run(LSTM, LSTMCell, case, case.dtype, device)
        except EngineRefusal as refusal:
            return Result(case, [], str(refusal))

    def theirs(this: Case, dtype: torch.dtype) -> tuple[Observation | None, str | None]:
        return _first_that_runs(lambda on: run(nn.LSTM, nn.LSTMCell, this, dtype, on), device, this.autocast)

    truth, _ = theirs(replace(case, autocast=None), wide)
    assert truth is not None
    rival, note = theirs(case, case.dtype)
    verdicts = judge(ours, rival, truth, case.autocast or case.dtype, device != "cpu" and case.rounds_to_tf32)
    return Result(case, verdicts, None, note)


def _first_that_runs(
    run: Callable[[str], Observation], device: str, autocast: torch.dtype | None
) -> tuple[Observation | None, str | None]:
    """Return nn.LSTM's results, and a note if they come by a detour: without cuDNN, or on the CPU.

    cuDNN refuses some of what nn.LSTM can do elsewhere, such as gradients in eval mode, and under autocast computes in
    float16 for every dtype. The result is None if nothing is left to compare with, which is allowed for autocast only.
    """
    ways: list[tuple[str, str, AbstractContextManager[Any]]] = [("", device, nullcontext())]
    if device != "cpu":
        ways.append((": compared with torch's own CUDA kernels", device, torch.backends.cudnn.flags(enabled=False)))
        ways += [] if autocast else [(": compared with the CPU", "cpu", nullcontext())]
    why: Exception | None = None
    for told, on, context in ways:
        try:
            with context:
                seen = run(on)
        except RuntimeError as error:
            why = why or error
            continue
        output = seen.get("output")
        if autocast is None or output is None or output.dtype == autocast:
            return seen, None if why is None else f"nn.LSTM cannot run this here ({str(why)[:60]}...){told}"
        why = why or RuntimeError(f"its output is {output.dtype}, asked for {autocast}")
    # This also happens on a CPU: oneDNN has no autocast arithmetic on processors without the instructions.
    assert why is not None
    if autocast is None:
        raise why
    return None, f"nn.LSTM cannot run this here ({str(why)[:60]}...): judged against float64 alone"


def select(pattern: str | None) -> list[Case]:
    """Select cases by name.

    Args:
        pattern: A shell pattern that names match, or text that they contain; None for all.

    Returns:
        The cases, in the order of `CASES`.

    Examples:
        >>> from torchlstm.parity import CASES, select
        >>> len(select(None)) == len(CASES)
        True
    """
    if pattern is None:
        return list(CASES.values())
    return [case for name, case in CASES.items() if fnmatch(name, pattern) or pattern in name]
