"""What of a GPU decides how the CUDA engine runs on it."""

from typing import Any, NamedTuple

import torch

from ..shared.torch_private import constant
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


# Bytes of shared memory that a program may ask for, by compute capability (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"): for builds of torch that do not say it.
_SHARED_MEMORY = {
    (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 7): 163 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10,
    (10, 3): 227 << 10, (11, 0): 227 << 10, (12, 0): 99 << 10, (12, 1): 99 << 10,
}  # fmt: skip
# What every GPU has.
_SHARED_MEMORY_AT_LEAST = 48 << 10

# In the interpreter programs run one after another: none may wait for another one, so that there is room for none.
_INTERPRETER = GPU("Triton's interpreter", (9, 0), 0, 227 << 10)


@constant
def gpu_of(index: int | None) -> GPU:
    """The GPU of this index, None for the current one; in Triton's interpreter, what stands for one."""
    if INTERPRETED:
        return _INTERPRETER
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    capability = (found.major, found.minor)
    return GPU(found.name, capability, found.multi_processor_count, _shared_memory(found, capability))


def _shared_memory(properties: Any, capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a program may ask for, which not every build of torch says."""
    known = _SHARED_MEMORY.get(capability, _SHARED_MEMORY_AT_LEAST)
    return int(getattr(properties, "shared_memory_per_block_optin", known))
