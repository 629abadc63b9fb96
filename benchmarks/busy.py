"""Calls per second on a busy machine: several processes at once, or one beside a process or Python thread that spins.

    python -m benchmarks.busy                  four processes, two, one, one beside a busy process or Python thread
    python -m benchmarks.busy --grid           cells and a few steps, beside a busy neighbour
    python -m benchmarks.busy --only 'cell-*'

Each line is one setting: nn.LSTM, ours, and ours on one thread take turns in the same processes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fnmatch import fnmatch
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import torch

from torchlstm.parity import Case

from .calls import call_of, module_of
from .extras import Extra, Figures
from .measure import Settings
from .workloads import MODES, Workload

_ROOT = Path(__file__).parent.parent

# Seconds that every process calls before a measurement: then threads have started, and stalls have been noticed.
_WARM = 0.2

# Turns of each: where the system places a process is chance, and stays so for a while.
_ROUNDS = 4


class Setting(NamedTuple):
    """What shares the machine."""

    processes: int  # that compute
    others: int = 0  # processes that only spin
    threads: int = 0  # of Python in each process that computes, which only spin: each takes the interpreter's lock


SETTINGS = {
    "alone": Setting(1), "two": Setting(2), "four": Setting(4), "neighbour": Setting(1, others=1),
    "thread": Setting(1, threads=1),
}  # fmt: skip

# What is measured: a module, and whether it gets as many threads as there are processors, or one.
WHO = {"nn": ("nn", True), "ours": ("ours", True), "ours-1": ("ours", False)}


class Rate(NamedTuple):
    """One kind of call in one setting."""

    calls: float  # per second, of all processes together
    p50: float  # ms of a call
    p99: float
    used: int  # threads of the last kernel that ran; 0 of nn


def _lstm(*sizes: int) -> Workload:
    steps, batch, features, hidden = sizes
    name = f"T{steps}-B{batch}-I{features}-H{hidden}"
    case = Case(name, steps=steps, batch=batch, input_size=features, hidden_size=hidden, dtype=torch.float32, hx="none")
    return Workload(name, "busy", case)


def _cell(batch: int, hidden: int) -> Workload:
    name = f"cell-B{batch}-H{hidden}"
    case = Case(name, cell=True, steps=1, batch=batch, input_size=hidden, hidden_size=hidden, dtype=torch.float32)
    return Workload(name, "busy", case)


USUAL, SMALL = _lstm(30, 4, 64, 128), _cell(1, 64)
GRID = [
    *(_cell(batch, hidden) for batch in (1, 8, 64) for hidden in (16, 64, 120, 256, 512)),
    *(_lstm(steps, batch, hidden, hidden) for steps in (1, 3, 7, 16) for batch in (1, 4) for hidden in (64, 256, 512)),
]
_WORKLOADS = {workload.name: workload for workload in (USUAL, *GRID)}


class Crew:
    """Processes that wait for jobs."""

    def __init__(self, processes: int) -> None:
        command = [sys.executable, "-m", "benchmarks.busy", "--member"]
        self._members = [
            subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]

    def close(self) -> None:
        """End the processes."""
        for member in self._members:
            member.communicate()

    def measure(
        self, workload: str, who: str, mode: str, setting: Setting, threads: int, seconds: float
    ) -> list[dict[str, Any]]:
        """Let as many of them as the setting says make the same calls at once; return what each found."""
        job: dict[str, Any] = {"workload": workload, "who": who, "mode": mode, "threads": threads, "seconds": seconds}
        job["spinning"] = setting.threads
        members = self._members[: setting.processes]
        for member in members:
            _say(member, job)
        for member in members:
            _hear(member)
        start = time.monotonic() + _WARM
        for member in members:
            _say(member, start)
        return [_hear(member) for member in members]


def _say(member: "subprocess.Popen[str]", what: Any) -> None:
    assert member.stdin is not None
    member.stdin.write(json.dumps(what) + "\n")
    member.stdin.flush()


def _hear(member: "subprocess.Popen[str]") -> Any:
    assert member.stdout is not None
    line = member.stdout.readline()
    if not line:
        raise RuntimeError(f"a measuring process ended with exit code {member.wait()}")
    return json.loads(line)


def _rate(rounds: list[list[dict[str, Any]]]) -> Rate:
    """Combine what the processes found in each round."""
    members = [member for found in rounds for member in found]
    times = sorted(ms for member in members for ms in member["ms"])
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    calls = sum(member["calls"] for member in members) / len(rounds)
    return Rate(calls, cuts[49], cuts[98], max(member["used"] for member in members))


def _member() -> None:
    """Run as a process of a crew: read jobs from stdin, write figures to stdout."""
    from torchlstm.engines.cpu.engine import _kernel as kernel

    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        torch.set_num_threads(job["threads"])
        ours = job["who"] != "nn"
        workload = _WORKLOADS[job["workload"]]
        call = call_of(job["mode"], module_of(workload, ours), workload.inputs().to(torch.device("cpu"), torch.float32))
        with torch.no_grad() if job["mode"] == "inference" else nullcontext():
            call()
            print("true", flush=True)
            start, times = float(sys.stdin.readline()), []
            with _spinning(job["spinning"]):
                while time.monotonic() < start:
                    call()
                begun = last = time.perf_counter()
                end = begun + job["seconds"]
                while last < end:
                    call()
                    now = time.perf_counter()
                    times.append(1e3 * (now - last))
                    last = now
        used = kernel.threads()[3] if ours else 0
        print(json.dumps({"calls": len(times) / (last - begun), "ms": times, "used": used}), flush=True)


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    """Keep this many Python threads of this process spinning."""
    ended = Event()

    def spin() -> None:
        while not ended.is_set():
            pass

    threads = [Thread(target=spin) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep this many processes spinning."""
    spin = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(spin)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def compare(
    crew: Crew, workload: str, mode: str, setting: str, threads: int, seconds: float, rounds: int = _ROUNDS
) -> dict[str, Rate]:
    """Measure all of WHO in one setting; the crew has at least as many processes as the setting."""
    what = SETTINGS[setting]
    found: dict[str, list[list[dict[str, Any]]]] = {one: [] for one in WHO}
    with neighbours(what.others):
        for _ in range(rounds):
            for one in WHO:
                kind, all_threads = WHO[one]
                count = threads if all_threads else 1
                found[one].append(crew.measure(workload, kind, mode, what, count, seconds / rounds))
    return {one: _rate(each) for one, each in found.items()}


