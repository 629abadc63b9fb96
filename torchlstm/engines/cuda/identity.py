"""The identity of a record: GPU, driver, versions, settings and sources, all that could make programs wrong or slow."""

import hashlib
import json
import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch

from .device import gpu_of
from .launch import INTERPRETED

# By what is named: the GPU, the driver, versions, settings, sources.
Identity: TypeAlias = dict[str, str]

# Variables that name places of Triton's files and output, and do not change what it compiles.
_PLACES = {
    *("TRITON_CACHE_DIR", "TRITON_HOME", "TRITON_DUMP_DIR", "TRITON_OVERRIDE_DIR", "TRITON_CACHE_MANAGER"),
    *("TRITON_KERNEL_DUMP", "TRITON_STORE_BINARY_ONLY", "TRITON_ALWAYS_COMPILE", "TRITON_PRINT_AUTOTUNING"),
    *("TRITON_CACHE_AUTOTUNING", "TRITON_DUMP_PTXAS_LOG", "TRITON_DUMP_MIR", "TRITON_REMOTE_CACHE_BACKEND"),
}
_OTHERS = ("PTXAS_OPTIONS", "DISABLE_PTXAS_OPT", "DISABLE_LLVM_OPT", "TORCHLSTM_GRAPHS")
# Files of this folder that decide which programs run, and do not change them.
_CHOICE = {"classes.py", "identity.py", "records.py", "qualified.py", "told.py"}
_EDGE = 1 << 16


@cache
def identity_of(index: int | None) -> Identity:
    """The identity of this GPU, None for the current one, in this process; in Triton's interpreter, of the machine."""
    found = _common()
    if INTERPRETED:
        return {"gpu": "Triton's interpreter", "machine": platform.machine(), "numpy": _version("numpy")} | found
    gpu = gpu_of(index)
    return {
        "gpu": gpu.name,
        "capability": ".".join(map(str, gpu.capability)),
        "multiprocessors": str(gpu.multiprocessors),
        "shared memory": str(gpu.shared_memory),
        "MIG": "yes" if " MIG " in f" {gpu.name} " or _asked_for_mig() else "no",
        "MPS": _mps(),
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "ptxas": _ptxas(),
    } | found


def digest(identity: Identity) -> str:
    """A short hash of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def difference(theirs: Identity, ours: Identity) -> str:
    """In what a record's identity differs from this process's, in words; "" if in nothing."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    told = [f"{name} {theirs.get(name, 'unknown')}, here {ours.get(name, 'unknown')}" for name in names]
    return "; ".join(text if len(text) < 160 else f"{name} differs" for name, text in zip(names, told, strict=True))


def _common() -> Identity:
    settings = {
        name: value
        for name, value in sorted(os.environ.items())
        if (name.startswith("TRITON_") and name not in _PLACES) or name in _OTHERS
    }
    return {
        "torch": f"{torch.__version__} {str(torch.version.git_version)[:12]}",
        "Triton": _version("triton", "pytorch-triton"),
        "settings": json.dumps(settings),
        "torchlstm": _own_version(),
        "sources": _sources(),
    }


def _own_version() -> str:
    """The version of this package, also where it is not installed."""
    return str(sys.modules[__package__.split(".")[0]].__version__)


def _version(*names: str) -> str:
    """The version of a distribution that has one of these names."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


# MPS's default folder of pipes (NVIDIA, "Multi-Process Service").  If it is missing, MPS does not run.
_MPS_PIPES = "/tmp/nvidia-mps"


def _sources() -> str:
    """A digest of the texts that the programs, their plan and their launches are made of."""
    here, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted(path for path in here.rglob("*.py") if path.name not in _CHOICE):
        found.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _driver() -> str:
    """The version that the kernel module reports; else the CUDA version that the driver supports."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError):
        torch_c: Any = torch._C
        return f"for CUDA {torch_c._cuda_getDriverVersion()}"


def _asked_for_mig() -> bool:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG")


def _mps() -> str:
    """Whether several processes share the GPU by MPS, and how much of it they get."""
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _MPS_PIPES)
    if not os.path.exists(os.path.join(pipe, "control")):
        return "no"
    shares = ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_ENABLE_PER_CTX_DEVICE_MULTIPROCESSOR_PARTITIONING")
    return " ".join(["yes", *(os.environ[name] for name in shares if name in os.environ)])


def _ptxas() -> str:
    """The sizes of the assemblers that Triton may use, and digests of their first and last bytes: none is run."""
    spec = find_spec("triton")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    paths = [Path(root, "backends/nvidia/bin", name) for root in roots for name in ("ptxas", "ptxas-blackwell")]
    paths += [Path(os.environ[name]) for name in sorted(os.environ) if name.startswith("TRITON_PTXAS")]
    found = []
    for path in paths:
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                ends = file.read(_EDGE)
                file.seek(max(0, size - _EDGE))
                ends += file.read()
        except OSError:
            continue
        found.append(f"{path.name} {size}-{hashlib.sha256(ends).hexdigest()[:12]}")
    return ", ".join(found) or "unknown"
