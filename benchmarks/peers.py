"""Who is measured besides torchlstm: what each peer needs, what it can run, and how it is called."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchlstm.parity.observe import Inputs

from . import ort
from .calls import Call, call_of, module_of, results
from .unfit import Unfit, first_line
from .workloads import MODES, Workload

INSTALL = 'pip install -c constraints.txt -e ".[bench]"'

# A peer's largest difference from nn.LSTM, relative to the largest element, that still counts as the same result.
# Peers have their own accuracies (ONNX Runtime approximates tanh); a wrong gate differs by far more.
_CLOSE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Prepared(NamedTuple):
    """A peer ready to be timed."""

    call: Call
    results: dict[str, Tensor] | None  # of one call in eval mode; None for nn.LSTM itself
    note: str | None = None


@dataclass(frozen=True)
class Peer:
    """One way to compute an LSTM that is not ours.

    packages  what has to be importable
    modes     what it is measured in
    prepare   raises Unfit with the reason where the peer does not run a workload
    apart     with several threads timed in blocks of its own, not call by call in turns with ours
    """

    name: str
    prepare: Callable[[Workload, Inputs, str, str], Prepared]
    packages: tuple[str, ...] = ()
    modes: tuple[str, ...] = MODES
    apart: bool = False

    def missing(self) -> str | None:
        """Why the peer is missing, or None."""
        absent = [package for package in self.packages if find_spec(package) is None]
        return f"{' and '.join(absent)} not installed ({INSTALL})" if absent else None


def _nn(workload: Workload, inputs: Inputs, mode: str, device: str) -> Prepared:
    return Prepared(call_of(mode, module_of(workload, False, device), inputs), None)


def _compile(workload: Workload, inputs: Inputs, mode: str, device: str) -> Prepared:
    """torch.compile as a user would call it; the note says where the result is not one graph."""
    module = module_of(workload, False, device)
    note = None
    torch.compiler.reset()
    # On a module it returns a module, which its annotation does not say.
    compiled: Any = torch.compile(module, fullgraph=True)
    try:
        seen = results(compiled, inputs)
    except Exception as error:  # what Dynamo raises is no public type
        note = f"not one graph: {first_line(error)}"
        torch.compiler.reset()
        compiled = torch.compile(module)
        seen = results(compiled, inputs)
    return Prepared(call_of(mode, compiled, inputs), seen, note)


def _opacus(workload: Workload, inputs: Inputs, mode: str, device: str) -> Prepared:
    """A training step of DPLSTM, without per-sample gradients, since the other peers compute none."""
    if workload.case.cell:
        raise Unfit("opacus has no LSTMCell of its own to call")
    if workload.proj_size:
        raise Unfit("opacus DPLSTM drops proj_size")
    from opacus.layers import DPLSTM

    case = workload.case
    module: nn.Module = DPLSTM(case.input_size, case.hidden_size, **case.options).to(device, case.dtype)
    module.load_state_dict(module_of(workload, False).state_dict())
    return Prepared(call_of(mode, module, inputs), results(module, inputs))


def _ort(workload: Workload, inputs: Inputs, mode: str, device: str) -> Prepared:
    return Prepared(*ort.prepare(workload, inputs, device))


PEERS: dict[str, Peer] = {
    "nn": Peer("nn", _nn),
    "compile": Peer("compile", _compile),
    # Its threads spin after every call, and would take the cores from the next module.
    "ort": Peer("ort", _ort, ("onnx", "onnxruntime"), ("inference",), apart=True),
    "opacus": Peer("opacus", _opacus, ("opacus",), ("training",)),
}


def choose(names: str) -> tuple[list[str], dict[str, str]]:
    """Return the peers of a list such as "nn,ort", nn.LSTM first, and those of "all" that are missing, with reasons.

    Raises ValueError for a name that does not exist or a peer that is asked for by name and missing.
    """
    asked = [name.strip() for name in names.split(",")]
    if unknown := [name for name in asked if name not in (*PEERS, "all")]:
        raise ValueError(f"unknown peer {unknown[0]!r}; peers: {', '.join(PEERS)}, all")
    missing = {name: reason for name, peer in PEERS.items() if (reason := peer.missing())}
    for name in asked:
        if name in missing:
            raise ValueError(f"peer {name!r}: {missing[name]}")
    wanted = list(PEERS) if "all" in asked else [name for name in PEERS if name in asked or name == "nn"]
    return [name for name in wanted if name not in missing], {k: v for k, v in missing.items() if k in wanted}


def prepare(peer: Peer, workload: Workload, inputs: Inputs, mode: str, device: str) -> Prepared:
    """Return the peer ready to be timed, after comparing its results with nn.LSTM's; raises Unfit if it cannot be."""
    if workload.case.form in ("lengths", "resets") and peer.name not in ("nn", "compile"):
        raise Unfit(f"{peer.name} is not called with {workload.case.form}")
    try:
        prepared = peer.prepare(workload, inputs, mode, device)
    except Unfit:
        raise
    except Exception as error:  # a peer's failure is a note in the table, not the end of the run
        raise Unfit(f"{peer.name} fails: {first_line(error)}") from error
    if prepared.results is not None:
        _compare(peer.name, prepared.results, results(module_of(workload, False, device), inputs))
    return prepared


def _compare(name: str, seen: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key, right in expected.items():
        got, right = seen[key].double(), right.double()
        if got.shape != right.shape:
            raise Unfit(f"{name} computes something else: {key} is {list(got.shape)}, not {list(right.shape)}")
        bound = _CLOSE.get(seen[key].dtype, 1e-9) * max(1.0, right.abs().max().item())
        gap = (got - right).abs().max().item()
        if not gap <= bound:
            raise Unfit(f"{name} computes something else: {key} differs by {gap:.1e}")
