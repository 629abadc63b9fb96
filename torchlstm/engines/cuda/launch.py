"""How the kernels of the CUDA engine are launched, on a GPU or in Triton's interpreter."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

# In Triton's interpreter the kernels run on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# How every kernel is compiled: not pipelined, and products fused with sums, which newer Tritons want to be told.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


def launch(
    file: str,
    name: str,
    grid: tuple[int, ...],
    warps: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int],
    together: bool = False,
    **constants: Any,
) -> None:
    """Launch a kernel on the current stream; `together`: refuse to unless all its programs can run at once."""
    kernel = getattr(importlib.import_module(f".kernels.{file}", __package__), name)
    options = {} if INTERPRETED else {"num_warps": warps, "launch_cooperative_grid": together, **OPTIONS}
    if 0 not in grid:
        kernel[grid](*tensors, *numbers, **constants, **options)
