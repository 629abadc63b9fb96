"""The CUDA engine's fused loops without a GPU: in Triton's interpreter, in another process of pytest on this file."""

from dataclasses import replace
from typing import Any

import in_the_interpreter
import pytest
import torch
from torch import multiprocessing

from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda import fused, steps
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda import loops as cuda_loops
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.plan import Rows, Slices, Steps
from torchlstm.engines.cuda.work import work_of
from torchlstm.parity import CASES, run_case

pytest.importorskip("triton")

INTERPRETED = launching.INTERPRETED
LAUNCH = launching.launch
interpreted = pytest.mark.skipif(not INTERPRETED, reason="a test of the interpreter, run by test_in_the_interpreter")
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32

# Numpy's warnings about saturated gates.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter() -> None:
    # Many processes that wait for each other: a minute more.
    assert in_the_interpreter.run(__file__, "beyond_its_bound or exchange_their_results and float16") > 2 * len(FUSED)


FUSED = ["float32-dense", "float32-packed", "float32-everything-packed", "bfloat16-packed", "float16-everything-dense"]


def _one_slice(chunks: int, tile: int) -> Any:
    """A plan of the kernel for many units in which one program owns all of them, and waits for no other."""

    def plan(problem: Problem, direction: str, precise: bool, gpu: GPU | None) -> Slices:
        inner = problem.hidden_size * (1 if direction == "forward" else 4)
        part = max(16, 1 << (-(-inner // (2 * chunks)) - 1).bit_length())
        groups = -(-problem.batch // tile)
        return Slices(1 << (problem.hidden_size - 1).bit_length(), 1, chunks, 2, part, 16, tile, groups, 4)

    return plan


@interpreted
@pytest.mark.parametrize(("chunks", "tile"), [(1, 16), (2, 32)])
@pytest.mark.parametrize("name", FUSED)
def test_slices_against_nn(name: str, chunks: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "plan", _one_slice(chunks, tile))
    case = replace(CASES[name], batch=20, steps=4)  # more than one product of 16 rows
    result = run_case(case, engine="cuda")
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]


def _tensors(dtype: torch.dtype, ragged: bool, hidden: int = 20) -> tuple[Any, ...]:
    """A layer of two directions for the loops: work, gates, h_0, c_0, w_hh, and dy, dh_n, dc_n, dacts, dcells."""
    generator = torch.Generator().manual_seed(3)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    batch, directions = 18, 2
    sizes = torch.tensor([18, 17, 9, 9, 2] if ragged else [18] * 5)
    rows = Ragged(sizes) if ragged else Dense(5, batch)
    count = int(sizes.sum())
    problem = Problem(rows, batch, 3, hidden, 0, directions, True, dtype, torch.device("cpu"))
    work = work_of(problem, count, precise=True)
    return (
        work, randn(directions, count, 4 * hidden), *(randn(directions, batch, hidden) for _ in range(2)),
        randn(directions, 4 * hidden, hidden) / 4, randn(count, directions * hidden),
        *(randn(directions, batch, hidden) for _ in range(2)),
        randn(directions, count, 4 * hidden), randn(directions, count, hidden),
    )  # fmt: skip


def _program(offset: int, kernel: str, tensors: Any, numbers: Any, constants: Any) -> None:
    """One program of the grid, in a process of its own."""
    from triton.runtime.interpreter import GridExecutor

    torch.set_num_threads(1)
    GridExecutor._restore_args_dev = lambda *_, **__: None  # the memory is shared: nothing to copy back
    LAUNCH("fused_slices", kernel, (1,), 4, tensors, [*numbers[:-1], offset], **constants)


def _side_by_side(monkeypatch: pytest.MonkeyPatch, leave_out: int = 0, limit: int | None = None) -> list[int]:
    """Run the programs of `fused_slices` as processes that share their tensors; returns their exit codes."""
    codes: list[int] = []

    def launch(file: str, name: str, grid: Any, warps: int, tensors: Any, numbers: Any, **constants: Any) -> None:
        if file != "fused_slices":
            return LAUNCH(file, name, grid, warps, tensors, numbers, **constants)
        del constants["together"]
        for tensor in tensors:
            if tensor is not None:
                tensor.share_memory_()
        shared = [t if t is None else t.detach() for t in tensors]
        numbers = list(numbers)
        if limit is not None:
            numbers[-2] = limit
        context = multiprocessing.get_context("fork")
        arguments = [(i, name, shared, numbers, constants) for i in range(grid[0] - leave_out)]
        processes = [context.Process(target=_program, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(100)
            if process.is_alive():
                process.kill()
            codes.append(-1 if process.exitcode is None else process.exitcode)

    monkeypatch.setattr(launching, "launch", launch)
    return codes


# Three slices of 8 units, two directions, and either two tiles of 16 sequences or one program that has both.
CUTS = {
    "two-tiles": Slices(8, 3, 2, 1, 16, 16, 16, 2, 4, peek=True),
    "one-tile": Slices(8, 3, 1, 2, 16, 16, 32, 1, 4),
}
BACK = {
    "two-tiles": Slices(8, 3, 2, 2, 32, 16, 16, 2, 4),
    "one-tile": Slices(8, 3, 1, 4, 32, 16, 32, 1, 4),
}


@interpreted
@pytest.mark.parametrize(
    ("dtype", "hidden", "cut", "ragged"),
    [
        (FLOAT32, 20, "two-tiles", True), (FLOAT32, 24, "one-tile", False),
        (FLOAT16, 19, "two-tiles", True), (FLOAT16, 24, "one-tile", False),
    ],
    ids=str,
)  # fmt: skip
def test_programs_exchange_their_results(
    dtype: torch.dtype, hidden: int, cut: str, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many processes as programs, against the loop that launches a kernel a step; traced gradients included.

    24 units fill the rows of an exchange, which then is y, or dgates; 20 and 19 have an exchange of their own.
    """
    work, gates, h_0, c_0, w_hh, dy, dh_n, dc_n, dacts, dcells = _tensors(dtype, ragged, hidden)
    # A NaN of the user's may have the bits of the sentinel: it is read, not awaited, and published as another NaN.
    h_0[0, 1, 2] = gates[0, 4, 3] = dy[3, 5] = dy[2, 4] = _nan_of_ones(dtype)
    steps = Steps(256, 4)
    expected_gates = gates.clone()
    expected = cuda_loops.forward(steps, work, expected_gates, h_0, c_0, w_hh, True)
    saved = (expected_gates, expected[3])
    cotangents = (dy, dh_n, dc_n, dacts, dcells)
    expected_back = cuda_loops.backward(steps, work, *saved, c_0, w_hh, *cotangents)
    codes = _side_by_side(monkeypatch)
    results = cuda_loops.forward(CUTS[cut], work, gates, h_0, c_0, w_hh, True)
    back = cuda_loops.backward(BACK[cut], work, *saved, c_0, w_hh, *cotangents)
    assert codes == [0] * len(codes)
    assert len(codes) == 2 * (12 if cut == "two-tiles" else 6)
    tolerance = {"rtol": 0.0, "atol": 2e-5 if dtype == FLOAT32 else 3e-2, "equal_nan": True}
    for ours, true in zip((*results, gates, *back), (*expected, expected_gates, *expected_back), strict=True):
        torch.testing.assert_close(ours, true, **tolerance)
    for there in (results[0], back[0]):
        assert there.isnan().any()
        assert not there.isnan().all()


def _nan_of_ones(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(-1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32).view(dtype)


def _kernel(monkeypatch: pytest.MonkeyPatch, **names: Any) -> None:
    """Let kernels of this file call these: Triton looks names up among the globals of a kernel's file."""
    import triton.language

    for name, value in {"tl": triton.language, **names}.items():
        monkeypatch.setitem(globals(), name, value)


@interpreted
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
def test_no_published_word_is_the_sentinel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from torchlstm.engines.cuda.kernels.exchange import publish

    _kernel(monkeypatch, publish=publish)

    @triton.jit
    def kernel(p, p_words, p_value):
        u = 8 + tl.arange(0, 8)  # noqa: F821
        b = tl.arange(0, 2)  # noqa: F821
        value = tl.load(p_value + b[:, None] * 8 + tl.arange(0, 8)[None, :])  # noqa: F821
        publish(p_words, b * 16, u, value.to(p.dtype.element_ty), b < 1, 8, 13, 16, False)

    value = torch.arange(16.0).view(2, 8) - 3.5
    value[0, 0] = value[0, 3] = value[0, 7] = _nan_of_ones(FLOAT32)
    exchange = torch.full((2, 16), -1, dtype=torch.int16 if dtype.itemsize == 2 else torch.int32)
    kernel[(1,)](exchange.view(dtype), exchange.view(torch.int32), value)
    # Units 8 to 12 of the first sequence, and zeros up to the end of its row; nothing else.
    published = exchange[0, 8:].view(dtype)
    expected = value[0].where(torch.arange(8) < 5, 0.0).to(dtype)
    torch.testing.assert_close(published, expected, rtol=0, atol=0, equal_nan=True)
    assert (exchange[0, 8:] != -1).all()
    assert (exchange[0, :8] == -1).all()
    assert (exchange[1] == -1).all()


@interpreted
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_spin_beyond_its_bound_ends_with_an_error(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, gates, h_0, c_0, w_hh, *cotangents = _tensors(FLOAT32, ragged=False)
    cells = gates[..., : h_0.shape[2]].contiguous()
    codes = _side_by_side(monkeypatch, leave_out=1, limit=3000)
    if direction == "forward":
        cuda_loops.forward(CUTS["two-tiles"], work, gates, h_0, c_0, w_hh, True)
    else:
        cuda_loops.backward(BACK["two-tiles"], work, gates, cells, c_0, w_hh, *cotangents)
    # The last program is missing: the two others of its tile and direction wait for it, nobody else.
    assert codes == [0] * 9 + [1] * 2


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Float32 rounded to TF32: 10 bits after the point, to nearest, ties away from zero."""
    mantissa, exponent = torch.frexp(x.double())
    digits = torch.ldexp(mantissa, torch.tensor(11))
    return torch.ldexp(digits.sign() * (digits.abs() + 0.5).floor(), exponent - 11).float()


@interpreted
def test_rounding_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from torchlstm.engines.cuda.kernels.common import rounded

    _kernel(monkeypatch, rounded=rounded)

    @triton.jit
    def kernel(p):
        i = tl.arange(0, 512)  # noqa: F821
        tl.store(p + i, rounded(tl.load(p + i), "tf32", False))  # noqa: F821

    inf = float("inf")
    known = {
        1.0: 1.0, 1 + 2.0**-11: 1 + 2.0**-10, -1 - 2.0**-11: -1 - 2.0**-10, 1 + 2.0**-11 - 2.0**-23: 1.0,
        2 - 2.0**-23: 2.0, 0.0: 0.0, inf: inf, -inf: -inf, torch.finfo(FLOAT32).max: inf, 2.0**-149: 0.0,
    }  # fmt: skip
    values = torch.cat([torch.tensor(list(known)), _nan_of_ones(FLOAT32).view(1), torch.randn(512 - len(known) - 1)])
    got = values.clone()
    kernel[(1,)](got)
    assert got[: len(known)].tolist() == list(known.values())
    assert got[len(known)].isnan()
    assert torch.equal(got[len(known) + 1 :], _tf32(values[len(known) + 1 :]))


@interpreted
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_products_of_tf32_have_rounded_operands(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the step loop with rounded operands; exact or truncated operands differ by more than 1e-4."""
    work, gates, h_0, c_0, w_hh, *cotangents = _tensors(FLOAT32, ragged)
    results = {}
    for kind, operand in (("rounded", _tf32), ("exact", lambda x: x)):
        with monkeypatch.context() as patch:
            patch.setattr(steps, "_adding", lambda _, f=operand: lambda out, a, b: out.addmm_(f(a), f(b)))
            patch.setattr(steps, "_writing", lambda _, f=operand: lambda out, a, b: torch.mm(f(a), f(b), out=out))
            own = gates.clone()
            y, *_, cells = cuda_loops.forward(Steps(256, 4), work, own, h_0, c_0, w_hh, True)
            if kind == "rounded":
                acts, saved = own, cells
            dgates, *_ = cuda_loops.backward(Steps(256, 4), work, acts, saved, c_0, w_hh, *cotangents)
        results[kind] = (y, dgates)
    monkeypatch.setattr(fused, "precision", lambda _: "tf32")
    slices = [_one_slice(2, 32)(work.problem, way, True, None) for way in ("forward", "backward")]
    for plans in ([Rows(32, 16, 4)] * 2, slices):
        y, *_ = cuda_loops.forward(plans[0], work, gates.clone(), h_0, c_0, w_hh, True)
        dgates, *_ = cuda_loops.backward(plans[1], work, acts, saved, c_0, w_hh, *cotangents)
        for ours, true, exact in zip((y, dgates), results["rounded"], results["exact"], strict=True):
            torch.testing.assert_close(ours, true, rtol=0, atol=1e-5)
            assert (ours - exact).abs().max() > 1e-4


def _misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, contiguous, from an address that is no multiple of 16."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


@interpreted
@pytest.mark.parametrize(("kind", "hidden"), [("rows", 19), ("slices", 24)])
def test_views_from_odd_addresses(kind: str, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel sees no address that is not a multiple of 16, for which it would be compiled anew, and slower."""
    work, gates, h_0, c_0, w_hh, *cotangents = _tensors(FLOAT16, ragged=True, hidden=hidden)
    addresses: list[int] = []

    def launch(file: str, name: str, grid: Any, warps: int, tensors: Any, numbers: Any, **constants: Any) -> None:
        addresses.extend(tensor.data_ptr() for tensor in tensors if tensor is not None and tensor.dtype != torch.int64)
        LAUNCH(file, name, grid, warps, tensors, numbers, **constants)

    monkeypatch.setattr(launching, "launch", launch)
    plans: list[Any] = [Rows(32, 16, 4)] * 2
    if kind == "slices":
        plans = [_one_slice(2, 32)(work.problem, way, True, None) for way in ("forward", "backward")]
    found = []
    for change in (torch.clone, _misaligned):
        h, c, w, *gradients = map(change, (h_0, c_0, w_hh, *cotangents))
        own = gates.clone()
        results = cuda_loops.forward(plans[0], work, own, h, c, w, True)
        found.append(
            (*results, *cuda_loops.backward(plans[1], work, *map(change, (own, results[3])), c, w, *gradients))
        )
        assert own.data_ptr() % 16 == 0
    assert addresses
    assert all(address % 16 == 0 for address in addresses)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@interpreted
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_rows_against_steps(dtype: torch.dtype, ragged: bool) -> None:
    """Traced gradients too, which no parity case has."""
    work, gates, h_0, c_0, w_hh, *cotangents = _tensors(dtype, ragged)
    other = gates.clone()
    rows, steps = Rows(32, 16, 4), Steps(256, 4)
    ours = cuda_loops.forward(rows, work, gates, h_0, c_0, w_hh, True)
    true = cuda_loops.forward(steps, work, other, h_0, c_0, w_hh, True)
    back = cuda_loops.backward(rows, work, other, true[3], c_0, w_hh, *cotangents)
    true_back = cuda_loops.backward(steps, work, other, true[3], c_0, w_hh, *cotangents)
    atol = 2e-5 if dtype == FLOAT32 else 0.2
    for a, b in zip((*ours, gates, *back), (*true, other, *true_back), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@interpreted
@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_a_reverse_problem_is_the_second_direction_alone(ragged: bool) -> None:
    work, *both, dy, dh_n, dc_n, dacts, dcells = _tensors(FLOAT32, ragged)
    alone, hidden = work._replace(problem=work.problem._replace(directions=1, reverse=True)), dh_n.shape[2]
    one = [tensor[1:] for tensor in both]
    slices = [_one_slice(1, 32)(work.problem, way, True, None) for way in ("forward", "backward")]
    for plans in ([Rows(32, 16, 4)] * 2, [Steps(256, 4)] * 2, slices):
        gates, c_0, w_hh = both[0].clone(), both[2], both[3]
        own = gates[1:].clone()
        true = cuda_loops.forward(plans[0], work, gates, *both[1:], True)
        ours = cuda_loops.forward(plans[0], alone, own, *one[1:], True)
        true_back = cuda_loops.backward(plans[1], work, gates, true[3], c_0, w_hh, dy, dh_n, dc_n, dacts, dcells)
        part = (dy[:, hidden:].contiguous(), dh_n[1:], dc_n[1:], dacts[1:], dcells[1:])
        back = cuda_loops.backward(plans[1], alone, own, ours[3], one[2], one[3], *part)
        expected = (true[0][:, hidden:], *(t[1:] for t in (*true[1:], gates, *true_back)))
        for a, b in zip((*ours, own, *back), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
