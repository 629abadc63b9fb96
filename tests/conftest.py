"""What every test runs under."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch


def pytest_configure() -> None:
    """Side by side (`pytest -n`), every process of tests and its children have one thread, unless a test sets more."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of half a minute and more first, so that side by side none is left alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many processes as this one may use processors, but no more than memory has room for."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, a process takes whole files: what their tests share is set up once, and compiled once.

    Files go in the order of collection, those with a long test first: none of them is left alone at the end.
    """
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def unwritten_memory_shows() -> Iterator[None]:
    """Fill `torch.empty` with NaN, so that an element that nobody wrote fails a comparison."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def no_record_of_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the records of whoever runs the tests out of them, and of their children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHLSTM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
