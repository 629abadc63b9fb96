"""The CUDA engine's rule, refusals and settings: what needs neither a GPU nor Triton's interpreter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchlstm.engines.contract import Dense, Problem
from torchlstm.engines.cuda import device, fused
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.plan import Rows, Slices, Steps, padded, plan, shared_memory
from torchlstm.engines.cuda.work import work_of

BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

H200 = GPU("H200", (9, 0), 132, 227 << 10)


def _plan(hidden: int, dtype: torch.dtype = BFLOAT16, batch: int = 16, directions: int = 1, precise: bool = False,
          direction: str = "forward", steps: int = 512, count: int = 132, shared: int = 227) -> Any:  # fmt: skip
    problem = Problem(Dense(steps, batch), batch, 8, hidden, 0, directions, True, dtype, torch.device("cuda"))
    gpu = H200._replace(multiprocessors=count, shared_memory=shared << 10)
    found = plan(problem, direction, precise, gpu)
    assert isinstance(found, Steps) or shared_memory(found, problem, direction, precise) <= gpu.shared_memory
    return found


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Rows, {"hidden": 1}), (Rows, {"hidden": 128}), (Rows, {"hidden": 64, "dtype": FLOAT32}),
        (Slices, {"hidden": 129}), (Slices, {"hidden": 65, "dtype": FLOAT32}), (Slices, {"hidden": 1024, "batch": 64}),
        (Slices, {"hidden": 1024, "dtype": FLOAT32}), (Steps, {"hidden": 1025}),
        (Steps, {"hidden": 16, "dtype": FLOAT64}),
        (Slices, {"hidden": 512, "directions": 2}), (Slices, {"hidden": 1024, "directions": 2}),
        (Slices, {"hidden": 1024, "directions": 2, "direction": "backward"}), (Steps, {"hidden": 64, "steps": 1}),
        (Slices, {"hidden": 1024, "batch": 128}), (Steps, {"hidden": 1024, "batch": 129}),
        (Slices, {"hidden": 64, "dtype": FLOAT32, "precise": True}),
        (Steps, {"hidden": 1024, "dtype": FLOAT32, "precise": True}),
        (Steps, {"hidden": 1024, "count": 60}), (Slices, {"hidden": 1024, "count": 64}),
        (Rows, {"hidden": 128, "shared": 48}), (Steps, {"hidden": 128, "shared": 31}),
        (Slices, {"hidden": 512, "shared": 48, "direction": "backward"}),
        (Steps, {"hidden": 512, "shared": 31, "direction": "backward"}),
        (Slices, {"hidden": 1024, "shared": 99, "dtype": FLOAT32, "direction": "backward"}),
    ],
)  # fmt: skip
def test_the_rule(kind: type, arguments: Any) -> None:
    assert type(_plan(**arguments)) is kind


@pytest.mark.parametrize(
    ("hidden", "direction", "units"),
    [(512, "forward", 8), (513, "forward", 16), (1024, "forward", 16), (1024, "backward", 8)],
)
def test_slices_are_as_large_as_registers_allow(hidden: int, direction: str, units: int) -> None:
    assert _plan(hidden, direction=direction).units == units


def test_products_are_cut_where_shared_memory_is_small() -> None:
    cuts = [_plan(512, FLOAT32, precise=True, direction="backward", shared=shared) for shared in (227, 99)]
    assert [(cut.chunks, cut.parts * cut.part) for cut in cuts] == [(2, 1024), (4, 512)]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_all_programs_of_slices_fit_on_the_gpu_and_cover_the_problem(direction: str) -> None:
    for dtype, precise in ((BFLOAT16, False), (FLOAT32, False), (FLOAT32, True)):
        for hidden in range(1, 1100, 7):
            for batch in (1, 16, 17, 40, 64, 100, 256):
                for directions in (1, 2):
                    for count, shared in ((60, 48), (108, 163), (128, 99), (132, 227)):
                        cut = _plan(hidden, dtype, batch, directions, precise, direction, count=count, shared=shared)
                        if not isinstance(cut, Slices):
                            continue
                        inner = padded(hidden) * (1 if direction == "forward" else 4)
                        assert cut.slices * cut.tiles * directions <= count
                        assert cut.units * cut.slices >= padded(hidden)
                        assert cut.tile * cut.tiles >= batch
                        assert cut.tile % cut.rows == 0
                        assert cut.tile <= 64
                        assert cut.chunks * cut.parts * cut.part >= inner


@pytest.mark.parametrize(
    ("capability", "kilobytes"),
    [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227), ((12, 0), 99), ((13, 0), 48)],
)
def test_shared_memory_of_a_gpu(capability: tuple[int, int], kilobytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says, else what is known of the capability, else what every GPU has."""
    said = SimpleNamespace(name="a GPU", major=capability[0], minor=capability[1], multi_processor_count=7)
    monkeypatch.setattr(device, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: said)
    assert device.gpu_of(0) == GPU("a GPU", capability, 7, kilobytes << 10)
    said.shared_memory_per_block_optin = 12345
    assert device.gpu_of(0).shared_memory == 12345


@pytest.mark.parametrize(("precise", "expected"), [(True, "tf32x3"), (False, "tf32")])
def test_precision_of_products(precise: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(Dense(2, 2), 2, 2, 2, 0, 1, True, FLOAT32, torch.device("cpu"))
    work = work_of(problem, 4, precise)
    monkeypatch.setattr(fused, "INTERPRETED", False)
    assert fused.precision(work) == expected
    monkeypatch.setattr(fused, "INTERPRETED", True)
    assert fused.precision(work) == "ieee"
