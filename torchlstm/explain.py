"""Explains which engine computes each layer of a module, and why."""

import math
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .call.dispatch import choose, forced_engine, support_of
from .call.frozen import compute_dtype, name_of, why_float
from .call.packing import Packed, pack
from .call.plan import Form, Plan, plan_cell, plan_lstm, plan_stack
from .call.precision import autocasts
from .call.segments import Segments
from .cell import LSTMCell
from .cells.stack import CellStack
from .engines.contract import Dense, Problem, problem_of
from .engines.cpu import frozen
from .engines.cuda import told
from .engines.cuda.engine import may_round
from .engines.shared.access import DIRECT, access_of
from .frozen import Frozen, FrozenLSTM
from .lazy import LazyLSTM
from .lstm import LSTM


class Decision(NamedTuple):
    """The choice of an engine for one layer.

    Attributes:
        layer: The number of the layer, from 0.
        problem: What the engines are asked: sizes, dtype, device and options.
        engine: The name of the engine, or None if no engine can run it.
        error: The error that the call would raise, or None.
        support: The answer of each engine, in order of preference.
    """

    layer: int
    problem: Problem
    engine: str | None
    error: str | None
    support: dict[str, str]

    @property
    def standings(self) -> dict[str, str]:
        """The name that 0.1.0 had for `support`.

        Returns:
            `support`.
        """
        return self.support

    def __str__(self) -> str:
        problem = self.problem
        rows = f"dense T={problem.rows.steps}" if isinstance(problem.rows, Dense) else "ragged"
        sizes = f"B={problem.batch} I={problem.input_size} H={problem.hidden_size}"
        sizes += f" R={problem.proj_size}" if problem.proj_size else ""
        lines = [f"layer {self.layer}: {rows} {sizes} D={problem.directions} {problem.dtype} on {problem.device}"]
        if problem.trace:
            lines[0] += ", traced" + " in torch operations, step by step" * (self.engine == "reference")
        if problem.checkpoint_every:
            lines[0] += f", checkpoint_every={problem.checkpoint_every}"
        for name, answer in self.support.items():
            lines.append(f"  {'->' if name == self.engine else '  '} {name}: {answer}")
        return "\n".join([*lines, *([f"  error: {self.error}"] if self.error else [])])


class Loop(NamedTuple):
    """A layer of a `CellStack` that runs as a loop in torch operations, because no engine computes it.

    Attributes:
        layer: The number of the layer, from 0.
        reason: Why no engine computes it.
        engine: Always None.
    """

    layer: int
    reason: str
    engine: None = None

    def __str__(self) -> str:
        return f"layer {self.layer}: a loop in torch operations: {self.reason}"


class FrozenLayer(NamedTuple):
    """A layer of a frozen module that the CPU engine computes from packed weights.

    Attributes:
        layer: The number of the layer, from 0.
        isa: The instruction set that the weights are packed for.
        kernel: The kernel that reads them.
        engine: Always "cpu".
    """

    layer: int
    isa: str
    kernel: str
    engine: str = "cpu"

    def __str__(self) -> str:
        return f"layer {self.layer}: packed for {self.isa}: {self.kernel}"


class Explanation(NamedTuple):
    """The result of `explain`; `print` shows it as text.

    Attributes:
        forced: The engine in force by `use_engine`, or None for automatic choice.
        decisions: One entry for each layer.
        segments: How lengths and resets, or a jagged input, are computed, or None.
        frozen: The format of a frozen module's weights and how they are used, or None.
    """

    forced: str | None
    decisions: list[Decision | Loop | FrozenLayer]
    segments: str | None = None
    frozen: str | None = None

    def __str__(self) -> str:
        how = f"engine {self.forced!r} is forced" if self.forced else "automatic choice, first that can run it"
        more = [text for text in (self.frozen, self.segments) if text]
        return "\n".join([how, *more, *map(str, self.decisions)])


