"""The CUDA engine's rule, refusals and settings: what needs neither a GPU nor Triton's interpreter."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import torchlstm
from torchlstm.engines.contract import Dense, Problem
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.plan import Rows, Slices, Steps, plan

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

H200 = GPU("H200", (9, 0), 132, 227 << 10)


def _plan(hidden: int, dtype: torch.dtype = BFLOAT16, batch: int = 16, directions: int = 1, precise: bool = False,
          direction: str = "forward", steps: int = 512, count: int = 132) -> Any:  # fmt: skip
    problem = Problem(Dense(steps, batch), batch, 8, hidden, 0, directions, True, dtype, torch.device("cuda"))
    return plan(problem, direction, precise, H200._replace(multiprocessors=count))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Rows, {"hidden": 1}), (Rows, {"hidden": 128}), (Rows, {"hidden": 64, "dtype": FLOAT32}),
        (Slices, {"hidden": 129}), (Slices, {"hidden": 65, "dtype": FLOAT32}), (Slices, {"hidden": 1024, "batch": 64}),
        (Slices, {"hidden": 1024, "dtype": FLOAT32}), (Steps, {"hidden": 1025}),
        (Steps, {"hidden": 16, "dtype": FLOAT64}),
        (Slices, {"hidden": 512, "directions": 2}), (Slices, {"hidden": 1024, "directions": 2}),
        (Steps, {"hidden": 1024, "directions": 2, "direction": "backward"}), (Steps, {"hidden": 64, "steps": 1}),
        (Slices, {"hidden": 1024, "batch": 128}), (Steps, {"hidden": 1024, "batch": 129}),
        (Slices, {"hidden": 64, "dtype": FLOAT32, "precise": True}),
        (Steps, {"hidden": 1024, "dtype": FLOAT32, "precise": True}),
        (Steps, {"hidden": 1024, "count": 60}), (Slices, {"hidden": 1024, "count": 64}),
    ],
)  # fmt: skip
def test_the_rule(kind: type, arguments: Any) -> None:
    assert type(_plan(**arguments)) is kind


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_all_programs_of_slices_fit_on_the_gpu_and_cover_the_problem(direction: str) -> None:
    for dtype, precise in ((BFLOAT16, False), (FLOAT32, False), (FLOAT32, True)):
        for hidden in range(1, 1100, 7):
            for batch in (1, 16, 17, 40, 64, 100, 256):
                for directions in (1, 2):
                    for count in (60, 108, 132):
                        cut = _plan(hidden, dtype, batch, directions, precise, direction, count=count)
                        if not isinstance(cut, Slices):
                            continue
                        inner = hidden * (1 if direction == "forward" else 4)
                        assert cut.slices * cut.tiles * directions <= count
                        assert cut.units * cut.slices >= hidden
                        assert cut.tile * cut.tiles >= batch
                        assert cut.tile % cut.rows == 0
                        assert cut.tile <= 64
                        assert cut.chunks * cut.parts * cut.part >= inner


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_engine_says_so() -> None:
    assert "no CUDA device" in str(torchlstm.engines()["cuda"])
    with pytest.raises(RuntimeError, match=r"engine 'cuda' is not available: torch .* sees no CUDA device"):
        torchlstm.use_engine("cuda")


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "expected"),
    [
        ("cpu", FLOAT32, (9, 0), "it runs on cuda, not on cpu"),
        ("cuda", torch.complex64, (9, 0), "complex64 is not supported"),
        ("cuda", FLOAT32, (7, 5), "it needs a GPU of compute capability 8.0 or newer, this one has 7.5"),
        ("cuda", FLOAT64, (8, 0), None),
    ],
)
def test_refusals(
    device: str, dtype: torch.dtype, capability: tuple[int, int], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "INTERPRETED", False)
    monkeypatch.setattr(cuda, "gpu_of", lambda _: H200._replace(capability=capability))
    problem = Problem(Dense(2, 2), 2, 2, 2, 0, 1, True, dtype, torch.device(device))
    assert cuda.ENGINE.refuses(problem) == expected


def test_without_triton_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "_missing", "it needs Triton, which is not installed: pip install triton")
    assert "pip install triton" in str(torchlstm.engines()["cuda"])


PRECISIONS = {
    "default": "",
    "legacy-tf32": "torch.backends.cuda.matmul.allow_tf32 = True",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "new-tf32": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "new-ieee": "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
}


@pytest.mark.parametrize("allowed", ["True", "False"])
@pytest.mark.parametrize("setting", PRECISIONS.values(), ids=PRECISIONS)
def test_precision_settings_are_left_as_they_were(setting: str, allowed: str) -> None:
    """In a process of its own: what a user has set by one of torch's two interfaces cannot be unset by the other."""
    program = f"""
import torch
from torchlstm.engines.cuda.engine import _matmul_tf32

def state():
    found = [torch.backends.cuda.matmul.fp32_precision]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return found

{setting}
before = state()
with _matmul_tf32({allowed}):
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") == {allowed}
assert state() == before, (before, state())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_tf32_follows_the_setting_of_rnns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert cuda.tf32_allowed()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not cuda.tf32_allowed()
