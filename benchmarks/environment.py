"""Where a run was measured: machine, versions, commit; `limit.py` measures the machine's own speed."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import torchlstm
from torchlstm.engines.cpu.engine import instruction_set
from torchlstm.parity.run import tf32_allowed

from .machine import described, processor, short, slugify

ROOT = Path(__file__).parent.parent


def environment(device: str) -> dict[str, Any]:
    """Return everything here that a figure may depend on, except the machine's speed; README.md lists the fields."""
    cpu = processor()
    machine = torch.cuda.get_device_name() if device == "cuda" else described(cpu)
    commit, dirty = _commit()
    return {
        "machine": machine,
        "machine_slug": slugify(machine if device == "cuda" else short(cpu)),
        "cpu": cpu["name"],
        "cpu_design": {field: cpu[field] for field in ("vendor", "family", "model", "design")},
        "instruction_sets": cpu["flags"],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchlstm": torchlstm.__version__,
        "engines": torchlstm.engines(),
        "isa": instruction_set() if torchlstm.engines()["cpu"] is None else None,
        "forced_isa": os.environ.get("TORCHLSTM_ISA"),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": _gpu() if device == "cuda" else None,
    }


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> tuple[str, bool | None]:
    """Return the checked-out commit, and whether the measured code differs from it."""
    commit = _output("git", "rev-parse", "--short=10", "HEAD")
    if commit is None:
        return "unknown", None
    changes = _output("git", "status", "--porcelain", "--", "torchlstm", "setup.py", "benchmarks/*.py")
    return commit, bool(changes)


def _gpu() -> dict[str, Any]:
    major, minor = torch.cuda.get_device_capability()
    triton = sys.modules.get("triton")
    return {
        "name": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_allow_tf32": tf32_allowed("rnn"),
        "matmul_allow_tf32": tf32_allowed("matmul"),
        "triton": getattr(triton, "__version__", None),
    }