def explain(
    module: LSTM | LSTMCell | CellStack,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    trace: bool = False,
) -> Explanation:
    """Say which engine runs each layer of a torchlstm module for an input, and why. Nothing is computed.

    For a frozen module, say the format of its weights and which kernel reads them packed, or why none does.

    Args:
        module: A torchlstm LSTM, LSTMCell, FrozenLSTM or FrozenLSTMCell, or a stack of cells.
        input: An input, as the module takes it.
        hx: The initial state, as the module takes it.
        lengths: As `LSTM.forward` takes it.
        resets: As `LSTM.forward` takes it.
        trace: Explain `LSTM.trace` instead of the call. The engines other than `reference` trace at kernel speed.

    Returns:
        An `Explanation`, which prints as text.

    Raises:
        TypeError: The module is of another class (`swap` it first), or takes no lengths, resets or trace.
        RuntimeError: The module is a LazyLSTM before its first call.

    Examples:
        >>> import torch
        >>> import torchlstm
        >>> with torchlstm.use_engine("reference"):
        ...     found = torchlstm.explain(torchlstm.LSTM(8, 16), torch.randn(10, 4, 8))
        >>> found.forced, [decision.engine for decision in found.decisions]
        ('reference', ['reference'])
    """
    if isinstance(module, CellStack):
        if lengths is not None or resets is not None or trace:
            raise TypeError("explain: lengths, resets and trace are for an LSTM, got a CellStack")
        packed = pack(plan_stack(module, input, hx), input, hx)
        return Explanation(forced_engine(), [_stack_decision(module, k, packed) for k in range(module.num_layers)])
    if isinstance(module, LazyLSTM) and module.has_uninitialized_params():
        raise RuntimeError("explain: a LazyLSTM has no input_size, and runs on no engine, before its first call")
    if isinstance(module, Frozen):
        return _explain_frozen(module, input, hx, lengths, resets, trace)
    if isinstance(module, LSTM):
        plan = plan_lstm(module, input, hx, lengths, resets, trace=trace)
    elif isinstance(module, LSTMCell):
        _check_cell(lengths, resets, trace)
        plan = plan_cell(module, input, hx)  # type: ignore[arg-type]
    else:
        raise TypeError(f"explain expects a torchlstm.LSTM or LSTMCell, got {type(module).__qualname__}: swap it first")
    packed = pack(plan, input, hx, lengths, resets)
    problems = _problems(plan, packed, module)
    decisions: list[Any] = [_decide(index, problem) for index, problem in enumerate(problems)]
    return Explanation(forced_engine(), decisions, _described(plan, packed))


def _explain_frozen(module: Any, input: Any, hx: Any, lengths: Any, resets: Any, trace: bool) -> Explanation:
    if isinstance(module, FrozenLSTM):
        plan, packed, _ = module._begin(input, hx, lengths, resets, None, trace)
    else:
        _check_cell(lengths, resets, trace)
        plan, packed, _ = module._begin(input, hx)
    store: Any = module._store
    text = f"frozen, weights in {name_of(store)}"
    decisions: list[Any]
    dtype = compute_dtype(store, plan)
    why = why_float(store, plan, dtype) or (
        None if access_of((packed.data,)) is DIRECT else "its tensors are no memory"
    )
    if why is None:
        kernel = frozen.kernel_name(store.packed, packed.rows.steps, packed.batch)
        decisions = [FrozenLayer(k, store.packed.isa, kernel) for k in range(len(plan.problems))]
        text += ", packed"
    else:
        problems = (each._replace(dtype=dtype) for each in _problems(plan, packed, module))
        decisions = [_decide(k, problem) for k, problem in enumerate(problems)]
        text += f", computed in {dtype}: {why}"
    return Explanation(forced_engine(), decisions, _described(plan, packed), text)


def _check_cell(lengths: Any, resets: Any, trace: bool) -> None:
    if lengths is not None or resets is not None or trace:
        raise TypeError("explain: lengths, resets and trace are for an LSTM, got an LSTMCell")


def _described(plan: Plan, packed: Packed) -> str | None:
    if plan.segmented:
        return _describe(packed.segments)
    return _describe(packed.segments, "jagged input") if plan.form is Form.JAGGED else None


def _describe(segments: Segments | None, what: str = "lengths and resets") -> str:
    """Say how lengths and resets, or a jagged input, are computed."""
    if segments is None:
        return "lengths and resets: they change nothing, the input is computed as it is"
    if segments.order is None:
        return "resets: at the first step only, the input is computed as it is"
    count, steps = segments.enter.shape[1], segments.rows.steps
    rows, all_rows = segments.order.shape[0], math.prod(segments.shape)
    return f"{what}: {count} sequences of at most {steps} steps, {rows} rows out of {all_rows}"


def _decide(index: int, problem: Problem) -> Decision:
    try:
        engine, chosen = choose(problem)
        support = support_of(problem)
        if chosen.loop is not None and (credit := told.credit(problem, may_round(problem))):
            support[engine.name] += f", {credit}"
        return Decision(index, problem, engine.name, None, support)
    except RuntimeError as error:
        return Decision(index, problem, None, str(error), support_of(problem))


def _stack_decision(module: CellStack, k: int, packed: Packed) -> Decision | Loop:
    x, weights, name = packed.data, module.as_lstm(k), type(module.layer_cells(k)[0]).__name__
    if weights is None:
        return Loop(k, f"engines compute plain LSTMs, not a {name}")
    if autocasts(x):
        return Loop(k, f"under autocast torch chooses a dtype for every operation of a {name}")
    state = x.new_empty(module.directions, packed.batch, 0)
    access = access_of((x, *chain.from_iterable(weights)))
    return _decide(k, problem_of(x, state, weights, packed.rows)._replace(access=access, cell=True))


def _problems(plan: Plan, packed: Packed, module: nn.Module) -> list[Problem]:
    """The problems that a planned call poses to the engines, layer by layer."""
    access = access_of((packed.data, *module.parameters()))
    return [each._replace(rows=packed.rows, batch=packed.batch, access=access) for each in plan.problems]
