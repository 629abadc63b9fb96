"""Runs a file of tests in Triton's interpreter, which has to be set before a process starts.  No tests."""

import os
import subprocess
import sys


def run(file: str) -> int:
    """Run a file's tests in another pytest, with the interpreter; returns how many passed, which are all."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1].split(" passed")[0].split()[-1])
