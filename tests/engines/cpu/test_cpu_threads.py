"""How many threads calls of the CPU engine have, and why; what they do after a stall, tests/sanitize/pace.c tries."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import torchlstm
from torchlstm.engines.cpu import engine as cpu
from torchlstm.engines.cpu.engine import Threads, latest_threads
from torchlstm.engines.shared import threads

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

kernel: Any = cpu._kernel


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    with torchlstm.use_engine("cpu"):
        yield
    torch.set_num_threads(before)
    kernel.adapt(True)


def call(hidden: int = 256, steps: int = 16, batch: int = 4, backward: bool = False) -> Tensor:
    layer, x = torchlstm.LSTM(hidden, hidden), torch.randn(steps, batch, hidden, requires_grad=backward)
    with torch.set_grad_enabled(backward):
        y: Tensor = layer(x)[0]
        return torch.autograd.grad(y.sum(), x)[0] if backward else y


def test_calls_that_do_not_adapt_have_all_that_they_are_given() -> None:
    kernel.adapt(False)
    for backward in (False, True):
        call(backward=backward)
        assert latest_threads()[:4] == (4, 4, 4, 4)
    assert latest_threads().reason == ""


def test_calls_have_no_more_threads_than_processors() -> None:
    call()
    latest = latest_threads()
    assert (latest.given, latest.worth) == (4, 4)
    assert latest.wanted == min(4, latest.processors)
    assert 1 <= latest.used <= latest.wanted


def test_little_work_has_one_thread() -> None:
    kernel.adapt(False)
    for shape in ((32, 1, 1), (32, 3, 1), (16, 16, 1)):
        call(*shape)
        assert latest_threads()[:4] == (4, 1, 1, 1)
        assert latest_threads().reason == "the work is worth no more"
        call(*shape, backward=True)
        assert latest_threads().worth == 1


def test_no_more_threads_than_blocks_of_units() -> None:
    """A wide vector holds 16 units; by units, since a projection makes every thread need all rows."""
    kernel.adapt(False)
    layer = torchlstm.LSTM(400, 16, proj_size=8)
    with torch.no_grad():
        layer(torch.randn(3, 500, 400))
    lanes = {"portable": 4, "avx2": 8, "avx512": 16}[cpu.instruction_set()]
    assert latest_threads().worth == min(4, 16 // lanes)


def test_a_quota_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.adapt(False)
    monkeypatch.setattr(threads, "quota", lambda: 3)
    call()
    assert latest_threads()[:4] == (3, 3, 3, 3)


def test_reasons() -> None:
    assert Threads(4, 4, 4, 1, 8).reason.startswith("OpenMP gave no more, or calls before it had waited")
    assert Threads(4, 4, 2, 2, 2).reason == "the process may use no more processors"
    assert Threads(4, 2, 2, 2, 8).reason == "the work is worth no more"
    assert Threads(4, 4, 4, 4, 8).reason == ""


def test_without_openmp_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_kernel", SimpleNamespace(openmp=0))
    assert Threads(4, 4, 1, 1, 128).reason == "torch has no OpenMP runtime"


def test_each_python_thread_sees_its_own_calls() -> None:
    kernel.adapt(False)
    call()
    seen: list[Threads] = []
    thread = threading.Thread(target=lambda: seen.append(latest_threads()))
    thread.start()
    thread.join()
    assert seen[0][:4] == (0, 0, 0, 0)
    assert latest_threads().used == 4


PROGRAM = """
import os, sys, time, torch, torchlstm
from torchlstm.engines.cpu.engine import _kernel, latest_threads
torch.set_num_threads(2)
layer, x = torchlstm.LSTM(256, 256), torch.randn(16, 4, 256)
def show():
    time.sleep(0.02)  # the processors are asked for every 10 ms
    _kernel.adapt(True)  # a stall that there was is forgotten
    with torchlstm.use_engine("cpu"), torch.no_grad():
        layer(x)
    print(*latest_threads(), flush=True)
processors = sorted(os.sched_getaffinity(0))
show()
if sys.argv[1] == "change":
    os.sched_setaffinity(0, processors[:1])
    show()
    os.sched_setaffinity(0, processors)
    show()
"""

needs_two = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="this needs two processors"
)


def run(what: str, **environment: str) -> list[list[int]]:
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120
    )
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@needs_two
def test_affinity_may_change_while_a_program_runs() -> None:
    before, less, after = run("change")
    assert before[:4] == after[:4] == [2, 2, 2, 2]
    assert less == [2, 2, 1, 1, 1]


@needs_two
def test_bound_threads_are_no_limit() -> None:
    """OpenMP leaves the calling thread one processor then, and the other threads the others."""
    (found,) = run("keep", OMP_PROC_BIND="true")
    assert found[:4] == [2, 2, 2, 2]


def test_adapt_takes_a_flag() -> None:
    with pytest.raises(TypeError, match=r"adapt\(on\): expected True or False, got 1"):
        kernel.adapt(1)


# torch's wheels for Arm have their runtime for themselves; here torch makes it visible to all.
ALONE = """
import ctypes
ctypes.RTLD_GLOBAL = ctypes.RTLD_LOCAL
import torch, torchlstm
from torchlstm.engines.cpu.engine import _kernel, latest_threads
_kernel.adapt(False)
torch.set_num_threads(2)
with torchlstm.use_engine("cpu"), torch.no_grad():
    torchlstm.LSTM(256, 256)(torch.randn(16, 4, 256))
print(hasattr(ctypes.CDLL(None), "GOMP_parallel"), latest_threads().used)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux' linker hides symbols in this way")
def test_the_openmp_that_is_torchs_alone_is_found() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "2"]
