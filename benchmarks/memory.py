"""Peak memory of one training step, in a process of its own, so that no earlier step counts."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchlstm import use_engine

from .calls import module_of, training
from .record import Memory
from .workloads import WORKLOADS

_MB = 1e6


def measure_memory(name: str, device: str, threads: int, engine: str) -> Memory:
    """The peaks of nn.LSTM and of torchlstm on a workload of the table."""
    found: dict[str, float | None] = {"nn": None, "ours": None}
    note = None
    for who in found:
        command = [sys.executable, "-m", "benchmarks.memory", who, name, device, str(threads), engine]
        root = Path(__file__).parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            note = f"{who}: {(done.stderr.strip() or f'exit code {done.returncode}').splitlines()[-1][:120]}"
        else:
            found[who] = json.loads(done.stdout)
    return {"nn_mb": found["nn"], "ours_mb": found["ours"], "note": note}


def _resident(field: str) -> float:
    """A figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def peak_of_step(name: str, ours: bool, device: str) -> float:
    """Return the peak MB of one training step of a workload, above what was there before it."""
    workload = WORKLOADS[name]
    tiny = workload.shrunk()
    # What a first call loads belongs to the library, not to the step.
    training(module_of(tiny, ours, device), tiny.inputs().to(torch.device(device), tiny.case.dtype))()
    inputs = workload.inputs().to(torch.device(device), workload.case.dtype)
    return peak_of(training(module_of(workload, ours, device), inputs), device)


def peak_of(step: Callable[[], Any], device: str) -> float:
    """Return the peak MB of a call, its result included, above what was there before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        # Resets the high-water mark to what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = int(_resident("VmRSS"))
        kept = step()
        peak = int(_resident("VmHWM")) - before
    del kept  # the gradients belong to the peak
    return peak / _MB


def main() -> None:
    """Print the peak of one module as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=("nn", "ours"))
    parser.add_argument("workload")
    parser.add_argument("device")
    parser.add_argument("threads", type=int)
    parser.add_argument("engine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not sys.platform.startswith("linux") and arguments.device == "cpu":
        sys.exit("the peak memory of a process is read from /proc, which only Linux has")
    with use_engine(arguments.engine):
        print(json.dumps(peak_of_step(arguments.workload, arguments.who == "ours", arguments.device)))


if __name__ == "__main__":
    main()
