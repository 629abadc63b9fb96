"""How torch is asked to capture a CUDA graph, and when it is not: the calls, against a stand-in for torch.cuda."""

import contextlib
import gc
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from torchlstm.engines.cuda import graphs

CPU = torch.device("cpu")


class _Cuda:
    """Records the calls that `graphs._Torch` makes to torch, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        calls = self.calls

        class Graph:
            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                calls.append(("begin", pool, capture_error_mode, gc.isenabled()))

            def capture_end(self) -> None:
                calls.append("end")

            def replay(self) -> None:
                calls.append("replay")

        @contextlib.contextmanager
        def stream(side: Any) -> Any:
            calls.append(("on", side))
            yield
            calls.append("off")

        numbers = iter(range(9))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: f"side {next(numbers)}")
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: f"pool {next(numbers)}")
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: calls.append("clear"), raising=False)


class _Stream(NamedTuple):
    name: str
    device: torch.device = torch.device("cuda", 0)


def test_how_torch_is_asked_to_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream of its own; no two streams share a pool, and so no workspace."""
    cuda, seam = _Cuda(monkeypatch), graphs._Torch()
    one, other = _Stream("one"), _Stream("other")
    replay = seam.capture(one, lambda: cuda.calls.append("run"))
    expected = ["clear", ("on", "side 0"), ("begin", "pool 1", "thread_local", False), "run", "end", "off", "clear"]
    assert cuda.calls == expected
    assert gc.isenabled()
    replay()
    assert cuda.calls[-1] == "replay"
    seam.capture(one, lambda: None)
    seam.capture(other, lambda: None)
    assert [call[1] for call in cuda.calls if call[0] == "begin"] == ["pool 1", "pool 1", "pool 3"]


def test_a_capture_that_fails_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, seam = _Cuda(monkeypatch), graphs._Torch()

    def fail() -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        seam.capture(_Stream("one"), fail)
    assert cuda.calls[-2:] == ["end", "clear"]
    assert gc.isenabled()


def test_a_capture_that_cannot_be_ended_leaves_no_pool_open(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, seam = _Cuda(monkeypatch), graphs._Torch()

    def end(_: Any) -> None:
        raise RuntimeError("invalidated")

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_end", end)
    ended: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *args: ended.append(args), raising=False)
    with pytest.raises(RuntimeError, match="invalidated"):
        seam.capture(_Stream("one"), lambda: None)
    assert ended == [(0, "pool 1")]
    assert cuda.calls[-1] == "clear"
    assert not seam._private


def test_calls_for_the_compilers_own_graphs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    device, streams = torch.device("cuda", 0), {"now": "of the compiler"}
    trees = SimpleNamespace(get_manager=lambda *_, **__: SimpleNamespace(stream="of the compiler"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: streams["now"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    seam = graphs._Torch()
    monkeypatch.delitem(sys.modules, "torch._inductor.cudagraph_trees", raising=False)
    assert seam.usable(device)
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    assert not seam.usable(device)
    streams["now"] = "of the user"
    assert seam.usable(device)
    trees.get_manager = lambda *_, **__: None
    assert seam.usable(device)
    assert not seam.usable(CPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not seam.usable(device)
