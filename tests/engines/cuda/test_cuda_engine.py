"""The CUDA engine without a GPU: its kernels in Triton's interpreter, in another process of pytest on this file."""

import in_the_interpreter
import pytest
import torch

import torchlstm
from benchmarks import gpu_stress
from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda.work import first_rows, neighbours, work_of
from torchlstm.parity import CASES, run_case

pytest.importorskip("triton")

INTERPRETED = launching.INTERPRETED
LAUNCH = launching.launch
interpreted = pytest.mark.skipif(not INTERPRETED, reason="a test of the interpreter, run by test_in_the_interpreter")
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

# Numpy's warnings about saturated gates.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# Float64 runs step by step, float32 and below the fused kernels.  `.ci/run` runs the whole table.
NAMES = [
    "L1-bi-proj3-unsorted", "L2-bi-nobias-dense", "zeros-hx-given", "loss-c_n-packed", "frozen-weights",
    "float32-everything-packed", "bfloat16-everything-dense", "float16-packed", "float32-T9-B40-I16-H15",
    "inf-in-one-row", "nan-in-one-row-packed", "saturated-float32", "batch-0", "one-step", "hx-strided",
    "cell-bfloat16", "cell-unbatched", "autocast-bfloat16-proj",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_in_the_interpreter() -> None:
    assert in_the_interpreter.run(__file__) > len(NAMES)


@interpreted
@pytest.mark.parametrize("name", NAMES)
def test_case(name: str) -> None:
    result = run_case(CASES[name], engine="cuda")
    assert result.skipped is None
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]


@interpreted
def test_the_stress_program_on_one_small_shape_of_each_kind() -> None:
    """What `benchmarks/gpu_check.sh` runs on a GPU, as far as it goes without one."""
    for case in gpu_stress.cases(small=True):
        if case.dtype == FLOAT32 and case.form == "dense":
            with torchlstm.use_engine("cuda"):
                first, second = gpu_stress.results(case, 2, torch.device("cpu"))
                assert gpu_stress.poisoned(case, torch.device("cpu")).outcome == "its own sequence only"
            for name, tensor in first.items():
                assert tensor is not None
                assert torch.equal(tensor, second[name])


@interpreted
def test_what_is_saved_is_not_written() -> None:
    lstm = torchlstm.LSTM(5, 20, 2, bidirectional=True, proj_size=3)
    x = torch.randn(4, 3, 5, requires_grad=True)
    with torchlstm.use_engine("cuda"):
        output, (h_n, c_n) = lstm(x)
        loss = output.square().sum() + h_n.sum() + c_n.square().sum()
        first = torch.autograd.grad(loss, [x, *lstm.parameters()], retain_graph=True)
        second = torch.autograd.grad(loss, [x, *lstm.parameters()])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@interpreted
def test_gradients_of_gradients_and_the_operator() -> None:
    lstm = torchlstm.LSTM(3, 4, bidirectional=True, dtype=FLOAT64)
    x = torch.randn(3, 2, 3, dtype=FLOAT64, requires_grad=True)
    with torchlstm.use_engine("cuda"):
        # Fast: along one random direction, since the interpreter takes a minute for each input alone.
        assert torch.autograd.gradgradcheck(lambda x: lstm(x)[0], (x,), fast_mode=True)
        compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x)[0], lstm(x)[0])
        mapped = torch.func.vmap(lambda x: lstm(x)[0])(x.detach().unsqueeze(2))
        alone = torch.stack([lstm(each.unsqueeze(1))[0].squeeze(1) for each in x])
        torch.testing.assert_close(mapped.squeeze(2), alone)


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_rows_of_the_step_before_and_after(ragged: bool) -> None:
    sizes = [4, 3, 3, 1] if ragged else [5] * 4
    batch = 5
    problem = Problem(
        Ragged(torch.tensor(sizes)) if ragged else Dense(4, 5), batch, 1, 1, 0, 2, True, FLOAT32, torch.device("cpu")
    )
    work = work_of(problem, sum(sizes), precise=False)
    place = [(t, b) for t, size in enumerate(sizes) for b in range(size)]
    rows = torch.tensor([10.0 * t + b for t, b in place]).unsqueeze(1)
    edge = -1 - torch.arange(5.0).unsqueeze(1)
    before = [10.0 * (t - 1) + b if t else -1.0 - b for t, b in place]
    after = [10.0 * (t + 1) + b if (t + 1, b) in place else -1.0 - b for t, b in place]
    assert neighbours(work, rows, edge, backwards=False).flatten().tolist() == before
    assert neighbours(work, rows, edge, backwards=True).flatten().tolist() == after
    last = [max(t for t, other in place if other == b) * 10.0 + b for b in range(sizes[0])]
    assert rows[first_rows(work, 0)].flatten().tolist() == [float(b) for b in range(sizes[0])]
    assert rows[first_rows(work, 1)].flatten().tolist() == last
