"""Runs a file of tests in Triton's interpreter, which has to be set before a process starts.  No tests."""

import os
import subprocess
import sys

# Set in the environment: all tests of a file, also those that `run` is told to leave out.
ALL = "TORCHLSTM_TEST_INTERPRETER"


def run(file: str, without: str = "") -> int:
    """Run a file's tests in another pytest, with the interpreter; returns how many passed, which are all.

    without  a pytest expression (-k) for tests that take long and run only where `ALL` is set
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file]
    if without and ALL not in os.environ:
        command += ["-k", f"not ({without})"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1].split(" passed")[0].split()[-1])