def _row(setting: str, mode: str) -> Extra:
    """The usual call in one setting, for the table of `python -m benchmarks`; a small one beside a Python thread."""
    workload = SMALL if SETTINGS[setting].threads else USUAL

    def measure(settings: Settings) -> Figures:
        crew = Crew(SETTINGS[setting].processes)
        try:
            found = compare(
                crew, workload.name, mode, setting, settings.threads, settings.seconds, 1 if settings.quick else _ROUNDS
            )
        finally:
            crew.close()
        nn, ours, one = (found[who] for who in WHO)
        return {
            "nn calls/s": nn.calls, "ours calls/s": ours.calls, "ours/nn": ours.calls / nn.calls,
            "ours/1 thread": ours.calls / one.calls, "ms p50": ours.p50, "ms p99": ours.p99, "nn ms p99": nn.p99,
            "threads used": ours.used,
        }  # fmt: skip

    return Extra(f"busy-{setting}-{mode}", "busy", measure)


EXTRAS = tuple(_row(setting, mode) for setting in SETTINGS for mode in MODES)


def main(given: list[str] | None = None) -> int:
    """Measure and print a table, or run as a process of a crew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__.splitlines()[0])
    parser.add_argument("--grid", action="store_true", help="cells and a few steps, beside a busy neighbour")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="workloads whose names match")
    parser.add_argument("--settings", default=None, help=f"of {', '.join(SETTINGS)}, separated by commas")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="as many as processors, by default"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--save", help="a file for the figures, in JSON")
    parser.add_argument("--member", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.member:
        _member()
        return 0
    chosen = [w.name for w in (GRID if options.grid else [USUAL]) if fnmatch(w.name, options.only)]
    settings = options.settings.split(",") if options.settings else ["neighbour"] if options.grid else list(SETTINGS)
    crew, rows = Crew(max(SETTINGS[setting].processes for setting in settings)), []
    print(f"{'':18} {'':9} {'':9}   calls/s nn   ours  ours-1   nn ms p99   ours ms p99   ours/nn ours/ours-1 p99/p50")
    try:
        for setting in settings:
            for name in chosen:
                for mode in options.modes.split(","):
                    found = compare(crew, name, mode, setting, options.threads, options.seconds)
                    rows.append({"workload": name, "mode": mode, "setting": setting, "threads": options.threads}
                                | {who: rate._asdict() for who, rate in found.items()})  # fmt: skip
                    nn, ours, one = (found[who] for who in WHO)
                    print(
                        f"{name:18} {mode:9} {setting:9} {nn.calls:10.4g} {ours.calls:9.5g} {one.calls:7.5g}"
                        f" {nn.p50:7.3g} {nn.p99:5.3g} {ours.p50:7.3g} {ours.p99:5.3g}"
                        f" {ours.calls / nn.calls:8.3g} {ours.calls / one.calls:8.3g} {ours.p99 / ours.p50:8.2f}",
                        flush=True,
                    )
    finally:
        crew.close()
    if options.save:
        Path(options.save).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
