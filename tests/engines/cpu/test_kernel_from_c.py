"""The example in C: it builds from the kernel's own sources, and its numbers are those of torchlstm.LSTM."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import torchlstm
from torchlstm.engines.cpu import engine as cpu

EXAMPLE = Path(__file__).parents[3] / "examples" / "kernel_from_c"
STEPS, INPUT, HIDDEN = 5, 7, 20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, compiled without optimisation: that takes a tenth of the time."""
    missing = [tool for tool in ("make", os.environ.get("CC", "cc")) if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    folder = tmp_path_factory.mktemp("kernel_from_c")
    options = ["CFLAGS=-std=gnu11 -O0 -Wall -Werror"]
    subprocess.run(["make", "-s", "-j2", "-f", EXAMPLE / "Makefile", *options], cwd=folder, check=True, timeout=300)
    return folder / "stream"


def filled(*shape: int, seed: int) -> torch.Tensor:
    """As `fill` of stream.c."""
    k = torch.arange(torch.Size(shape).numel())
    return (((37 * k + seed) % 101 - 50) / 128).reshape(shape)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """h of every step, (T, H), by the layer that Python has."""
    lstm = torchlstm.LSTM(INPUT, HIDDEN)
    with torch.no_grad():
        for seed, weight in enumerate(lstm.parameters(), 1):
            weight.copy_(filled(*weight.shape, seed=seed))
        x = torch.stack([filled(INPUT, seed=5 + t) for t in range(STEPS)])
        return lstm(x)[0]


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "best"])
def test_its_numbers_are_those_of_the_layer(program: Path, expected: torch.Tensor, isa: str) -> None:
    found = subprocess.run(
        [program, *([str(cpu.ISAS[isa])] if isa != "best" else [])], capture_output=True, text=True, check=False
    )
    if found.returncode == 3:
        pytest.skip(found.stderr.strip())
    assert found.returncode == 0, found.stderr
    h = torch.tensor([[float(number) for number in line.split()] for line in found.stdout.splitlines()])
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-6)
