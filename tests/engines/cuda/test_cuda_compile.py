"""The CUDA engine's fused kernels, compiled without a GPU: registers, spills, shared memory, and their loops."""

import os
from functools import cache
from typing import Any

import pytest
import torch

from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.launch import INTERPRETED
from torchlstm.engines.cuda.plan import Rows, plan, shared_memory

offline: Any = pytest.importorskip("cuda_offline", reason="it needs Triton", exc_type=ImportError)

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

OLDER = tuple(map(int, offline.triton.__version__.split(".")[:2])) < (3, 9)
# Bytes a thread may spill, by kernel: what Triton 3.9 spills for sm_80 to sm_120, and a little more; 3.6 spills more.
# One size up from the largest of `plan.py` it is 600 and more.
SPILLED = {
    "fused_rows.forward": 224, "fused_rows.backward": 512, "fused_slices.forward": 64, "fused_slices.backward": 192
}  # fmt: skip
SPILLED_OLDER = {
    "fused_rows.forward": 224, "fused_rows.backward": 512, "fused_slices.forward": 320, "fused_slices.backward": 320
}  # fmt: skip
# By compute capability, with the shared memory of a program as the CUDA C++ Programming Guide has it ("Technical
# Specifications").
GPUS = {
    80: GPU("A100", (8, 0), 108, 163 << 10), 86: GPU("RTX 3090", (8, 6), 82, 99 << 10),
    89: GPU("RTX 4090", (8, 9), 128, 99 << 10), 90: GPU("H200", (9, 0), 132, 227 << 10),
    100: GPU("B200", (10, 0), 148, 227 << 10), 120: GPU("RTX 5090", (12, 0), 170, 99 << 10),
}  # fmt: skip
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
WIDE = os.environ.get("TORCHLSTM_TEST_ALL_GPUS") == "1"
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "backward"])


@cache
def _compile(dtype: torch.dtype, hidden: int, direction: str, batch: int = 16, directions: int = 1,
             ragged: bool = False, precise: bool = False, capability: int = 90) -> Any:  # fmt: skip
    """The kernel that the plan chooses, compiled; it needs the shared memory that the plan expects and the GPU has."""
    rows = Ragged(torch.full((8,), batch)) if ragged else Dense(8, batch)
    problem = Problem(rows, batch, hidden, hidden, 0, directions, True, dtype, torch.device("cuda"))
    gpu = GPUS[capability]
    launch, *_ = offline.launches(problem, gpu, direction, precise=precise)
    found = offline.compile_launch(launch, capability)
    assert found.name.startswith("fused")
    need = shared_memory(plan(problem, direction, precise, gpu), problem, direction, precise)
    assert found.shared <= need <= min(gpu.shared_memory, 2 * found.shared)
    return found


# W_hh of 16 units in float32 is 256 registers of a thread where H is 1024: on a GPU still faster than slices of 8.
SPILLED_TF32 = 900


def _fits(found: Any, dtype: torch.dtype, hidden: int) -> None:
    bound = (SPILLED_OLDER if OLDER else SPILLED)[found.name]
    assert found.spilled <= (SPILLED_TF32 if dtype == FLOAT32 and hidden > 512 else bound), found
    assert found.registers <= 255


# A representative of every branch of the plan, at the largest size that it takes, and sizes that need padding.
LARGEST: dict[str, tuple[torch.dtype, int, dict[str, Any]]] = {
    "half-rows": (BFLOAT16, 128, {"batch": 512}), "half-rows-ragged": (FLOAT16, 100, {"ragged": True, "batch": 512}),
    "half-few": (BFLOAT16, 128, {}),
    "half-slices": (BFLOAT16, 512, {}), "half-slices-odd": (FLOAT16, 513, {}),
    "half-slices-tiles": (FLOAT16, 1024, {"batch": 64, "ragged": True}),
    "half-two-directions": (BFLOAT16, 1024, {"directions": 2}), "tf32-rows": (FLOAT32, 64, {}),
    "tf32-slices": (FLOAT32, 1024, {}), "tf32-two-directions": (FLOAT32, 512, {"directions": 2, "batch": 32}),
    "float32-rows": (FLOAT32, 32, {"precise": True}), "float32-slices": (FLOAT32, 512, {"precise": True}),
    "float32-two-directions": (FLOAT32, 256, {"precise": True, "directions": 2, "batch": 48}),
}  # fmt: skip


@DIRECTIONS
@pytest.mark.parametrize(("dtype", "hidden", "more"), LARGEST.values(), ids=LARGEST)
def test_largest_sizes_fit(dtype: torch.dtype, hidden: int, more: Any, direction: str) -> None:
    _fits(_compile(dtype, hidden, direction, **more), dtype, hidden)


