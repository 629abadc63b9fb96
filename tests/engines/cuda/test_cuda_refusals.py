"""What the CUDA engine refuses, and in which precision it computes: what needs neither a GPU nor the interpreter."""

import inspect
from typing import Any

import pytest
import torch

import torchlstm
from torchlstm.call.plan import plan_cell, plan_lstm
from torchlstm.cells import stack as stacks
from torchlstm.cells import stack_cells
from torchlstm.engines.contract import Dense, Problem
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda import products, toolchain
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.shared import operators
from torchlstm.engines.shared.kernel import unflatten

FLOAT16, FLOAT32, FLOAT64 = torch.float16, torch.float32, torch.float64
H200 = GPU("H200", (9, 0), 132, 227 << 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_engine_says_so() -> None:
    assert "no CUDA device" in str(torchlstm.engines()["cuda"])
    with pytest.raises(RuntimeError, match=r"engine 'cuda' is not available: torch .* sees no CUDA device"):
        torchlstm.use_engine("cuda")


def test_on_rocm_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch.cuda is available too, and a GPU has a capability of 9.x."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(toolchain, "_found", [None])
    expected = f"it needs CUDA, torch {torch.__version__} is built for ROCm"
    assert torchlstm.engines()["cuda"] == expected
    monkeypatch.setattr(torch.version, "hip", None)
    assert torchlstm.engines()["cuda"] is None


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "expected"),
    [
        ("cpu", FLOAT32, (9, 0), "it runs on cuda, not on cpu"),
        ("cuda", torch.complex64, (9, 0), "complex64 is not supported"),
        ("cuda", FLOAT32, (7, 5), "it needs a GPU of compute capability 8.0 or newer, this one has 7.5"),
        ("cuda", FLOAT64, (8, 0), None),
    ],
)
def test_refusals(
    device: str, dtype: torch.dtype, capability: tuple[int, int], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "INTERPRETED", False)
    monkeypatch.setattr(cuda, "gpu_of", lambda _: H200._replace(capability=capability))
    problem = Problem(Dense(2, 2), 2, 2, 2, 0, 1, True, dtype, torch.device(device))
    assert cuda.ENGINE.refuses(problem) == expected


# --- the precision of products of float32


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """settings(rnn, matmul): whether TF32 is allowed, as torch's two settings say; read only."""

    class Setting:
        def __init__(self, allowed: bool) -> None:
            vars(self)["fp32_precision"] = "tf32" if allowed else "ieee"

        def __setattr__(self, name: str, value: Any) -> None:
            raise AssertionError("torch's settings are not ours to set")

    def set_to(rnn: bool, matmul: bool) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "rnn", Setting(rnn))
        monkeypatch.setattr(torch.backends.cuda, "matmul", Setting(matmul))

    return set_to


@pytest.mark.parametrize("rnn", [False, True])
@pytest.mark.parametrize("matmul", [False, True])
def test_lstms_follow_the_setting_of_rnns_and_cells_that_of_products(rnn: bool, matmul: bool, settings: Any) -> None:
    x = torch.zeros(2, 3)
    lstm = plan_lstm(torchlstm.LSTM(3, 4), x.unsqueeze(0), None).problems[0]
    cell = plan_cell(torchlstm.LSTMCell(3, 4), x, None).problems[0]
    settings(rnn, matmul)
    assert products.exact(lstm) is not rnn
    assert products.exact(cell) is not matmul
    assert not products.exact(lstm._replace(dtype=FLOAT16))


def test_torch_says_tf32_of_rnns_and_not_of_products_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = plan_lstm(torchlstm.LSTM(3, 4), torch.zeros(2, 2, 3), None).problems[0]
    assert (products.exact(lstm), products.exact(lstm._replace(cell=True))) == (False, True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert products.exact(lstm)


def test_a_stack_of_cells_follows_the_setting_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Problem] = []
    original = stacks.layer
    monkeypatch.setattr(stacks, "layer", lambda problem, *rest: asked.append(problem) or original(problem, *rest))

    class Cell(torchlstm.LSTMCell):
        def as_lstm(self) -> Any:
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, None

    module = stack_cells(Cell, 3, 4)
    module(torch.zeros(2, 2, 3))
    assert [problem.cell for problem in asked] == [True]
    assert torchlstm.explain(module, torch.zeros(2, 2, 3)).decisions[0].problem.cell


