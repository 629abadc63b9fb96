"""Another OpenMP runtime in the process, or torch's used by others: right numbers, no hang; each in its own process."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import torchlstm

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

# Seconds until a process counts as hung: alone on a machine it takes 10, most of them to import what it tries.
HUNG = 240

SCIKIT_LEARN = """
import numpy
from sklearn.cluster import KMeans
def use():
    KMeans(8, n_init=1, max_iter=5, random_state=0).fit(numpy.random.default_rng(0).random((5000, 16)))
"""
LIGHTGBM = """
import lightgbm, numpy
def use():
    random = numpy.random.default_rng(0)
    data = lightgbm.Dataset(random.random((2000, 10)), random.random(2000))
    lightgbm.train({"objective": "regression", "num_threads": 2, "verbose": -1}, data, 5)
"""
INTEL = """
import ctypes
runtime = ctypes.CDLL(PATH, ctypes.RTLD_GLOBAL)
member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: ranks.append(runtime.omp_get_thread_num()))
ranks = []
def use():
    ranks.clear()
    runtime.GOMP_parallel(member, None, 2, 0)
    assert sorted(ranks) == [0, 1], ranks
"""
MKL = """
import ctypes
blas = ctypes.CDLL(PATH, ctypes.RTLD_GLOBAL)
def use():
    n, one = 300, ctypes.c_double(1.0)
    a, b, c = ((ctypes.c_double * (n * n))(*[1.0] * (n * n)) for _ in range(3))
    blas.cblas_dgemm(101, 111, 111, n, n, n, one, a, n, b, n, ctypes.c_double(0.0), c, n)
    assert c[n] == n, c[n]
"""

# What uses OpenMP: the package, the library of its own that is loaded by its path, and the program.
OTHERS = {
    "scikit-learn": ("scikit-learn", None, SCIKIT_LEARN),
    "lightgbm": ("lightgbm", None, LIGHTGBM),
    "intel-openmp": ("intel-openmp", "libiomp5.so", INTEL),
    "mkl": ("mkl", "libmkl_rt.so", MKL),
}

OURS = """
import torch, torchlstm
from torchlstm.engines.cpu import engine
torch.manual_seed(0)
torch.set_num_threads(2)
engine._kernel.adapt(False)  # whatever else runs
lstm, x = torchlstm.LSTM(64, 96, 2, bidirectional=True), torch.randn(20, 16, 64)

def step():
    y, (h, c) = lstm(x)
    return [y, h, c, *torch.autograd.grad(y.sum() + (h * c).sum(), list(lstm.parameters()))]

with torchlstm.use_engine("reference"):
    lstm.double(), (x := x.double())
    true = [each.float() for each in step()]
    lstm.float(), (x := x.float())

def right():
    for ours, theirs in zip(step(), true, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    threads = engine.latest_threads()
    assert threads.used == threads.worth, threads
"""

TOGETHER = """
import re, threading
for _ in range(5):
    right()
    use()

failed = []
def repeat(call):
    try:
        for _ in range(10):
            call()
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=repeat, args=(call,)) for call in (right, use)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed

def heavy(n=400):
    a = torch.randn(n, n)
    return (a @ a).relu().sum()
heavy(), use(), right(), heavy()
with open("/proc/self/maps") as maps:
    print(len(set(re.findall(r"/\\S*/lib[a-z]*omp\\w*[-.\\w]*\\.so\\S*", maps.read()))))
"""


def library(package: str, name: str) -> Path:
    """Where a package has a library."""
    for file in metadata.files(package) or ():
        if file.name.startswith(name):
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"{name} of {package}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="which libraries are loaded is read from /proc")
@pytest.mark.parametrize("order", ["before", "after", "preloaded"])
@pytest.mark.parametrize("other", OTHERS)
def test_beside(other: str, order: str) -> None:
    package, name, program = OTHERS[other]
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    if order == "preloaded" and name is None:
        pytest.skip("nothing of it is meant to be preloaded")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "MKL_"))}
    if name is not None:
        path = library(package, name)
        program = program.replace("PATH", repr(str(path)))
        environment["LD_LIBRARY_PATH"] = str(path.parent)
        if order == "preloaded":
            environment["LD_PRELOAD"] = str(path)
    parts = [OURS, "right()", program] if order == "after" else [program, "use()", OURS]
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", "\n".join([*parts, TOGETHER])],
            env=environment, capture_output=True, text=True, timeout=HUNG,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"it hung: {error.stderr!r}")
    assert done.returncode == 0, done.stderr[-3000:]
    # LightGBM has none of its own, and MKL takes the one that is there.
    assert int(done.stdout) >= (1 if other in ("lightgbm", "mkl") else 2), done.stdout
