"""The properties of a GPU that decide how the CUDA engine runs on it."""

from typing import Any, NamedTuple

import torch

from ..shared.torch_private import constant
from .launch import INTERPRETED


class GPU(NamedTuple):
    """The properties of a GPU that a plan depends on.

    multiprocessors  how many programs run at once if each fills one
    shared_memory    bytes that a program may ask for
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int


# Bytes of shared memory that a program may ask for, by compute capability (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"): for builds of torch that do not report it.
_SHARED_MEMORY = {
    (8, 0): 163 << 10, (8, 6): 99 << 10, (8, 7): 163 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10,
    (10, 3): 227 << 10, (11, 0): 227 << 10, (12, 0): 99 << 10, (12, 1): 99 << 10,
}  # fmt: skip
# Every GPU has at least this much.
_SHARED_MEMORY_AT_LEAST = 48 << 10

# The interpreter runs programs one after another, so none may wait for another: without multiprocessors no plan has
# programs that do.
_INTERPRETER = GPU("Triton's interpreter", (9, 0), 0, 227 << 10)


@constant
def gpu_of(index: int | None) -> GPU:
    """The GPU of this index, None for the current one; in Triton's interpreter a stand-in."""
    if INTERPRETED:
        return _INTERPRETER
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    capability = (found.major, found.minor)
    return GPU(found.name, capability, found.multi_processor_count, _shared_memory(found, capability))


def _shared_memory(properties: Any, capability: tuple[int, int]) -> int:
    """Bytes of shared memory that a program may ask for, which not every build of torch reports."""
    known = _SHARED_MEMORY.get(capability, _SHARED_MEMORY_AT_LEAST)
    return int(getattr(properties, "shared_memory_per_block_optin", known))
