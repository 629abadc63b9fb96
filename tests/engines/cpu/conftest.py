"""What tests of the CPU engine share: that it runs, and on how many threads."""

from collections.abc import Callable, Iterator

import pytest
import torch

import torchlstm
from torchlstm.engines.cpu import engine as cpu


@pytest.fixture
def on_the_cpu_engine() -> Iterator[None]:
    """Compute with this engine, or raise."""
    with torchlstm.use_engine("cpu"):
        yield


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, which calls then have: more than there are processors, too."""
    before = torch.get_num_threads()
    cpu._kernel.adapt(False)
    yield torch.set_num_threads
    cpu._kernel.adapt(True)
    torch.set_num_threads(before)
