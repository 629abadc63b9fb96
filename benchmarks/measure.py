"""One workload measured: parity first, then the time of both modes against every peer, then memory."""

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from torchlstm import LSTM, LSTMCell, explain
from torchlstm.parity.observe import Inputs
from torchlstm.parity.timing import Pairs, interleave

from .calls import Call, arguments, call_of, module_of
from .gate import outcome
from .limit import threads_used
from .memory import measure_memory
from .peers import PEERS, Peer, prepare
from .record import Mode, Row, Timing
from .unfit import Unfit, first_line
from .workloads import MODES, Workload, is_sweep

# A measurement lasts at least this long: 100 calls of 10 us, the shortest.  The clock takes 0.1 us, and the first
# call after the other module's misses the nearest cache.
SHORTEST = 1e-3

# Blocks of a peer that is timed apart.
_ROUNDS = 5

# A point of a sweep gets less time: it is one of many on a curve.
_SWEEP_SECONDS = 0.3


@dataclass(frozen=True)
class Settings:
    """How a run measures."""

    device: str = "cpu"
    threads: int = 1
    engine: str = "auto"
    peers: tuple[str, ...] = ("nn",)
    seconds: float = 1.0  # of one peer in one mode on one workload
    quick: bool = False
    memory: bool = True


def measure(workload: Workload, settings: Settings, peak: float | None) -> Row:
    """A workload's row.

    peak  GF/s that its speed is a share of, or None
    """
    small = workload.shrunk() if settings.quick else workload
    result, why = outcome(small, settings.device)
    row: Row = {
        "workload": workload.name,
        "group": workload.group,
        "sizes": small.sizes(),
        "flops": {mode: small.flops(mode) for mode in MODES},
        "intensity": {mode: small.flops(mode) / small.traffic(mode) for mode in MODES},
        "engine": "",
        "outcome": result,
        "parity": why,
        "modes": {},
        "memory": None,
    }
    if result != "measured":
        return row
    if is_sweep(small.group):
        settings = replace(settings, peers=("nn",), seconds=min(settings.seconds, _SWEEP_SECONDS))
    inputs = small.inputs().to(torch.device(settings.device), small.case.dtype)
    ours = module_of(small, True, settings.device)
    row["engine"] = _engine(ours, inputs)
    for mode in MODES:
        row["modes"][mode] = _mode(small, inputs, ours, mode, row["engine"], settings, peak)
    if settings.memory and small.weighs_memory and not is_sweep(small.group):
        row["memory"] = measure_memory(workload.name, settings.device, settings.threads, settings.engine)
    return row


def _engine(module: nn.Module, inputs: Inputs) -> str:
    """The engines of the module's layers."""
    assert isinstance(module, LSTM | LSTMCell)
    input, hx, _ = arguments(inputs, grad=False)
    return ", ".join(
        sorted({str(decision.engine) for decision in explain(module, input, hx, **inputs.keywords).decisions})
    )


def _mode(
    workload: Workload,
    inputs: Inputs,
    ours: nn.Module,
    mode: str,
    engine: str,
    settings: Settings,
    peak: float | None,
) -> Mode:
    with torch.no_grad() if mode == "inference" else nullcontext():
        call = call_of(mode, ours, inputs)
        peers = {
            name: _against(PEERS[name], workload, inputs, call, mode, settings)
            for name in settings.peers
            if mode in PEERS[name].modes
        }
        seconds = (peers["nn"]["ours_ms"] or 1e3 * _alone(call, settings, settings.seconds)) / 1e3
        call()  # ours last: the kernel tells of its latest call
    gflops = workload.flops(mode) / seconds / 1e9
    return {
        "ours_ms": 1e3 * seconds,
        "gflops": gflops,
        "peak": gflops / peak if peak else None,
        "threads": threads_used() if engine == "cpu" else None,
        "peers": peers,
    }


def _against(peer: Peer, workload: Workload, inputs: Inputs, ours: Call, mode: str, settings: Settings) -> Timing:
    """Time a peer and ours in turns."""
    note = None
    try:
        if peer.apart and settings.threads > 1:
            pairs = apart(lambda: prepare(peer, workload, inputs, mode, settings.device).call, ours, settings)
        else:
            theirs = prepare(peer, workload, inputs, mode, settings.device)
            pairs, note = _pairs(peer, theirs.call, ours, settings), theirs.note
    except Unfit as unfit:
        return {"ms": None, "ours_ms": None, "ratio": None, "low": None, "high": None, "pairs": 0, "calls": 0,
                "note": str(unfit)}  # fmt: skip
    return {
        "ms": 1e3 * pairs.first,
        "ours_ms": 1e3 * pairs.second,
        "ratio": pairs.ratio,
        "low": pairs.low,
        "high": pairs.high,
        "pairs": pairs.pairs,
        "calls": pairs.calls,
        "note": note,
    }


def _pairs(peer: Peer, theirs: Call, ours: Call, settings: Settings) -> Pairs:
    try:
        theirs()
    except Exception as error:  # as in `prepare`: a training step can fail where the forward did not
        raise Unfit(f"{peer.name} cannot run this here: {first_line(error)}") from error
    return interleave(theirs, ours, settings.device, settings.seconds, shortest=SHORTEST)


def _alone(call: Call, settings: Settings, seconds: float) -> float:
    """The median of one computation, in seconds."""
    return interleave(call, call, settings.device, seconds, shortest=SHORTEST).first


def apart(make: Callable[[], Call], ours: Call, settings: Settings) -> Pairs:
    """Time a peer whose threads spin between calls: blocks of it and of ours in turns; it exists only in its blocks."""
    seconds = settings.seconds / _ROUNDS / 2
    blocks = []
    for _ in range(_ROUNDS):
        theirs = make()
        first = _alone(theirs, settings, seconds)
        del theirs
        blocks.append((first, _alone(ours, settings, seconds)))
    ratios = sorted(a / b for a, b in blocks)
    return Pairs(
        statistics.median(a for a, _ in blocks),
        statistics.median(b for _, b in blocks),
        statistics.median(ratios),
        ratios[1],
        ratios[-2],
        _ROUNDS,
    )