@DIRECTIONS
@pytest.mark.parametrize(
    ("capability", "name"),
    [(80, "half-two-directions"), (86, "half-rows"), (89, "tf32-slices"), (100, "tf32-rows"), (120, "float32-slices")],
)
def test_other_gpus(capability: int, name: str, direction: str) -> None:
    """One representative each; exact float32 has a cut of its own where shared memory is 99 KB."""
    dtype, hidden, more = LARGEST[name]
    if name == "half-two-directions":
        more = {}  # 64 slices of 16 units: of two directions, there is no room on 108 multiprocessors
    _fits(_compile(dtype, hidden, direction, capability=capability, **more), dtype, hidden)


@pytest.mark.skipif(not WIDE, reason="five minutes: only with TORCHLSTM_TEST_ALL_GPUS=1")
@DIRECTIONS
@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
def test_all_gpus(capability: int, name: str, direction: str) -> None:
    dtype, hidden, more = LARGEST[name]
    hidden = min(hidden, 8 * GPUS[capability].multiprocessors)  # no more slices of 8 units have room
    options = {"batch": 16, **more, "directions": 1}
    _fits(_compile(dtype, hidden, direction, capability=capability, **options), dtype, hidden)


def test_weights_stay_in_registers() -> None:
    """In the time loop only h is read from shared memory, once: 4 warps, each of a quarter of its units."""
    # An instruction takes four tiles of 8 x 8.
    assert _compile(BFLOAT16, 512, "forward").operands == 16 * 128 // (4 * 8 * 8)
    assert _compile(BFLOAT16, 64, "forward").operands == 16 * 16 // (4 * 8 * 8)
    # All of h goes to every warp: 16 x 128 elements.
    assert _compile(BFLOAT16, 128, "forward", batch=512).operands == 16 * 128 // (4 * 8 * 8)


def test_no_conversions_between_layouts_in_the_loop() -> None:
    """One or two barriers to move h or a gate into the product's layout, and one before gates are overwritten."""
    assert _compile(BFLOAT16, 128, "forward", batch=512).barriers <= 3
    assert _compile(BFLOAT16, 128, "backward", batch=512).barriers <= 2 * 4


@pytest.mark.parametrize(
    ("hidden", "direction", "instructions", "barriers", "functions"),
    [(512, "forward", 440, 11, 5), (1024, "forward", 430, 9, 5), (1024, "backward", 1000, 27, 1)],
)
def test_partial_products_are_added_once(
    hidden: int, direction: str, instructions: int, barriers: int, functions: int
) -> None:
    """And the cell is computed once: each thread has one element, so one tanh for each gate and for c."""
    found = _compile(BFLOAT16, hidden, direction)
    assert found.functions == functions
    assert found.instructions <= instructions
    assert found.barriers <= barriers


@DIRECTIONS
@pytest.mark.parametrize(
    ("dtype", "hidden", "ragged"),
    [(FLOAT16, 513, False), (BFLOAT16, 512, False), (FLOAT32, 650, False), (BFLOAT16, 512, True)],
    ids=str,
)
def test_words_of_32_bits_are_exchanged(dtype: torch.dtype, hidden: int, ragged: bool, direction: str) -> None:
    """Written singly, and read four at a time whatever H is; a forward of at most 512 units polls one of each slice."""
    expected = {"st.relaxed.gpu.global.b32", "ld.volatile.global.v4.b32"}
    if direction == "forward" and hidden <= 512:
        expected.add("ld.volatile.global.b32")
    assert _compile(dtype, hidden, direction, ragged=ragged).exchanged == expected


@DIRECTIONS
@pytest.mark.parametrize(("hidden", "units", "threads"), [(64, 8, 128), (512, 16, 256)])
def test_operands_are_rounded_to_tf32(hidden: int, units: int, threads: int, direction: str) -> None:
    """The weights once; in the loop what a thread publishes, h or four gradients, and of the first step all of h_0."""
    found = _compile(FLOAT32, hidden, direction)
    weights = 4 * hidden * units // threads
    in_loop = 1 + 16 * hidden // threads if direction == "forward" else 4
    assert found.roundings == weights + in_loop
    assert found.roundings_in_loop >= in_loop
    assert _compile(BFLOAT16, 512, direction).roundings == 0


def test_states_are_written_only_after_all_threads_have_read_them() -> None:
    """Without a barrier in the loop, a thread could overwrite an element that another one has yet to read."""
    for found in (
        _compile(BFLOAT16, 16, "forward"), _compile(FLOAT32, 16, "forward", precise=True),
        _compile(FLOAT16, 256, "forward", batch=64), _compile(FLOAT16, 256, "backward", batch=64),
    ):  # fmt: skip
        assert found.barriers >= 1


def test_the_tools_see_spills() -> None:
    """The bound can fail: a size above those of the plan."""
    problem = Problem(Dense(8, 16), 16, 128, 128, 0, 1, True, FLOAT32, torch.device("cuda"))
    launch, *_ = offline.launches(problem, GPUS[90], "backward", Rows(128, 16, 8), precise=True)
    found = offline.compile_launch(launch)
    assert found.spilled > 600
