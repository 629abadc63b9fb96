"""Where the programs for a GPU run: on a GPU, or, to see that they run at all, on a CPU in Triton's interpreter."""

import argparse
import os
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from torchlstm.engines.cuda.loops import REFUSED

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def device_of(parser: argparse.ArgumentParser | None = None, dry_run: bool = INTERPRETED) -> torch.device:
    """Return the GPU, or the CPU in a dry run; ends the program with one line if there is neither."""
    if dry_run and INTERPRETED:
        return torch.device("cpu")
    problem = None
    if dry_run:
        problem = "a dry run is for Triton's interpreter: set TRITON_INTERPRET=1"
    elif not torch.cuda.is_available():
        problem = f"no CUDA device: torch {torch.__version__} sees none"
    if problem is None:
        # Otherwise the loop of single steps would run in place of the kernels that are to be tried.
        warnings.filterwarnings("error", re.escape(REFUSED))
        return torch.device("cuda", torch.cuda.current_device())
    if parser is None:
        raise RuntimeError(problem)
    parser.exit(2, f"{parser.prog}: error: {problem}\n")


def wait(device: torch.device) -> None:
    """Wait until the GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def streams(device: torch.device, count: int) -> list[AbstractContextManager[Any]]:
    """Return contexts, each with a stream of its own."""
    if device.type != "cuda":
        return [nullcontext() for _ in range(count)]
    return [torch.cuda.stream(torch.cuda.Stream(device)) for _ in range(count)]


def captured(device: torch.device, call: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    """Capture a call as a CUDA graph; return what replays it, and its results, which each replay overwrites."""
    if device.type != "cuda":
        results = call()
        return lambda: None, results
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):  # what a first call allocates must not be in the graph
            call()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results
