"""A GPU that is none: what is put on "cuda" stays on the CPU, and torch.cuda answers as if there were one."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode


class OnCPU(TorchFunctionMode):
    """Gives every function of torch the CPU in the place of a CUDA device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            if isinstance(value, torch.device) and value.type == "cuda":
                return torch.device("cpu")
            return "cpu" if isinstance(value, str) and value.startswith("cuda") else value

        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        kwargs = {name: here(value) for name, value in kwargs.items()}
        return func(*map(here, args), **kwargs)


class Stream:
    """A stream that does at once what it is given."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


class Graph(Stream):
    """A graph whose replay leaves the results of its capture as they are."""

    replays = 0

    def replay(self) -> None:
        Graph.replays += 1


class Event:
    """An event that took a millisecond."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        return None

    def elapsed_time(self, end: "Event") -> float:
        assert isinstance(end, Event)
        return 1.0


def install(patch: pytest.MonkeyPatch) -> list[str]:
    """Put it into torch.cuda; returns the calls of synchronize, as they come."""
    waits: list[str] = []
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "Fake GPU",
        "get_device_capability": lambda *_: (9, 0),
        "synchronize": lambda *_: waits.append("synchronize"),
        "reset_peak_memory_stats": lambda *_: None,
        "memory_allocated": lambda *_: 1_000_000,
        "max_memory_allocated": lambda *_: 3_500_000,
        "current_stream": lambda *_: Stream(),
        "stream": lambda stream: stream,
        "graph": lambda graph: graph,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "Event": Event,
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    return waits
