"""The CUDA engine's plan: tests that need neither a GPU nor Triton's interpreter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchlstm.engines.contract import Dense, Problem
from torchlstm.engines.cuda import device, fused
from torchlstm.engines.cuda import plan as planning
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
        (Rows, {"hidden": 1}), (Rows, {"hidden": 32}), (Rows, {"hidden": 32, "dtype": FLOAT32}),
        (Slices, {"hidden": 33}), (Slices, {"hidden": 33, "dtype": FLOAT32}), (Slices, {"hidden": 1024, "batch": 64}),
        (Slices, {"hidden": 1024, "dtype": FLOAT32}), (Steps, {"hidden": 1025}),
        (Steps, {"hidden": 16, "dtype": FLOAT64}),
        (Slices, {"hidden": 512, "directions": 2}), (Slices, {"hidden": 1024, "directions": 2}),
        (Slices, {"hidden": 1024, "directions": 2, "direction": "backward"}), (Steps, {"hidden": 64, "steps": 1}),
        (Steps, {"hidden": 1024, "batch": 65}),
        (Slices, {"hidden": 1024, "batch": 128, "dtype": FLOAT32}),
        (Steps, {"hidden": 1024, "batch": 129, "dtype": FLOAT32}),
        (Slices, {"hidden": 64, "dtype": FLOAT32, "precise": True}),
        (Steps, {"hidden": 1024, "dtype": FLOAT32, "precise": True}),
        (Steps, {"hidden": 1024, "count": 60}), (Slices, {"hidden": 1024, "count": 64}),
        # Where slices have no room, or would have several products a step.
        (Rows, {"hidden": 128, "count": 7}), (Steps, {"hidden": 129, "count": 7}),
        (Slices, {"hidden": 128, "batch": 256}), (Rows, {"hidden": 128, "batch": 257}),
        (Rows, {"hidden": 64, "count": 3, "dtype": FLOAT32}), (Steps, {"hidden": 65, "count": 4, "dtype": FLOAT32}),
        (Slices, {"hidden": 128, "shared": 16}), (Steps, {"hidden": 128, "shared": 3}),
        (Slices, {"hidden": 512, "shared": 48, "direction": "backward"}),
        (Steps, {"hidden": 512, "shared": 31, "direction": "backward"}),
        (Slices, {"hidden": 1024, "shared": 99, "dtype": FLOAT32, "direction": "backward"}),
    ],
)  # fmt: skip
def test_the_rule(kind: type, arguments: Any) -> None:
    assert type(_plan(**arguments)) is kind


@pytest.mark.parametrize(
    ("arguments", "units", "warps", "tile"),
    [
        ({"hidden": 512}, 8, 4, 16), ({"hidden": 513}, 16, 8, 16), ({"hidden": 1024}, 16, 8, 16),
        ({"hidden": 64, "direction": "backward"}, 8, 4, 16), ({"hidden": 65, "direction": "backward"}, 16, 8, 16),
        # Larger slices are fewer, so that there is room for more tiles of sequences.
        ({"hidden": 512, "batch": 32}, 8, 4, 16), ({"hidden": 512, "batch": 33}, 16, 8, 16),
        ({"hidden": 1024, "batch": 33}, 16, 8, 32),
        ({"hidden": 1024, "dtype": FLOAT32}, 8, 8, 16), ({"hidden": 1024, "dtype": FLOAT32, "batch": 17}, 16, 8, 16),
    ],
)  # fmt: skip
def test_the_fewest_products_then_the_fastest_cut(arguments: Any, units: int, warps: int, tile: int) -> None:
    found = _plan(**arguments)
    assert (found.units, found.warps, found.tile) == (units, warps, tile)


@pytest.mark.parametrize(
    ("arguments", "peek"),
    [
        ({"hidden": 128}, False), ({"hidden": 129}, True), ({"hidden": 512}, True), ({"hidden": 513}, False),
        ({"hidden": 512, "direction": "backward"}, False), ({"hidden": 512, "batch": 65}, False),
    ],
)  # fmt: skip
def test_who_looks_before_reading(arguments: Any, peek: bool) -> None:
    assert _plan(**arguments).peek is peek


def test_a_plan_is_looked_up_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_known", {})
    base = {"hidden": 512, "batch": 16}
    others: list[dict[str, Any]] = [
        {}, {"hidden": 520}, {"batch": 64}, {"dtype": FLOAT32}, {"directions": 2}, {"direction": "backward"},
        {"dtype": FLOAT32, "precise": True}, {"steps": 1}, {"count": 60}, {"shared": 20},
    ]  # fmt: skip
    fresh = []
    for other in others:
        planning._known.clear()
        fresh.append(_plan(**{**base, **other}))
    planning._known.clear()
    for _ in range(2):
        assert [_plan(**{**base, **other}) for other in others] == fresh
    assert len(planning._known) == len(others)
    monkeypatch.setattr(planning, "_MOST", 3)
    assert [_plan(**{**base, "batch": batch}) for batch in range(1, 9)]
    assert len(planning._known) <= 3


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
    """What torch reports, else the value of the compute capability, else what every GPU has."""
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
