"""What of a GPU decides how the CUDA engine runs on it."""

from typing import Any, NamedTuple

import torch

from .launch import INTERPRETED


class GPU(NamedTuple):
    """A GPU, as far as a plan depends on it.

    multiprocessors  how many programs that fill one run at once
    shared_memory    bytes that a program may ask for
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int


# In the interpreter programs run one after another: none may wait for another one, so that there is room for none.
_INTERPRETER = GPU("Triton's interpreter", (9, 0), 0, 227 << 10)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def gpu_of(index: int | None) -> GPU:
    """The GPU of this index, None for the current one; in Triton's interpreter, what stands for one."""
    if INTERPRETED:
        return _INTERPRETER
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    return GPU(found.name, (found.major, found.minor), found.multi_processor_count, found.shared_memory_per_block_optin)
