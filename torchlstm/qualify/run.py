"""Runs the child processes that try the classes, each with a time limit, and returns what they find."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from ..engines.cuda.records import Measured
from .wanted import Job

CHILD = (sys.executable, "-m", f"{__package__}.child")
_ROOT = Path(__file__).parents[2]
# Seconds for a process to start, and for each size; a class that needs longer counts as hanging.
_START, _EACH = 60.0, 60.0
_COMPILING = 300.0


class Lost(Exception):
    """A process ended, or was killed, before it was done; the text says how."""


class Children:
    """Child processes that work on jobs; a context manager, which kills those left when it exits.

    command  the child's command, which reads a job from its standard input
    """

    def __init__(self, command: Sequence[str] = CHILD) -> None:
        self._command = command
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._stopped = threading.Lock(), False

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def lines(self, job: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
        """Run a job; yield the process's lines.  Raises Lost if it fails or takes more than these seconds."""
        with self._lock:
            if self._stopped:
                raise Lost("interrupted")
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace", start_new_session=True, env=_environment(),
            )  # fmt: skip
            self._running.add(process)
        said: queue.Queue[str | None] = queue.Queue()
        errors: list[str] = []
        readers = [
            threading.Thread(target=_read, args=(process.stdout, said), daemon=True),
            threading.Thread(target=_keep_last, args=(process.stderr, errors), daemon=True),
        ]
        try:
            for reader in readers:
                reader.start()
            assert process.stdin is not None
            with suppress(OSError):  # it has ended already, and its exit code says why
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            end = time.monotonic() + seconds
            while True:
                try:
                    line = said.get(timeout=max(0.0, end - time.monotonic()))
                except queue.Empty:
                    raise Lost(f"hangs: it did not end within {seconds:.0f} s") from None
                if line is None:
                    break
                try:
                    yield json.loads(line)
                except ValueError:
                    raise Lost(f"failed: its process said {line[:100]!r}") from None
            if code := process.wait(timeout=max(0.1, end - time.monotonic())):
                readers[1].join(5)
                raise Lost(_told(code, errors))
        except subprocess.TimeoutExpired:
            raise Lost(f"hangs: it did not end within {seconds:.0f} s") from None
        finally:
            with self._lock:
                self._running.discard(process)
            _kill(process)
            process.wait()
            for reader in readers:
                reader.join(5)
            for stream in (process.stdin, process.stdout, process.stderr):
                with suppress(OSError):  # unwritten input does not matter any more
                    cast(IO[str], stream).close()

    def tried(self, job: Job, seconds: float | None = None) -> list[Measured]:
        """Try a class; returns a row for each size, and one with the reason if its process crashed."""
        found: list[Measured] = []
        doing: dict[str, Any] = {"at": "its start", "H": job.sizes[0][0], "B": job.sizes[0][1]}
        limit = _START + _EACH * len(job.sizes) if seconds is None else seconds
        try:
            for line in self.lines(job.plain(), limit):
                if "found" in line:
                    row = line["found"]
                    found.append(Measured(**{**row, "speed": tuple(row["speed"])}))
                else:
                    doing = line
        except Lost as lost:
            if self._stopped:
                raise
            found.append(Measured(doing["H"], doing["B"], f"{lost}, at {doing['at']}", None))
        if len(found) < len(job.sizes) and all(row.reason is None for row in found):
            found.append(Measured(doing["H"], doing["B"], f"failed: its process ended at {doing['at']}", None))
        return found

    def compiled(self, job: Job) -> None:
        """Compile a class's kernels; failures are ignored, since they show again when the class is tried."""
        try:
            list(self.lines(job._replace(compile=True).plain(), _COMPILING))
        except Lost:
            if self._stopped:
                raise

    def side_by_side(self, function: Any, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any]]:
        """Apply a function to the jobs, `workers` at once; yield each job and result when it is done."""
        pool = ThreadPoolExecutor(workers)
        try:
            doing = {pool.submit(function, job): job for job in jobs}
            for done in as_completed(doing):
                yield doing[done], done.result()
        except BaseException:
            self.__exit__()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _environment() -> dict[str, str]:
    """This process's environment, with a PYTHONPATH that finds this package."""
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *([known] if known else [])])}


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _keep_last(stream: Any, lines: list[str]) -> None:
    """Keep the last line that is not empty."""
    for line in stream:
        if line.strip():
            lines[:] = [line.strip()]


def _told(code: int, errors: list[str]) -> str:
    last = f" ({errors[0][:200]})" if errors else ""
    if code > 0:
        return f"failed: its process ended with code {code}{last}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"traps: its process was ended by {name}{last}"


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its children."""
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
