"""Identifies a GPU and its other users; runs in a process of its own, so that the caller needs no CUDA context."""

import os
import shutil
import subprocess
from typing import Any

import torch

from ..engines.contract import Dense, Problem
from ..engines.cuda import engine as cuda
from ..engines.cuda.device import gpu_of
from ..engines.cuda.identity import identity_of

# More bytes in use than this mean other users: drivers and an empty context take less.
_MUCH = 2 << 30


def probe(device: str) -> dict[str, Any]:
    """The identity of a device, its properties for plans, why the engine refuses it, and its other users."""
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.init()
        place = torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)
    refused = cuda.ENGINE.refuses(Problem(Dense(2, 1), 1, 1, 1, 0, 1, True, torch.float32, place))
    found: dict[str, Any] = {"device": str(place), "refused": refused}
    if refused:
        return found
    others, told = _others(place)
    gpu = gpu_of(place.index)
    return found | {
        "identity": identity_of(place.index), "gpu": gpu._asdict(), "others": others, "told": told,
    }  # fmt: skip


def _others(place: torch.device) -> tuple[str | None, str | None]:
    """Why others seem to compute on a GPU, or None; and a note on what is not known, or None."""
    if place.type != "cuda":
        return None, None
    free, total = torch.cuda.mem_get_info(place)
    much = f"{(total - free) / 2**30:.1f} GiB of its memory are in use" if total - free > _MUCH else None
    if (tool := shutil.which("nvidia-smi")) is None:
        return much, None if much else "nvidia-smi is not here: whether other processes compute on it is not known"
    properties: Any = torch.cuda.get_device_properties(place)
    command = [tool, f"--id=GPU-{properties.uuid}", "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return much, None if much else f"nvidia-smi failed ({error}): whether other processes compute is not known"
    pids = [line.strip() for line in done.stdout.splitlines() if line.strip() not in ("", str(os.getpid()))]
    # In a container the process ids are the host's, so this process is one of those listed.
    if len(pids) > (0 if str(os.getpid()) in done.stdout.split() else 1):
        return f"other processes compute on it ({', '.join(pids)})", None
    return much, None
