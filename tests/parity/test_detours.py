"""Where nn.LSTM cannot run a case on CUDA, it is compared by a detour, which is said; without a GPU."""

from typing import Any

import pytest
import torch

from torchlstm.parity.run import _first_that_runs

HALF, BFLOAT16 = torch.float16, torch.bfloat16


def _run(refusing: list[tuple[str, bool]], dtype: torch.dtype, asked: list[Any]) -> Any:
    """A module that runs except on these (device, with cuDNN)."""

    def run(on: str) -> dict[str, torch.Tensor | None]:
        here = (on, torch.backends.cudnn.enabled)
        asked.append(here)
        if here in refusing:
            raise RuntimeError(f"{on} refuses")
        return {"output": torch.zeros(1, dtype=dtype)}

    return run


CUDNN, CUDA, CPU = ("cuda", True), ("cuda", False), ("cpu", True)
DETOURS = {
    "none": ([], [CUDNN], None), "without-cudnn": ([CUDNN], [CUDNN, CUDA], "torch's own CUDA kernels"),
    "on-the-cpu": ([CUDNN, CUDA], [CUDNN, CUDA, CPU], "compared with the CPU"),
}  # fmt: skip


@pytest.mark.parametrize("name", DETOURS)
def test_the_first_that_runs(name: str) -> None:
    refusing, expected, told = DETOURS[name]
    asked: list[Any] = []
    seen, note = _first_that_runs(_run(refusing, HALF, asked), "cuda", None)
    assert seen is not None
    assert asked == expected
    assert note is None if told is None else told in str(note)
    assert torch.backends.cudnn.enabled


def test_what_runs_nowhere_is_an_error() -> None:
    for device, refusing in (("cpu", [CPU]), ("cuda", [CUDNN, CUDA, CPU])):
        with pytest.raises(RuntimeError, match=f"{device} refuses"):
            _first_that_runs(_run(refusing, HALF, []), device, None)


def test_another_dtype_than_autocasts_is_not_compared() -> None:
    """As cuDNN's float16 for bfloat16."""
    seen, note = _first_that_runs(_run([], HALF, []), "cuda", BFLOAT16)
    assert seen is None
    assert "float16, asked for torch.bfloat16" in str(note)
    assert _first_that_runs(_run([], BFLOAT16, []), "cuda", BFLOAT16)[1] is None
    assert _first_that_runs(_run([CPU], BFLOAT16, []), "cpu", BFLOAT16)[0] is None
