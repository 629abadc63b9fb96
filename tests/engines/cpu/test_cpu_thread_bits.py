"""No bit of any result, gradients included, depends on the number of threads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import torchlstm
from torchlstm.engines.cpu import engine as cpu

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("on_the_cpu_engine")

COUNTS = (2, 3, 4, 7)

# Enough multiplications for several threads on a step of one row, and recurrent weights that are small enough for
# threads to take rows of their own where there are 8 and more (dispatch.c, plan.h).
INPUT, HIDDEN, STEPS = 150, 136, 12
LENGTHS = (12, 3, 12, 7, 1, 9, 12, 2, 5, 11, 4, 8, 6, 10, 12, 12)


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors(part)]


def _trained(module: nn.Module, call: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Results, and the gradients of inputs, states and weights, for random cotangents of all results."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = _tensors(call(module, *leaves))
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(result.shape, generator=generator).to(result.dtype) for result in results]
    gradients = torch.autograd.grad(results, [*leaves, *module.parameters()], cotangents)
    return [tensor.detach() for tensor in (*results, *gradients)]


def _plain(module: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> Any:
    return module(x, (h, c))


def _packed(module: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> Any:
    return module(pack_padded_sequence(x, torch.tensor(LENGTHS[: x.shape[1]]), enforce_sorted=False), (h, c))


def _lengths(module: nn.Module, x: Tensor, h: Tensor, c: Tensor) -> Any:
    return module(x, (h, c), lengths=torch.tensor(LENGTHS[: x.shape[1]]))


def _traced(module: Any, x: Tensor, h: Tensor, c: Tensor) -> Any:
    return module.trace(x, (h, c))


# The constructor's options, T, B, the call, the dtype.
FORMS: dict[str, tuple[dict[str, Any], int, int, Callable[..., Any], torch.dtype]] = {
    **{f"dense-B{batch}": ({}, STEPS, batch, _plain, torch.float32) for batch in (1, 2, 3, 5, 8, 16)},
    **{f"T{steps}": ({}, steps, 17, _plain, torch.float32) for steps in (1, 2, 40)},
    "long": ({"input_size": 700, "hidden_size": 530}, 3, 9, _plain, torch.float32),
    "wide-batch": ({}, 3, 300, _plain, torch.float32),
    "packed": ({}, STEPS, 16, _packed, torch.float32),
    "packed-larger": ({"hidden_size": 300}, STEPS, 16, _packed, torch.float32),
    "lengths": ({"bidirectional": True}, STEPS, 13, _lengths, torch.float32),
    "layers": ({"num_layers": 2, "bidirectional": True}, STEPS, 9, _plain, torch.float32),
    "projected": ({"proj_size": 70}, STEPS, 9, _plain, torch.float32),
    "projected-packed": ({"proj_size": 70, "bidirectional": True}, STEPS, 11, _packed, torch.float32),
    "no-bias": ({"bias": False}, STEPS, 9, _plain, torch.float32),
    "unbatched": ({}, STEPS, 0, _plain, torch.float32),
    "float64": ({"hidden_size": 90}, STEPS, 9, _plain, torch.float64),
    "bfloat16": ({}, STEPS, 9, _plain, torch.bfloat16),
    "bfloat16-B1": ({"hidden_size": 300}, STEPS, 1, _plain, torch.bfloat16),
    "bfloat16-packed": ({"proj_size": 70, "bidirectional": True}, STEPS, 16, _packed, torch.bfloat16),
    "bfloat16-wide-batch": ({"input_size": 37}, 3, 100, _plain, torch.bfloat16),
    "checkpoint": ({"checkpoint_every": 5, "bidirectional": True}, STEPS, 9, _plain, torch.float32),
    "trace": ({}, STEPS, 9, _traced, torch.float32),
}


def _module_and_inputs(name: str) -> tuple[nn.Module, list[Tensor], Callable[..., Any]]:
    options, steps, batch, call, dtype = FORMS[name]
    options = {"input_size": INPUT, "hidden_size": HIDDEN} | options
    torch.manual_seed(0)
    module = torchlstm.LSTM(**options, dtype=dtype)
    layers = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    rows = (batch,) if batch else ()
    shapes = [
        (steps, *rows, options["input_size"]),
        (layers, *rows, options.get("proj_size") or options["hidden_size"]),
        (layers, *rows, options["hidden_size"]),
    ]
    return module, [torch.randn(shape, dtype=dtype) for shape in shapes], call


@pytest.mark.parametrize("isa", ["portable", "avx2", "best"])
@pytest.mark.parametrize("name", FORMS)
def test_training(name: str, isa: str, threads: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cpu, "_isa", isa)
    module, inputs, call = _module_and_inputs(name)
    threads(1)
    expected = _trained(module, call, inputs)
    with torch.no_grad():
        inferred = _tensors(call(module, *inputs))
    for count in COUNTS:
        threads(count)
        found = _trained(module, call, inputs)
        differ = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if not torch.equal(a, b)]
        assert not differ, f"tensors {differ} of results and gradients on {count} threads"
        with torch.no_grad():
            again = _tensors(call(module, *inputs))
        assert cpu.latest_threads().used == count
        assert all(torch.equal(a, b) for a, b in zip(inferred, again, strict=True)), f"inference on {count} threads"


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_cell(batch: int, threads: Any) -> None:
    torch.manual_seed(0)
    module = torchlstm.LSTMCell(INPUT, 300)
    inputs = [torch.randn(batch, size) for size in (INPUT, 300, 300)]
    threads(1)
    expected = _trained(module, _plain, inputs)
    for count in COUNTS:
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(expected, _trained(module, _plain, inputs), strict=True)), count


@pytest.mark.parametrize("backward", [1, 2, 3])
def test_threads_changed_before_the_backward(backward: int, threads: Any) -> None:
    module, inputs, call = _module_and_inputs("dense-B16")
    threads(1)
    expected = _trained(module, call, inputs)
    threads(4)

    def then(*arguments: Any) -> Any:
        results = call(*arguments)
        threads(backward)
        return results

    assert all(torch.equal(a, b) for a, b in zip(expected, _trained(module, then, inputs), strict=True))
