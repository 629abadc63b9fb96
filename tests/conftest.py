"""What every test runs under."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def unwritten_memory_shows() -> Iterator[None]:
    """Fill `torch.empty` with NaN, so that an element that nobody wrote fails a comparison."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def engine_is_automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no forced engine behind."""
    monkeypatch.setattr("torchlstm.call.dispatch._forced", "auto")


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let plain calls take the way that all others take, through the plan and the engines."""
    monkeypatch.setattr("torchlstm.call.native._connected", False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests on many small tensors, over which threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
