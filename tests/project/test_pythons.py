"""Every Python that is supported can read the sources: the oldest one's grammar, and those that are installed here."""

import ast
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from shutil import which

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("torchlstm", "tests", "benchmarks", "examples")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSIONS = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PROJECT)

READ = """
import sys
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        compile(file.read(), path, "exec", dont_inherit=True)
print(sys.version_info[1])
"""


@cache
def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(found) > 200
    return [*found, ROOT / "setup.py"]


def test_the_oldest_is_that_of_the_project() -> None:
    assert f'requires-python = ">=3.{VERSIONS[0]}"' in PROJECT
    assert sorted(VERSIONS, key=int) == VERSIONS


def test_the_oldest_grammar_is_enough() -> None:
    for path in sources():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, int(VERSIONS[0])))


def test_what_is_newer_is_seen() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass", feature_version=(3, 10))


def python(minor: str) -> str | Path | None:
    """An interpreter of Python 3.minor, on the path or among pyenv's, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for path in (which(f"python3.{minor}"), *pyenv.glob(f"versions/3.{minor}.*/bin/python")):
        # What pyenv has on the path may be a name only.
        if path and not subprocess.run([path, "-V"], capture_output=True).returncode:
            return path
    return None


@pytest.mark.parametrize("minor", VERSIONS)
def test_python_compiles_them(minor: str) -> None:
    if (interpreter := python(minor)) is None:
        pytest.skip(f"there is no Python 3.{minor} here")
    done = subprocess.run([interpreter, "-c", READ, *sources()], capture_output=True, text=True)
    assert done.stdout.strip() == minor, done.stderr
