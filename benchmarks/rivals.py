"""What a frozen LSTM is compared with: nn.LSTM, ours before freezing, two of torch.ao, two of ONNX Runtime."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

import torchlstm
from torchlstm.parity.observe import Inputs

from . import ort
from .calls import Call, inference, module_of, results
from .unfit import Unfit
from .workloads import Workload

# The format given to `torchlstm.freeze`, by its name in the tables.
FORMATS: dict[str, torch.dtype | None] = {
    "as-is": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}

# The largest difference of each from nn.LSTM in float64, relative to the largest element, that still counts as an LSTM:
# a wrong gate differs by far more.  ONNX Runtime approximates tanh.
_CLOSE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2, "int8": 2e-1}


class Subject(NamedTuple):
    """A module that is ready to be called."""

    call: Call
    results: dict[str, Tensor]  # of one call


@dataclass(frozen=True)
class Rival:
    """One way to compute an LSTM that ours is compared with.

    bits      the format of its weights
    prepare   raises Unfit where it does not run a workload
    packages  what has to be importable
    spins     whether its threads spin between calls: with several threads it is timed in blocks of its own
    """

    name: str
    bits: str
    prepare: Callable[[Workload, Inputs], Subject]
    packages: tuple[str, ...] = ()
    spins: bool = False

    def is_here(self) -> bool:
        """Whether its packages are installed."""
        return all(find_spec(package) is not None for package in self.packages)


def freeze(model: nn.Module, weights: torch.dtype | None) -> nn.Module:
    """`torchlstm.freeze`; raises Unfit if this torchlstm does not have it."""
    found: Callable[..., nn.Module] | None = getattr(torchlstm, "freeze", None)
    if found is None:
        raise Unfit("this torchlstm has no freeze")
    return found(model.eval(), weights)


def torch_ao(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a model with torch.ao's dynamic LSTMs in place of nn's, without torch's deprecation warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        made: nn.Module = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.LSTM}, dtype=dtype)
    return made


def _alone(module: nn.Module, lower: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A model that holds one module and nothing else: torch.ao replaces only children."""
    [child] = lower(nn.Sequential(module)).children()
    return child


def _subject(module: nn.Module, inputs: Inputs) -> Subject:
    return Subject(inference(module, inputs), results(module, inputs))


def _nn(workload: Workload, inputs: Inputs) -> Subject:
    return _subject(module_of(workload, False), inputs)


def _unfrozen(workload: Workload, inputs: Inputs) -> Subject:
    return _subject(module_of(workload, True), inputs)


def _qint8(workload: Workload, inputs: Inputs) -> Subject:
    return _subject(_alone(module_of(workload, False), lambda model: torch_ao(model, torch.qint8)), inputs)


def _fp16(workload: Workload, inputs: Inputs) -> Subject:
    return _subject(_alone(module_of(workload, False), lambda model: torch_ao(model, torch.float16)), inputs)


def _ort(workload: Workload, inputs: Inputs) -> Subject:
    return Subject(*ort.prepare(workload, inputs, "cpu"))


def _ort_int8(workload: Workload, inputs: Inputs) -> Subject:
    return Subject(*ort.prepare(workload, inputs, "cpu", int8=True))


RIVALS = {
    rival.name: rival
    for rival in (
        Rival("nn", "float32", _nn),
        Rival("unfrozen", "float32", _unfrozen),
        Rival("ao-qint8", "int8", _qint8),
        Rival("ao-float16", "float16", _fp16),
        Rival("ort", "float32", _ort, ("onnx", "onnxruntime"), spins=True),
        Rival("ort-int8", "int8", _ort_int8, ("onnx", "onnxruntime"), spins=True),
    )
}


def ours(workload: Workload, inputs: Inputs, weights: str) -> Subject:
    """Our frozen module in one of FORMATS; raises Unfit if this torchlstm cannot freeze."""
    return _subject(_alone(module_of(workload, True), lambda model: freeze(model, FORMATS[weights])), inputs)


def check(name: str, bits: str, seen: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Raise Unfit unless the results are those of this LSTM, within the tolerance of its format."""
    for key, right in truth.items():
        gap = (seen[key].double() - right).abs().max().item()
        if not gap <= _CLOSE["float32" if bits == "as-is" else bits] * max(1.0, right.abs().max().item()):
            raise Unfit(f"{name} computes something else: {key} differs by {gap:.1e}")


def truth_of(workload: Workload, inputs: Inputs) -> dict[str, Tensor]:
    """The results of nn.LSTM in float64."""
    return results(module_of(workload, False).double(), inputs.to(torch.device("cpu"), torch.float64))
