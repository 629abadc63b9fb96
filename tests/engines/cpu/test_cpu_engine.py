"""The CPU engine: instruction sets, threads, denormals, NaN, and what is reproducible."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchlstm
from torchlstm.engines.cpu import calls as cpu_calls
from torchlstm.engines.cpu import engine as cpu
from torchlstm.parity import CASES, run_case

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("on_the_cpu_engine")

SHAPES = [
    (1, 1, 1, 1, 1),
    (7, 3, 5, 6, 1),
    (12, 17, 9, 33, 2),
    (40, 6, 16, 24, 2),
    (5, 31, 40, 65, 1),
    (1, 9, 7, 40, 2),
]


def everything(module: nn.Module, x: Any, state: Any = None) -> list[Tensor]:
    """Results and gradients with cotangents of their own."""
    x = x.detach().clone().requires_grad_()
    output, (h_n, c_n) = module(x, state)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (output, h_n, c_n)]
    gradients = torch.autograd.grad([output, h_n, c_n], [x, *module.parameters()], cotangents)
    return [t.detach() for t in (output, h_n, c_n, *gradients)]


def twins(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.LSTM, Any, Tensor]:
    steps, batch, features, hidden, directions = shape
    torch.manual_seed(0)
    theirs = nn.LSTM(features, hidden, bidirectional=directions == 2, dtype=dtype, **options)
    ours = torchlstm.LSTM(features, hidden, bidirectional=directions == 2, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, torch.randn(steps, batch, features, dtype=dtype)


def agree(theirs: list[Tensor], ours: list[Tensor]) -> None:
    for a, b in zip(theirs, ours, strict=True):
        scale = max(1.0, a.abs().max().item()) if a.numel() else 1.0
        torch.testing.assert_close(b, a, rtol=0, atol=(1e-10 if a.dtype == torch.float64 else 2e-5) * scale)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_instruction_sets_and_threads(shape: Any, count: int, isa: str, threads: Any, monkeypatch: Any) -> None:
    """A set that this machine has not runs as the best that it has."""
    theirs, ours, x = twins(shape)
    expected = everything(theirs, x)
    monkeypatch.setattr(cpu, "_isa", isa)
    threads(count)
    agree(expected, everything(ours, x))


@pytest.mark.parametrize("isa", ["portable", "best"])
@pytest.mark.parametrize(
    "name", ["float32-everything-dense", "float32-everything-packed", "float32-dense", "cell-float32"]
)
def test_parity_on_the_oldest_and_the_best_instruction_set(name: str, isa: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(cpu, "_isa", isa)
    result = run_case(CASES[name], engine="cpu")
    assert result.skipped is None
    assert result.passed, result.worst


def test_forced_instruction_set(monkeypatch: Any) -> None:
    monkeypatch.setattr(cpu, "_isa", "portable")
    assert cpu.instruction_set() == "portable"
    monkeypatch.setattr(cpu, "_isa", "sse9")
    with pytest.raises(RuntimeError, match="'sse9'; instruction sets: portable, avx2, avx512, best"):
        torchlstm.LSTM(2, 3)(torch.randn(4, 1, 2))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"proj_size": 5}], ids=["plain", "projected"])
def test_bit_identical_run_after_run(options: Any, count: int, threads: Any) -> None:
    _, ours, x = twins((30, 12, 20, 64, 2), torch.float32, **options)
    threads(count)
    first = everything(ours, x)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(ours, x), strict=True))


INVARIANT = {
    "dense": ((20, 70, 8, 40, 1), {}),
    "bidirectional": ((20, 70, 40, 33, 2), {}),
    "large": ((7, 70, 300, 520, 1), {}),
    "projected": ((12, 70, 64, 128, 1), {"proj_size": 20}),
    "one-step": ((1, 70, 12, 24, 1), {}),
}


@pytest.mark.parametrize(
    ("isa", "dtype"), [("portable", torch.float32), ("best", torch.float32), ("best", torch.bfloat16)]
)
@pytest.mark.parametrize("name", INVARIANT)
def test_output_does_not_depend_on_the_rest_of_the_batch(
    name: str, isa: str, dtype: torch.dtype, threads: Any, monkeypatch: Any
) -> None:
    """Bit for bit, on any number of threads; few steps of one or two sequences run another way: see kernel.h."""
    monkeypatch.setattr(cpu, "_isa", isa)
    shape, options = INVARIANT[name]
    _, ours, x = twins(shape, dtype, **options)
    other = torch.randn_like(x)
    other[:, 5] = x[:, 5]
    with torch.no_grad():
        threads(1)
        alone = ours(x)[0]
        for count in (1, 2, 3):
            threads(count)
            assert torch.equal(ours(other)[0][:, 5], alone[:, 5])
            for batch in (*([] if name == "large" else [1, 2]), 3, 4, 5, 7, 8, 13, 24, 25, 26, 49, 50, 69):
                assert torch.equal(ours(x[:, :batch])[0], alone[:, :batch]), f"{batch} sequences, {count} threads"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sequence_of_a_ragged_batch_has_the_bits_that_it_has_alone(dtype: torch.dtype) -> None:
    """In the reverse direction some sequences of a step go on, and others begin from h_0."""
    _, ours, x = twins((13, 37, 9, 40, 2), dtype)
    lengths = torch.arange(37) % 12 + 2
    h_0, c_0 = torch.randn(2, 37, 40, dtype=dtype), torch.randn(2, 37, 40, dtype=dtype)
    with torch.no_grad():
        packed, _ = ours(pack_padded_sequence(x, lengths, enforce_sorted=False), (h_0, c_0))
        found, _ = pad_packed_sequence(packed)
        for i, length in enumerate(lengths.tolist()):
            three = [tensor[:, i : i + 1].expand(-1, 3, -1).contiguous() for tensor in (x[:length], h_0, c_0)]
            assert torch.equal(found[:length, i], ours(three[0], (three[1], three[2]))[0][:, 0]), i


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_not_finite_in_one_row_stays_there(value: float, dtype: torch.dtype) -> None:
    theirs, ours, x = twins((20, 7, 9, 40, 2), dtype)
    poisoned = x.clone()
    poisoned[3, 2, 1] = value
    with torch.no_grad():
        expected, found, clean = theirs(poisoned)[0], ours(poisoned)[0], ours(x)[0]
    assert torch.equal(expected.isnan(), found.isnan())
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(found[:, others], clean[:, others])
    # A weight that is not finite reaches its own unit in the first step, no other.
    with torch.no_grad():
        ours.weight_ih_l0[2, -1] = value
        found = ours(x)[0]
    units = [unit for unit in range(40) if unit != 2]
    assert torch.equal(found[0][:, units], clean[0][:, units])
    assert not torch.equal(found[0][:, 2], clean[0][:, 2])


def test_denormals_are_not_slow_and_the_mode_is_restored(threads: Any) -> None:
    _, ours, x = twins((200, 16, 64, 64, 1), torch.float32)
    tiny = x * 1e-39

    def seconds(input: Tensor) -> float:
        best = 1e9
        for _ in range(5):
            start = time.perf_counter()
            with torch.no_grad():
                ours(input)
            best = min(best, time.perf_counter() - start)
        return best

    threads(1)
    assert seconds(tiny) < 3 * seconds(x)
    number = torch.tensor(1e-39)
    assert (number * 1.0).item() != 0
    torch.set_flush_denormal(True)
    try:
        ours(x)
        assert (number * 1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)


def test_threads_changed_between_forward_and_backward(threads: Any) -> None:
    theirs, ours, x = twins((20, 9, 8, 40, 2))
    expected = everything(theirs, x)
    for before, after in ((1, 3), (3, 1), (2, 5)):
        threads(before)
        leaf = x.clone().requires_grad_()
        output, (h_n, c_n) = ours(leaf)
        threads(after)
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (output, h_n, c_n)]
        agree(expected[3:], list(torch.autograd.grad([output, h_n, c_n], [leaf, *ours.parameters()], cotangents)))


def test_many_python_threads_at_once() -> None:
    theirs, ours, x = twins((30, 8, 16, 48, 2))
    expected = everything(theirs, x)
    found: list[list[Tensor]] = []

    def work() -> None:
        for _ in range(5):
            found.append(everything(ours, x))

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    assert len(found) == 30
    for each in found:
        agree(expected, each)


def test_the_lock_of_python_is_released() -> None:
    """Another thread counts while a long kernel runs."""
    module, x = torchlstm.LSTM(256, 256), torch.randn(600, 16, 256)
    stop, counted = threading.Event(), [0]

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    with torch.no_grad():
        module(x)
        counter.start()
        before = counted[0]
        module(x)
        after = counted[0]
    stop.set()
    counter.join()
    assert after > before + 3


# Judged by the reference engine: with fewer threads than it asked for, torch 2.13's nn.LSTM itself returns garbage.
PROGRAM = """
import sys, torch, torchlstm
from torchlstm.engines.cpu.engine import _kernel
torch.set_num_threads(int(sys.argv[1]))
_kernel.adapt(False)
torch.manual_seed(0)
module, x = torchlstm.LSTM(9, 40, bidirectional=True), torch.randn(25, 8, 9)
found = []
for engine in ("reference", "cpu"):
    with torchlstm.use_engine(engine):
        output, _ = module(x)
        found.append([output, *torch.autograd.grad(output.pow(2).sum(), list(module.parameters()))])
torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
print("right")
"""

ENVIRONMENTS = {
    "dynamic": ({"OMP_DYNAMIC": "true"}, 8),
    "limit-1": ({"OMP_THREAD_LIMIT": "1"}, 2),
    "limit-3": ({"OMP_THREAD_LIMIT": "3"}, 8),
    "passive": ({"OMP_WAIT_POLICY": "passive"}, 2),
    "nested": ({"OMP_MAX_ACTIVE_LEVELS": "2"}, 4),
    "more-than-cores": ({}, 8),
}


@pytest.mark.parametrize(("environment", "count"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_fewer_threads_than_asked_for_and_more_than_cores(environment: dict[str, str], count: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(count)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "right\n", done.stderr


INTERRUPTED = """
import signal, torch, torchlstm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell is started with it ignored
torchlstm.use_engine("cpu")
module, x = torchlstm.LSTM(64, 64), torch.randn(100, 8, 64)
print("ready", flush=True)
try:
    while True:
        module(x)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_control_c_is_honoured_between_calls() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out == "interrupted\n"


def test_out_of_memory_raises_and_leaves_things_as_they_were() -> None:
    module = torchlstm.LSTM(1, 1 << 20, device="meta")
    weights = {name: torch.zeros(1).expand(weight.shape) for name, weight in module.named_parameters()}
    with pytest.raises(RuntimeError, match="alloc"):
        torch.func.functional_call(module, weights, (torch.zeros(3, 2, 1),))
    theirs, ours, x = twins((7, 3, 5, 6, 1))
    agree(everything(theirs, x), everything(ours, x))


