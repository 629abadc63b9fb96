"""The CPU kernel's product of matrices, alone: sizes, layouts, threads, accuracy."""

from typing import Any

import pytest
import torch
from torch import Tensor

import torchlstm
from torchlstm.engines.cpu import engine as cpu

if reason := torchlstm.engines()["cpu"]:
    pytest.skip(f"no cpu engine: {reason}", allow_module_level=True)

# M, N, K: below and above what is thin, rows that are packed together, and terms that are summed together.
SIZES = [
    (1, 1, 1),
    (1, 300, 40),
    (300, 1, 40),
    (7, 65, 513),
    (33, 130, 1),
    (130, 33, 31),
    (49, 67, 34),
    (128, 64, 512),
    (100, 31, 1025),
    (32, 48, 33),
    (150, 200, 100),
]
THIN = 32  # at most so many rows, or terms: GEMM_THIN in plan.h


def operands_of(size: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, terms = size
    torch.manual_seed(0)
    return tuple(torch.randn(shape, dtype=dtype) for shape in ((rows, terms), (terms, columns), (rows, columns)))


def inside(value: Tensor, right: int) -> Tensor:
    """The same numbers as a window of a wider tensor."""
    wide = value.new_full((value.shape[0], value.shape[1] + right), 777.0)
    wide[:, : value.shape[1]] = value
    return wide[:, : value.shape[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_product(size: Any, isa: str, dtype: torch.dtype, threads: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(cpu, "_isa", isa)
    left, right, old = operands_of(size, dtype)
    compare(cpu._CPU(), left, right, old, left.double() @ right.double(), threads)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_product_of_operands_rounded_to_bfloat16(size: Any, threads: Any) -> None:
    """Sums are float32 and exact products of bfloat16; a thin product rounds nothing."""
    left, right, old = operands_of(size, torch.float32)
    rounded = cpu._kernel.isa(cpu._BFLOAT16) == cpu._BFLOAT16 and min(size[0], size[2]) > THIN
    truth = left.bfloat16().double() @ right.bfloat16().double() if rounded else left.double() @ right.double()
    compare(cpu._CPU(bfloat16=True), left, right, old, truth, threads)


def compare(kernel: Any, left: Tensor, right: Tensor, old: Tensor, truth: Tensor, threads: Any) -> None:
    """Every layout of the left operand, added or not, on some numbers of threads, within 50 roundings of the truth."""
    columns = right.shape[1]
    tolerance = 50 * torch.finfo(left.dtype).eps * max(1.0, truth.abs().max().item())
    lefts = {"rows": left, "window": inside(left, 3), "turned": left.t().contiguous().t()}
    for count in (1, 2, 5):
        threads(count)
        for name, operand in lefts.items():
            for add in (False, True):
                out = inside(old if add else torch.full_like(old, torch.nan), 5)
                kernel.multiply(out, operand, inside(right, 2), add)
                expected = truth + old if add else truth
                error = (out.double() - expected).abs().max().item()
                assert error <= tolerance, f"{name}, add={add}, {count} threads: {error}"
                assert (out.as_strided((old.shape[0], 5), (columns + 5, 1), columns) == 777).all(), (
                    "wrote beyond the columns"
                )


@pytest.mark.parametrize("stride", [(2, 1), (1, 2), (0, 1), (0, 0)], ids=str)
def test_strides_that_are_no_matrix_in_memory(stride: Any) -> None:
    left = torch.randn(200).as_strided((6, 5), (11, 2))
    right = torch.randn(60).as_strided((5, 7), stride)
    out = torch.empty(6, 7)
    cpu._CPU().multiply(out, left, right, False)
    torch.testing.assert_close(out, left @ right)


def test_the_number_of_threads_does_not_change_the_bits(threads: Any) -> None:
    left, right = torch.randn(300, 700), torch.randn(700, 90)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(torch.empty(300, 90))
        cpu._CPU().multiply(found[-1], left, right, False)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_many_terms_keep_their_digits() -> None:
    """As the gradient of a weight sums over all rows of a long batch: one running sum is ten times worse."""
    torch.manual_seed(0)
    left, right = torch.randn(64, 50_000), torch.randn(50_000, 64)
    out, library = torch.empty(64, 64), left @ right
    cpu._CPU().multiply(out, left, right, False)
    truth = left.double() @ right.double()
    ours, theirs = ((found.double() - truth).abs().max().item() for found in (out, library))
    assert ours <= 2 * theirs + 1e-6 * truth.abs().max().item()


def test_denormals_are_kept() -> None:
    out = torch.empty(1, 1)
    cpu._CPU().multiply(out, torch.full((1, 1), 1e-39), torch.full((1, 1), 0.5), False)
    assert out.item() == pytest.approx(5e-40, rel=1e-3)
