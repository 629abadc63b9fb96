"""The tests of one class of programs at one size; they run in a process that may crash."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .. import LSTM, use_engine
from ..engines import ENGINES
from ..engines.contract import Engine, Problem, Weights, only_if_asked
from ..engines.cuda import engine as cuda
from ..engines.cuda.classes import Class, class_of, form_of
from ..engines.cuda.device import gpu_of
from ..parity import Case, judge, run_case
from ..parity.observe import Observation, build, draw, observe
from ..parity.run import tf32_allowed
from .wanted import Size

NAME = "qualify"


class Wrong(Exception):
    """A class failed a test; the text says which."""


@contextmanager
def only(kind: Class) -> Iterator[None]:
    """Register an engine `NAME` that runs the CUDA engine by this class's programs only."""

    def run(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
        # With chunks, the parts have classes of their own, each of one direction.
        if problem.checkpoint_every is None:
            found = class_of(
                form_of(problem, cuda.may_round(problem)), problem.batch, kind.loop, gpu_of(problem.device.index)
            )
            if found != kind:
                raise Wrong(f"a problem of the class {found} was posed in its place")
        return cuda.ENGINE.layer(problem._replace(loop=kind.loop), *arguments)

    def layer(
        problem: Problem, x: Tensor, h_0: Tensor, c_0: Tensor, weights: tuple[Weights, ...]
    ) -> tuple[Tensor, ...]:
        if not kind.reverse or problem.checkpoint_every is not None:
            return run(problem, x, h_0, c_0, weights)
        # Only the second direction is tried; the reference engine computes the first.
        alone = problem._replace(directions=1)
        first = ENGINES["reference"].layer(alone, x, h_0[:1], c_0[:1], weights[:1])
        second = run(alone._replace(reverse=True), x, h_0[1:], c_0[1:], weights[1:])
        axes = (1, 0, 0)
        return tuple(torch.cat(pair, axis) for *pair, axis in zip(first, second, axes, strict=True))

    ENGINES[NAME] = Engine(NAME, layer, cuda.ENGINE.refuses, cuda.ENGINE.unavailable, automatic=only_if_asked)
    try:
        with use_engine(NAME):
            yield
    finally:
        del ENGINES[NAME]


@contextmanager
def products(kind: Class) -> Iterator[None]:
    """Set whether torch may round float32 operands of an LSTM's products to TF32, as the class has it."""
    rnn: Any = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    if kind.dtype == "float32":
        rnn.fp32_precision = "tf32" if kind.tf32 else "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision = before


def case_of(kind: Class, size: Size, steps: int, features: int) -> Case:
    """A parity case of a class."""
    hidden, batch = size
    options: dict[str, Any] = {"bidirectional": kind.directions == 2 or kind.reverse}
    if kind.projected:
        options["proj_size"] = max(1, hidden // 2)
    dtype: torch.dtype = getattr(torch, kind.dtype)
    case = Case(
        f"T{steps}-B{batch}-I{features}-H{hidden}", steps=steps, batch=batch, input_size=features, hidden_size=hidden,
        options=options, dtype=dtype, form="unsorted" if kind.ragged else "dense",
    )  # fmt: skip
    # Equal lengths would make a dense batch.
    while (lengths := draw(case).lengths) is not None and len(set(lengths)) == 1:
        case = replace(case, steps=case.steps + 1)
    return case


def parity(kind: Class, size: Size, device: str, shapes: list[Size], times: int = 1, poisoned: bool = True) -> None:
    """Raise Wrong unless outputs and all gradients are as exact as nn.LSTM's, with NaN and Inf where it has them.

    shapes    T and I
    times     how often: a graph that one call captures is replayed by the next
    poisoned  whether to try NaN and Inf
    """
    for steps, features in shapes:
        case = case_of(kind, size, steps, features)
        for _ in range(times):
            if kind.trace:
                _traced(case, device)
            else:
                _judged(case, device)
                _inferred(case, device)
    case = case_of(kind, size, *shapes[0])
    for poison in (float("nan"), float("inf")) if poisoned and not kind.trace else ():
        _judged(replace(case, poison=poison, loss=("output",), frozen=("input", "hx")), device)


def _rounds(device: str) -> bool:
    """Whether an LSTM's products may round float32 to TF32."""
    return device != "cpu" and tf32_allowed("rnn")


def _judged(case: Case, device: str) -> None:
    if _rounds(device):
        case = replace(case, tf32=("rnn",))
    result = run_case(case, device, NAME)
    if result.skipped:
        raise Wrong(f"{case.name}: {result.skipped}")
    if not result.passed and (worst := result.worst):
        what = "" if case.poison is None else f" with {case.poison} in one row"
        raise Wrong(f"{case.name}{what}: {worst.name}: {worst.reason}")


def inferred(case: Case, cls: type[nn.Module], dtype: torch.dtype, device: str) -> Observation:
    """The results of a call without gradients."""
    module, inputs = build(case, cls, cls, dtype).to(device), draw(case).to(torch.device(device), dtype)
    given: Any = inputs.data
    if inputs.lengths is not None:
        given = pack_padded_sequence(given, torch.tensor(inputs.lengths), enforce_sorted=False)
    with torch.no_grad():
        output, (h_n, c_n) = module(given, (inputs.h_0, inputs.c_0))
    return {"output": output if isinstance(output, Tensor) else output.data, "h_n": h_n, "c_n": c_n}


def _inferred(case: Case, device: str) -> None:
    """Judge a call without gradients, which has its own programs since it saves nothing."""
    ours, rival = inferred(case, LSTM, case.dtype, device), inferred(case, nn.LSTM, case.dtype, device)
    for verdict in judge(ours, rival, inferred(case, nn.LSTM, torch.float64, device), case.dtype, _rounds(device)):
        if verdict.reason:
            raise Wrong(f"{case.name} without gradients: {verdict.name}: {verdict.reason}")


def _traced(case: Case, device: str) -> None:
    """Compare a trace with the reference engine's, in float64 and in the same dtype."""

    def seen(engine: str, dtype: torch.dtype) -> Observation:
        with use_engine(engine):
            module: Any = build(case, LSTM, LSTM, dtype).to(device)
            x = draw(case).data.to(device, dtype).requires_grad_()
            lengths = draw(case).lengths
            traced = module.trace(x, lengths=lengths)
            named = _states(traced)
            generator = torch.Generator().manual_seed(5)
            pulls = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in named.values()]
            torch.autograd.backward(list(named.values()), [pull.to(device, dtype) for pull in pulls])
            found = {**named, "grad input": x.grad}
            found |= {f"grad {name}": parameter.grad for name, parameter in module.named_parameters()}
        return {name: None if each is None else each.detach() for name, each in found.items()}

    ours, rival = seen(NAME, case.dtype), seen("reference", case.dtype)
    for verdict in judge(ours, rival, seen("reference", torch.float64), case.dtype, _rounds(device)):
        if verdict.reason:
            raise Wrong(f"trace of {case.name}: {verdict.name}: {verdict.reason}")


def _states(traced: Any) -> dict[str, Tensor]:
    """All tensors of a `trace.Trace` by name."""
    named = {"output": traced.output, "h_n": traced.state[0], "c_n": traced.state[1]}
    for layer in traced.layers:
        for direction, states in enumerate(layer):
            named |= {f"{name} of direction {direction}": each for name, each in states._asdict().items()}
    return named


def calls(case: Case, device: str, trace: bool) -> Iterator[Observation]:
    """Repeat the same call for ever; yield its results and gradients."""
    module: Any = build(case, LSTM, LSTM, case.dtype).to(device)
    inputs = draw(case)
    place = torch.device(device)
    while True:
        module.zero_grad(set_to_none=True)
        if trace:
            named = _states(module.trace(inputs.data.to(place), lengths=inputs.lengths))
            torch.stack([each.float().square().sum() for each in named.values()]).sum().backward()
            gradients = {f"grad {name}": parameter.grad for name, parameter in module.named_parameters()}
            yield {name: each.detach() for name, each in named.items()} | gradients
        else:
            yield observe(module, case, inputs.to(place, case.dtype))


def same_bits(
    found: Iterator[Observation],
    repeats: int,
    before: Callable[[int], None] = lambda _: None,
    what: str = "",
    warm: int = 0,
) -> None:
    """Raise Wrong unless a call has the same bits every time.

    before  called before each call with its number, for example to keep the GPU busy
    """
    # Let everything be compiled, captured and measured that happens only once.
    for _ in range(warm):
        next(found)
    first = next(found)
    for number in range(1, repeats):
        before(number)
        compare(first, next(found), f"call {number} of {repeats}{what}")


def compare(first: Observation, other: Observation, what: str) -> None:
    """Raise Wrong unless two observations have the same bits."""
    for name, tensor in first.items():
        again = other[name]
        if tensor is None or again is None:
            if tensor is not again:
                raise Wrong(f"{what}: {name} is None")
        elif not torch.equal(bits_of(tensor), bits_of(again)):
            raise Wrong(f"{what}: other bits in {name}")


def bits_of(tensor: Tensor) -> Tensor:
    """The bits of a tensor as integers, so that equal NaNs are equal, and 0.0 is not -0.0."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.itemsize])
