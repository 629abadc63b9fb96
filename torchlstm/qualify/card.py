"""Tests that need a real GPU: a busy second stream, two layers at once, a captured graph, and times."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .. import LSTM, use_engine
from ..engines.cuda.classes import Class
from ..engines.shared.torch_private import sleep
from ..parity import Case, judge
from ..parity.observe import Observation, build, draw
from .evidence import NAME, Wrong, calls, compare
from .speed import by_events, in_turns, row

# Products of 2048 x 2048 that are queued on another stream before a call: some milliseconds on a large GPU.
_QUEUED = 20
# Clock cycles for which both streams sleep first, so that their layers start together: some milliseconds.
_ASLEEP = 10_000_000
_TOGETHER = 10


class Load:
    """Work on another stream, so that the GPU is busy when a call launches."""

    def __init__(self, device: str) -> None:
        self._stream, self._operand = torch.cuda.Stream(device), torch.randn(2048, 2048, device=device)

    def __call__(self, _: int = 0) -> None:
        """Queue some milliseconds of products."""
        with torch.cuda.stream(self._stream):
            for _ in range(_QUEUED):
                torch.mm(self._operand, self._operand)


def side_by_side(case: Case, kind: Class, device: str) -> None:
    """Raise Wrong unless two layers that run at once on two streams have the bits that they have alone."""
    layers = [calls(each, device, kind.trace) for each in (case, case)]
    alone = [next(layer) for layer in layers]
    streams = [torch.cuda.Stream(device) for _ in layers]
    torch.cuda.synchronize(device)
    for number in range(_TOGETHER):
        for stream in streams:
            with torch.cuda.stream(stream):
                sleep(_ASLEEP)
        found: list[Observation] = []
        for stream, layer in zip(streams, layers, strict=True):
            with torch.cuda.stream(stream):
                found.append(next(layer))
        torch.cuda.synchronize(device)
        for one, other in zip(alone, found, strict=True):
            compare(one, other, f"two layers on two streams at once, try {number}")


def replayed(case: Case, device: str) -> None:
    """Raise Wrong unless a CUDA graph of a training step, replayed on new numbers, computes what a call computes."""
    module: Any = build(case, LSTM, LSTM, case.dtype).to(device)
    inputs = draw(case).to(torch.device(device), case.dtype)
    x = inputs.data
    if inputs.lengths is not None:
        packed = pack_padded_sequence(x, torch.tensor(inputs.lengths), enforce_sorted=False)
        x, rest = packed.data.clone(), packed[1:]
    x.requires_grad_()

    def run() -> list[Tensor]:
        given = x if inputs.lengths is None else type(packed)(x, *rest)
        output, (h_n, c_n) = module(given, (inputs.h_0, inputs.c_0))
        results = [output if isinstance(output, Tensor) else output.data, h_n, c_n]
        pulls = [torch.ones_like(each) for each in results]
        return [*results, *torch.autograd.grad(results, [x, *module.parameters()], pulls)]

    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    names = ["output", "h_n", "c_n", "grad input", *(f"grad {name}" for name, _ in module.named_parameters())]
    for number in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize(device)
        ours: Observation = {name: each.clone() for name, each in zip(names, captured, strict=True)}
        true: Observation = {name: each.double() for name, each in zip(names, run(), strict=True)}
        for verdict in judge(ours, None, true, case.dtype):
            if verdict.reason:
                raise Wrong(f"replay {number} of a CUDA graph: {verdict.name}: {verdict.reason}")


def timed(
    case: Case,
    kind: Class,
    device: str,
    quick: bool,
    clock: Callable[[Callable[[], Any]], float] = by_events,
) -> dict[str, float]:
    """Time a step of a case: see `speed.row`."""
    least, seconds = (7, 0.2) if quick else (15, 0.6)
    options: dict[str, Any] = {"checkpoint_every": case.steps} if kind.reverse else {}
    inputs = draw(case).to(torch.device(device), case.dtype)
    x: Any = inputs.data
    if inputs.lengths is None or kind.trace:
        x.requires_grad_()
    else:
        x = pack_padded_sequence(x, torch.tensor(inputs.lengths), enforce_sorted=False)
        x.data.requires_grad_()
    trained, inferred = {}, {}
    for name, cls in (("ours", LSTM), ("reference", LSTM), ("nn", nn.LSTM)):
        module: Any = build(case, cls, cls, case.dtype).to(device)
        if cls is LSTM:
            vars(module).update(options)
        forced = NAME if name == "ours" else "reference"

        def infer(module: Any = module, forced: str = forced) -> list[Tensor]:
            with use_engine(forced):
                if kind.trace and isinstance(module, LSTM):
                    traced = module.trace(x, lengths=inputs.lengths)
                    return [traced.output, *(each for layer in traced.layers for each in layer[0])]
                output, (h_n, c_n) = module(x)
            return [output if isinstance(output, Tensor) else output.data, h_n, c_n]

        def train(module: Any = module, infer: Callable[[], list[Tensor]] = infer) -> None:
            module.zero_grad(set_to_none=True)
            results = infer()
            torch.autograd.backward(results, [torch.ones_like(each) for each in results])

        trained[name], inferred[name] = train, torch.no_grad()(infer)
    training = in_turns(trained, clock, least, seconds)
    return row(case.steps, training, in_turns(inferred, clock, least, seconds / 2))