class _Spy:
    """Replace the engine's kernels: their launches are recorded, and torch multiplies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launches: list[Any] = []
        monkeypatch.setattr(launching, "launch", self.launch)

    def launch(self, file: str, name: str, grid: Any, warps: int, tensors: Any, numbers: Any, **constants: Any) -> None:
        self.launches.append((file, name, numbers, constants))
        if (file, name) == ("product", "rounded"):
            given, out = tensors
            out.copy_(given)
            assert tuple(numbers) == (*given.shape, *given.stride())
            assert grid == (-(-given.shape[0] // constants["BR"]), -(-given.shape[1] // constants["BC"]))
            assert out.is_contiguous()
        elif file == "product":
            left, right, out = tensors
            result = left.double() @ right.double()
            out.copy_(result + out if constants["ADD"] else result)
            assert grid == (-(-out.shape[0] // constants["BM"]), -(-out.shape[1] // constants["BN"]))
            strides = (*left.stride(), *right.stride(), *out.stride())
            assert tuple(numbers) == (left.shape[0], right.shape[1], left.shape[1], *strides)


ASKED = {
    # rnn allows TF32, matmul's setting, large -> who multiplies
    "exact-as-torch": (False, False, True, None),
    "exact-but-torch-rounds": (False, True, False, ["ieee"]),
    "tf32-as-torch": (True, True, True, None),
    "tf32-but-torch-is-exact": (True, False, True, ["rounded", "rounded", "tf32"]),
    "tf32-but-torch-is-exact-and-it-is-small": (True, False, False, None),
}


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("asked", ASKED)
def test_who_multiplies(asked: str, bias: bool, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, matmul, large, expected = ASKED[asked]
    settings(rnn, matmul)
    spy = _Spy(monkeypatch)
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(products, "_LARGE", 100 if large else 1 << 40)
    monkeypatch.setattr(products, "_MANY", 1)
    left, right, row = torch.randn(7, 9), torch.randn(11, 9).t(), torch.randn(11)
    out = torch.randn(11, 7).t()
    exact = not rnn
    true = left @ right
    torch.testing.assert_close(products.product(left, right, exact), true)
    before = out.clone()
    torch.testing.assert_close(products.multiply(out, left, right, exact, add=True), before + true)
    products.affine(out, row if bias else None, left, right, exact)
    torch.testing.assert_close(out, true + row if bias else true)
    found = [constants.get("PRECISION", name) for _, name, _, constants in spy.launches]
    assert found == (expected or []) * 3


def test_few_tiles_are_left_to_cublas(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(True, False)
    spy = _Spy(monkeypatch)
    monkeypatch.setattr(products, "_LARGE", 1)
    for rows in (128 * 7, 128 * 7 + 1):
        products.product(torch.randn(rows, 2), torch.randn(2, 128 * 8), exact=False)
    assert [numbers[0] for _, name, numbers, _ in spy.launches if name == "product"] == [128 * 7 + 1]


def test_half_precision_is_left_to_cublas(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(False, True)
    spy = _Spy(monkeypatch)
    for dtype in (FLOAT16, FLOAT64):
        products.product(torch.ones(3, 2, dtype=dtype), torch.ones(2, 3, dtype=dtype), exact=True)
    assert not spy.launches


def test_no_setting_of_the_process_is_switched() -> None:
    """Products of other threads would change with it."""
    for module in (cuda, products):
        source = inspect.getsource(module)
        assert "fp32_precision =" not in source.replace("fp32_precision ==", "")
        for name in ("set_float32_matmul_precision", "_set_cublas", "allow_tf32 ="):
            assert name not in source


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("loop", [None, "fused", "steps"])
def test_the_kernel_of_a_call_knows_its_precision(
    loop: str | None, exact: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settled once, when the layer is called: the name in a program, and the kernel that the backward is given."""
    asked: list[bool] = []
    settings(not exact, False)
    monkeypatch.setattr(cuda, "_LAYERS", {key: lambda *_, key=key: asked.append(key) for key in cuda._LAYERS})
    problem = Problem(Dense(2, 2), 2, 2, 2, 0, 1, True, FLOAT32, torch.device("cuda"), loop=loop)
    empty = torch.empty(0)
    cuda.ENGINE.layer(problem, empty, empty, empty, ())
    assert asked == [(loop or "fused", exact)]
    names = {"cuda", "cuda_exact", "cuda_steps", "cuda_steps_exact"}
    assert names <= set(operators._kernels)
    kernel: Any = operators._kernels["cuda" + "_steps" * (loop == "steps") + "_exact" * exact]
    assert (kernel.loop, kernel.exact) == (loop or "fused", exact)


def test_the_backward_has_the_precision_of_its_forward(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the settings are by then, chunk by chunk too; and so has its plan."""
    spy = _Spy(monkeypatch)
    seen: list[Any] = []
    original = cuda.work_of
    monkeypatch.setattr(cuda, "work_of", lambda *args: seen.append(args[2]) or original(*args))
    multiplied: list[bool] = []
    kept = products.multiply
    monkeypatch.setattr(products, "multiply", lambda *args, **more: multiplied.append(args[3]) or kept(*args, **more))
    monkeypatch.setattr(cuda, "gpu_of", lambda _: H200)
    for every in (None, 2):
        for exact in (False, True):
            seen.clear()
            settings(not exact, False)
            problem = Problem(
                Dense(4, 2), 2, 3, 5, 0, 1, True, FLOAT32, torch.device("cpu"), checkpoint_every=every, loop="steps"
            )
            shapes = ((8, 3), (1, 2, 5), (1, 2, 5), (20, 3), (20, 5), (20,), (20,))
            x, h, c, *flat = [torch.randn(shape, requires_grad=True) for shape in shapes]
            y, *_ = cuda.ENGINE.layer(problem, x, h, c, unflatten(flat, 1))
            forward = len(seen)
            multiplied.clear()
            settings(exact, False)
            y.sum().backward()
            assert len(seen) > forward > 0
            assert set(seen) == {exact}
            assert set(multiplied) == {exact}
    assert not [launch for launch in spy.launches if launch[0] == "product"]


def test_the_step_loop_is_exact_where_torch_would_round(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(False, True)
    spy = _Spy(monkeypatch)
    problem = Problem(Dense(3, 2), 2, 3, 5, 0, 2, True, FLOAT32, torch.device("cpu"), loop="steps")
    shapes = ((20, 3), (20, 5), (20,), (20,))
    flat = [torch.randn(shape, requires_grad=True) for _ in range(2) for shape in shapes]
    x, h, c = torch.randn(6, 3, requires_grad=True), torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    y, *_ = cuda.ENGINE.layer(problem, x, h, c, unflatten(flat, 2))
    loop = [name for _, name, *_ in spy.launches]
    assert loop == ["product"] * 2 + (["product"] * 2 + ["forward"]) * 3
    spy.launches.clear()
    y.sum().backward()
    loop = [name for _, name, *_ in spy.launches]
    assert loop[: 3 * 3] == ["backward", "product", "product"] * 3
    # dx, dw_ih and dw_hh of both directions
    assert loop[3 * 3 :] == ["product"] * 6