def test_strides_of_inputs_states_and_weights() -> None:
    theirs, ours, x = twins((9, 4, 6, 7, 1))
    states = [torch.randn(1, 7, 4, dtype=torch.float64).transpose(1, 2) for _ in range(2)]
    for module in (theirs, ours):
        module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t()
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    agree(everything(theirs, strided, states), everything(ours, strided, states))
    # A tensor that counts as contiguous with strides of its own where a size is 1.
    odd = torch.randn(20, dtype=torch.float64)[:18].as_strided((1, 3, 6), (5, 6, 1))
    agree(everything(theirs, odd), everything(ours, odd))


def test_saved_tensors_are_not_written() -> None:
    _, ours, x = twins((9, 4, 6, 7, 2))
    output, _ = ours(x)
    runs = [torch.autograd.grad(output.sum(), list(ours.parameters()), retain_graph=True) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_missing_extension_is_a_reason(monkeypatch: Any) -> None:
    def fail(name: str, package: str | None = None) -> Any:
        raise failure

    failure: ImportError = ModuleNotFoundError("no module")
    monkeypatch.setattr("importlib.import_module", fail)
    module, why = cpu_calls.load()
    assert module is None
    assert "not compiled at installation" in str(why)
    failure = ImportError("undefined symbol: x")
    assert cpu_calls.load() == (None, "its extension does not load: undefined symbol: x")
