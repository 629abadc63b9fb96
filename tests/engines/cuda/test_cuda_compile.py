"""The CUDA engine's fused kernels, compiled for GPUs that are not here: do they fit, and where do the weights lie?"""

from typing import Any

import pytest
import torch

from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.launch import INTERPRETED
from torchlstm.engines.cuda.plan import Rows

offline: Any = pytest.importorskip("cuda_offline", reason="it needs Triton", exc_type=ImportError)

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

# Bytes a thread may spill, by kernel: what Triton 3.9 spills for sm_80 to sm_100, and a little more; 3.6 spills more.
# One size up from the largest of `cuda_plan.py` it is 600 and more.
SPILLED = {
    "fused_rows.forward": 224, "fused_rows.backward": 424, "fused_slices.forward": 224, "fused_slices.backward": 320
}  # fmt: skip
OLDER = 704  # bytes, of any kernel, by Triton 3.6
# Shared memory of a program, by compute capability; CUDA C++ Programming Guide, "technical specifications".
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
H200, A100 = GPU("H200", (9, 0), 132, 227 << 10), GPU("A100", (8, 0), 108, 163 << 10)
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


def _compile(dtype: torch.dtype, hidden: int, direction: str, batch: int = 16, directions: int = 1,
             ragged: bool = False, precise: bool = False, capability: int = 90) -> Any:  # fmt: skip
    rows = Ragged(torch.full((8,), batch)) if ragged else Dense(8, batch)
    problem = Problem(rows, batch, hidden, hidden, 0, directions, True, dtype, torch.device("cuda"))
    gpu = A100 if capability == 80 else H200
    launch, *_ = offline.launches(problem, gpu, direction, precise=precise)
    return offline.compile_launch(launch, capability)


def _fits(found: Any, capability: int) -> None:
    assert found.name.startswith("fused")
    older = tuple(map(int, offline.triton.__version__.split(".")[:2])) < (3, 9)
    assert found.spilled <= (OLDER if older else SPILLED[found.name]), found
    assert found.shared <= SHARED[capability], found
    assert found.registers <= 255


# A representative of every branch of the rule, at the largest size that it takes.
LARGEST = {
    "half-rows": (BFLOAT16, 128, {}), "half-rows-ragged": (FLOAT16, 100, {"ragged": True}),
    "half-slices": (BFLOAT16, 1024, {}), "half-slices-tiles": (FLOAT16, 1024, {"batch": 64, "ragged": True}),
    "half-two-directions": (BFLOAT16, 512, {"directions": 2}), "tf32-rows": (FLOAT32, 64, {}),
    "tf32-slices": (FLOAT32, 1024, {}), "float32-rows": (FLOAT32, 32, {"precise": True}),
    "float32-slices": (FLOAT32, 512, {"precise": True}),
}  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("dtype", "hidden", "more"), LARGEST.values(), ids=LARGEST)
def test_largest_sizes_fit(dtype: torch.dtype, hidden: int, more: Any, direction: str) -> None:
    _fits(_compile(dtype, hidden, direction, **more), 90)


@pytest.mark.parametrize("capability", [80, 100])
@pytest.mark.parametrize(("dtype", "hidden"), [(BFLOAT16, 128), (FLOAT16, 768), (FLOAT32, 256)], ids=str)
def test_other_gpus(dtype: torch.dtype, hidden: int, capability: int) -> None:
    for direction in ("forward", "backward"):
        _fits(_compile(dtype, hidden, direction, capability=capability), capability)


@pytest.mark.parametrize("directions", [1, 2])
def test_slices_of_16_units_fit(directions: int) -> None:
    """Chosen where slices of 8 would be too many for the GPU."""
    _fits(_compile(BFLOAT16, 1024, "forward", directions=2), 90)
    _fits(_compile(FLOAT32, 512, "forward", batch=100, directions=directions), 90)


def test_weights_stay_in_registers() -> None:
    """In the time loop only h is read from shared memory, once: 8 warps, of 16 x 64 elements each."""
    tiles = 16 * 64 // (4 * 8 * 8)  # an instruction takes four tiles of 8 x 8
    assert _compile(BFLOAT16, 512, "forward").operands == tiles
    # All of h goes to every warp: 16 x 64 elements.
    assert _compile(BFLOAT16, 64, "forward").operands == tiles


def test_no_conversions_between_layouts_in_the_loop() -> None:
    """A barrier or two for h on its way to the product, and one before gates are written over."""
    assert _compile(BFLOAT16, 128, "forward").barriers <= 3
    assert _compile(BFLOAT16, 128, "backward").barriers <= 2


def test_states_are_written_only_after_all_threads_have_read_them() -> None:
    """Without a barrier in the loop, a thread could write over what another one that holds the same element reads."""
    for found in (
        _compile(BFLOAT16, 16, "forward"), _compile(FLOAT32, 16, "forward", precise=True),
        _compile(FLOAT16, 256, "forward", batch=64), _compile(FLOAT16, 256, "backward", batch=64),
    ):  # fmt: skip
        assert found.barriers >= 1


def test_the_tools_see_spills() -> None:
    """The bound bites: a size above those of the rule."""
    problem = Problem(Dense(8, 16), 16, 128, 128, 0, 1, True, FLOAT32, torch.device("cuda"))
    launch, *_ = offline.launches(problem, H200, "backward", Rows(128, 16, 8), precise=True)
    found = offline.compile_launch(launch)
    assert found.spilled > 600 or found.shared > SHARED[90]
