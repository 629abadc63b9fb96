"""Everything that should be seen on a GPU, in ten minutes: the steps of `gpu_check.sh`, their limits and commands.

    benchmarks/gpu_check.sh [folder]               # default: gpu-check; PYTHON=... chooses the interpreter
    benchmarks/gpu_check.sh --dry-run [folder]     # every step at a tiny size in Triton's interpreter: no GPU

The folder gets `check.jsonl`, one line per step as soon as it has ended, a log of every step, and what the steps write.
The exit code is 0 if every step ran and passed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 590  # of all steps together
_ROOT = Path(__file__).parent.parent
_STRAY = 5  # seconds that a process has to end in before it is killed


class Step(NamedTuple):
    """One program, as it runs on a GPU and in a dry run.

    limit  seconds, after which it is killed
    """

    name: str
    limit: int
    command: Sequence[str]
    dry: Sequence[str]


def steps(out: Path) -> list[Step]:
    """Return all steps in order: correctness before speed, and last what may be left out."""
    python, torchlstm = [sys.executable, "-m"], [sys.executable, "-m", "torchlstm"]
    parity = [*torchlstm, "parity", "--device"]
    bench = [*python, "benchmarks", "--no-memory"]
    grid = "grid-*-B16-*,grid-*-B1-H512,grid-*-B64-H1024,rest-*"
    once = [*python, "benchmarks.gpu_stress", "--once"]
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]

    def ours(name: str, *arguments: str) -> tuple[list[str], list[str]]:
        """Return the commands of a program of this folder, on a GPU and in a dry run."""
        command = [*python, f"benchmarks.{name}", *arguments]
        return command, [*command, "--dry-run"]

    def file(name: str) -> list[str]:
        return ["--json", str(out / name)]

    def parity_of(engine: str, case: str) -> tuple[list[str], list[str]]:
        more = ["--engine", engine, *file(f"parity-{engine}.json")]
        return [*parity, "cuda", *more], [*parity, "cpu", *more, "--case", case]

    return [
        Step("machine", 10, *ours("gpu_check", "--machine")),
        Step("info", 20, [*torchlstm, "info"], [*torchlstm, "info"]),
        Step("compile", 95, *ours("gpu_compile")),
        Step("parity-reference", 45, *parity_of("reference", "float32-dense")),
        Step("parity-cuda", 60, *parity_of("cuda", "float32-dense")),
        Step("stress", 85, *ours("gpu_stress", "--seconds", "60", *file("stress.jsonl"))),
        Step("kernels", 25, *ours("gpu_kernels")),
        Step("slopes", 45, *ours("gpu_slopes", *file("slopes.jsonl"))),
        Step(
            "qualify", 90,
            [*torchlstm, "qualify", "--quick", *file("qualify.json")],
            [*torchlstm, "qualify", "--quick", *file("qualify.json")],
        ),
        Step(
            "benchmarks-cuda", 60,
            [*bench, "--device", "cuda", "--engine", "cuda", "--seconds", "0.02", "--workloads", grid,
             *file("benchmarks-cuda.json"), "--markdown", str(out / "benchmarks-cuda.md")],
            [*bench, "--engine", "cuda", "--quick", "--seconds", "0.001", "--workloads", "T1-B1-I256-H256",
             *file("benchmarks-cuda.json"), "--markdown", str(out / "benchmarks-cuda.md")],
        ),
        Step(
            "benchmarks", 25,
            [*python, "benchmarks", "--device", "cuda", "--seconds", "0.05", "--workloads",
             "T128-B16-I128-H256,ragged-T200-B64-I128-H256,cell-B8-H256,steps-T3-B4-H256", *file("benchmarks.json")],
            [*bench, "--quick", "--seconds", "0.001", "--workloads", "cell-B8-H256", *file("benchmarks.json")],
        ),
        # Not racecheck: it sees shared memory only, and the programs of a kernel exchange values in global memory.
        Step("memcheck", 30, [*sanitizer, *once], [*once, "--dry-run"]),
    ]  # fmt: skip


def run(step: Step, out: Path, dry_run: bool) -> dict[str, Any]:
    """Run a step and return its line of `check.jsonl`."""
    command, start = list(step.dry if dry_run else step.command), time.perf_counter()
    line: dict[str, Any] = {"name": step.name, "command": command, "limit": step.limit}
    if shutil.which(command[0]) is None:
        return line | {"seconds": 0.0, "exit": None, "last": f"not run: no {command[0]} on the PATH"}
    environment = os.environ | {"TORCHLSTM_CACHE": str(out / "qualified")}
    log = out / f"{step.name}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=_ROOT, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(None if dry_run else step.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = (lines or [""])[-1][:200]
    last = f"killed after {step.limit} s; {last}" if code is None else last
    return line | {"seconds": round(time.perf_counter() - start, 1), "exit": code, "last": last}


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and every process it has started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(_STRAY)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def machine(dry_run: bool) -> int:
    """Print what the GPU is and which processes use it; returns 1 if there are any, or no GPU."""
    if shutil.which("nvidia-smi") is None:
        print("no nvidia-smi on the PATH")
        return 0 if dry_run else 1

    def ask(what: str) -> str:
        command = ["nvidia-smi", what, "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    print(ask("--query-gpu=name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,temperature.gpu"))
    others = ask("--query-compute-apps=pid,name,used_memory")
    print(f"other processes: {others or 'none'}")
    return 1 if others else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps; returns 1 if one of them failed, was killed or could not run."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", nargs="?", default="gpu-check", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, in Triton's interpreter")
    parser.add_argument("--machine", action="store_true", help="say what the GPU is, and stop")
    arguments = parser.parse_args(argv)
    if arguments.machine:
        return machine(arguments.dry_run)
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    out = arguments.folder.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found = []
    (out / "check.jsonl").write_text("", encoding="utf-8")
    # Steps on a GPU run one after the other; in a dry run two share the processors.
    pool = ThreadPoolExecutor(2 if arguments.dry_run else 1)
    for line in pool.map(lambda step: run(step, out, arguments.dry_run), steps(out)):
        with (out / "check.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{line['name']}: {line['seconds']} s, exit code {line['exit']}: {line['last']}", flush=True)
        found.append(line)
    width = max(len(line["name"]) for line in found)
    print()
    for line in found:
        said = {0: "ok", None: "stopped"}.get(line["exit"], f"exit code {line['exit']}")
        print(f"{line['name']:{width}} {line['seconds']:6.1f} of {line['limit']:3} s  {said:12} {line['last'][:90]}")
    print(f"kept in {out}")
    return 0 if all(line["exit"] == 0 for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
