"""The CUDA engine's rule, refusals and settings: what needs neither a GPU nor Triton's interpreter."""

from typing import Any

import pytest
import torch

from torchlstm.engines.contract import Dense, Problem, only_if_asked
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


def test_it_is_opt_in() -> None:
    assert cuda.ENGINE.automatic is only_if_asked
