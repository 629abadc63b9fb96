"""Whether Triton can compile and launch here: it builds a small library in C before its first launch."""

import os
import shutil
import sysconfig
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..shared.torch_private import constant

_WAY_OUT = "install gcc and Python's headers (on Debian: apt install gcc libc6-dev python3-dev), or name one by CC"

# The answer of `missing`, once it has looked.
_found: list[str | None] = []


@constant
def missing() -> str | None:
    """Why Triton cannot launch a kernel here, or None; looked for once a process, and nothing is built or launched."""
    if not _found:
        _found.append(_look())
    return _found[0]


def _look() -> str | None:
    if not find_spec("triton"):
        return "it needs Triton, which is not installed: pip install triton"
    try:
        triton = import_module("triton")
    except Exception as error:  # whatever a broken installation raises
        return f"it needs Triton, which cannot be imported: {type(error).__name__}: {error}"
    lack = None if triton.knobs.build.impl else _compiler() or _headers()
    if lack is None or _built():
        return None
    return f"Triton {triton.__version__} builds its launcher by a C compiler, and {lack}: {_WAY_OUT}"


def _compiler() -> str | None:
    """What is missing of a C compiler; Triton takes CC as it is, else gcc or clang."""
    if (named := os.environ.get("CC")) is not None:
        return None if shutil.which(named) else f"CC names {named!r}, which is no program here"
    return None if shutil.which("gcc") or shutil.which("clang") else "there is neither gcc nor clang"


def _headers() -> str | None:
    """What is missing of Python's headers, where Triton looks for them."""
    scheme = sysconfig.get_default_scheme()
    folder = sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)["include"]
    return None if (Path(folder) / "Python.h").exists() else f"there is no Python.h in {folder}"


def _built() -> bool:
    """Whether the library is there from an earlier process and launches every kernel.

    That of Triton 3.6 does not: there each signature of a kernel has a launcher of its own, to be built in turn.
    """
    try:
        # Raises, since nothing can be built, if it is not in Triton's cache.
        utils = import_module("triton.runtime").driver.active.utils
    except Exception:
        return False
    return hasattr(utils, "launch")
