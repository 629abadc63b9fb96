"""Runs a file of tests in Triton's interpreter, which a process is in from its start or never.  No tests."""

import os
import subprocess
import sys


def run(file: str) -> int:
    """The tests of a file in another process of pytest, with the interpreter; returns how many passed, and all did."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1].split(" passed")[0].split()[-1])
