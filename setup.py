"""Builds the optional C kernel of the CPU engine; everything else stands in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

SOURCES = "torchlstm/engines/cpu/kernel"

kernel = Extension(
    "torchlstm.engines.cpu._kernel",
    sorted(glob(f"{SOURCES}/*.c")),
    depends=sorted(glob(f"{SOURCES}/*.h")),  # also puts them into the source distribution
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-fvisibility=hidden", "-Wall"],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[kernel], options={"bdist_wheel": {"py_limited_api": "cp310"}})
