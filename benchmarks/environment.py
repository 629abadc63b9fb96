"""Where a run was measured: the machine, the programs, the commit, and the machine's own speed limit."""

import os
import platform
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import torchlstm

ROOT = Path(__file__).parent.parent

# Of the flags that Linux lists, those that decide how fast a product of matrices is.
_FLAGS = re.compile(r"avx\w*|fma|f16c|amx\w*|sse4_2|neon|asimd\w*|sve\w*|i8mm|bf16")


def environment(device: str) -> dict[str, Any]:
    """Everything about this place that a figure may depend on, except the sgemm peak; see README.md."""
    cpu, flags = _cpu()
    machine = torch.cuda.get_device_name() if device == "cuda" else cpu
    commit, dirty = _commit()
    return {
        "machine": machine,
        "machine_slug": slugify(machine),
        "cpu": cpu,
        "instruction_sets": flags,
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
        "forced_isa": os.environ.get("TORCHLSTM_ISA"),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": _gpu() if device == "cuda" else None,
    }


def slugify(machine: str) -> str:
    """A machine's name as part of a file's name: "Intel(R) Xeon(R) CPU @ 2.20GHz" -> "intel-xeon"."""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\b\d+-core\b", " ", machine.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _cpu() -> tuple[str, list[str]]:
    """The processor's name and those of its instruction sets that matter."""
    name, flags = platform.processor() or platform.machine(), []
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return name, []
    if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        name = found[1].strip()
    if listed := re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE):
        flags = sorted({flag for flag in listed[1].split() if _FLAGS.fullmatch(flag)})
    return name, flags


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> tuple[str, bool | None]:
    """The commit that is checked out, and whether what is measured differs from it."""
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
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "triton": getattr(triton, "__version__", None),
    }


def product_peak(device: str, dtype: torch.dtype, quick: bool) -> float:
    """GF/s of the best of many large matrix products, which no LSTM can exceed."""
    size = 256 if quick else 8192 if device == "cuda" else 2048
    a, b, out = (torch.rand(size, size, device=device).to(dtype) for _ in range(3))
    best = float("inf")
    end = time.perf_counter() + (0.02 if quick else 2.0)
    done = 0
    while done < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        done += 1
    return 2 * size**3 / best / 1e9
