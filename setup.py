"""Builds the optional C kernel of the CPU engine; everything else stands in pyproject.toml."""

import os
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup

SOURCES = "torchlstm/engines/cpu/kernel"

# The kernel is GNU C, and finds torch's OpenMP by weak references, which Windows' linkers do not resolve.  It is built
# for Python's stable ABI, which free-threaded Pythons up to 3.14 have not: setuptools refuses it there.
possible = sys.platform != "win32" and not sysconfig.get_config_var("Py_GIL_DISABLED")

kernel = Extension(
    "torchlstm.engines.cpu._kernel",
    sorted(glob(f"{SOURCES}/*.c")),
    depends=sorted(glob(f"{SOURCES}/*.h")),
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-fvisibility=hidden", "-Wall"],
    py_limited_api=True,
    # A wheel that is handed to others must not lack it: there, failing to build it fails the build.
    optional=os.environ.get("TORCHLSTM_REQUIRE_KERNEL") != "1",
)

if possible:
    setup(ext_modules=[kernel], options={"bdist_wheel": {"py_limited_api": "cp310"}})
else:
    setup()
