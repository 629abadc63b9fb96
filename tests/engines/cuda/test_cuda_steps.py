"""The step loop in Triton's interpreter, by another process of pytest on this file; operations around a loop."""

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import in_the_interpreter
import pytest
import torch
from fake_graphs import FakeGraphs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchlstm
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda import graphs, products, work
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.shared import autograd
from torchlstm.engines.shared.access import DIRECT
from torchlstm.engines.shared.kernel import unflatten
from torchlstm.parity import CASES, run_case

pytest.importorskip("triton")

INTERPRETED = launching.INTERPRETED
interpreted = pytest.mark.skipif(not INTERPRETED, reason="a test of the interpreter, run by test_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="nothing of the interpreter's")
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
FLOAT32, FLOAT64 = torch.float32, torch.float64
CPU = torch.device("cpu")

# Float64 always runs step by step, and `test_cuda_engine.py` has it.
NAMES = [
    "float32-packed", "float16-packed", "bfloat16-packed", "float32-T2-B17-I3-H8", "L1-bi-proj3-unsorted",
    "nan-in-one-row-packed", "batch-0", "hx-expanded", "cell-float32",
]  # fmt: skip


@compiled
def test_in_the_interpreter() -> None:
    assert in_the_interpreter.run(__file__) > len(NAMES)


def _by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine run every problem by its step loop."""
    layer = cuda._layer
    asked = replace(cuda.ENGINE, layer=lambda problem, *rest: layer(problem._replace(loop="steps"), *rest))
    monkeypatch.setitem(ENGINES, "cuda", asked)


@interpreted
@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases that the engine alone would run by a fused loop."""
    _by_steps(monkeypatch)
    result = run_case(CASES[name], engine="cuda")
    assert result.skipped is None
    assert result.passed, [verdict for verdict in result.verdicts if verdict.reason]


@interpreted
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-direction", "two-directions"])
def test_a_module_on_graphs(bidirectional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in the interpreter, CUDA graphs by a stand-in: three steps of training give nn.LSTM's numbers."""
    fake = FakeGraphs()
    launch = launching.launch

    def queued(*args: Any, **constants: Any) -> None:
        if (queue := getattr(fake.local, "queue", None)) is not None:
            queue.append(lambda: launch(*args, **constants))
        else:
            launch(*args, **constants)

    _by_steps(monkeypatch)
    monkeypatch.setattr(graphs, "seam", fake)
    monkeypatch.setattr(graphs, "STEPS", (2, 1))
    monkeypatch.setattr(launching, "launch", queued)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    torch.manual_seed(1)
    theirs = torch.nn.LSTM(3, 4, bidirectional=bidirectional)
    ours = torchlstm.LSTM(3, 4, bidirectional=bidirectional)
    ours.load_state_dict(theirs.state_dict())
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.5) for module in (theirs, ours)]
    try:
        for step in range(3):
            x, losses = torch.randn(3 + step, 2, 3), []
            for module, optimizer in zip((theirs, ours), optimizers, strict=True):
                with torchlstm.use_engine("cuda"):
                    y, (h, c) = module(x)
                losses.append(y.square().sum() + h.sum() + c.square().sum())
                optimizer.zero_grad()
                losses[-1].backward()
                optimizer.step()
            torch.testing.assert_close(losses[1], losses[0])
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b)
        # Forward and backward: 4 steps are 2 and 2, 5 are 2, 2 and 1.
        assert len(fake.captured) == 4
        assert fake.replays == 10
    finally:
        graphs.clear()


# --- products of the kernel


@interpreted
@pytest.mark.parametrize("exact", [True, False], ids=["float32", "tf32"])
@pytest.mark.parametrize("add", [False, True], ids=["write", "add"])
def test_a_product_of_the_kernel(add: bool, exact: bool) -> None:
    """Of strided operands and results, of no multiple of a tile."""
    torch.manual_seed(0)
    left, right = torch.randn(70, 130).t()[:, 3:], torch.randn(67, 70).t()
    whole = torch.full((131, 90), 7.0)
    out = whole[1:, 5:72]
    operands = (left, right) if exact else (_to_tf32(left), _to_tf32(right))
    true = operands[0].double() @ operands[1][:67].double() + (7.0 if add else 0.0)
    assert products.own(out, left, right[:67], exact, add) is out
    assert (out.double() - true).abs().max() < 3e-5
    if not exact:
        assert (out.double() - left.double() @ right[:67].double() - (7.0 if add else 0.0)).abs().max() > 1e-4
    whole[1:, 5:72] = 7.0
    assert (whole == 7.0).all()


def _to_tf32(tensor: Tensor) -> Tensor:
    """Rounded to 10 digits of the mantissa, halves away from zero."""
    mantissa, exponent = tensor.double().frexp()
    scaled = mantissa * 2**11
    return torch.ldexp((scaled.abs() + 0.5).floor() * scaled.sign() / 2**11, exponent).float()


@interpreted
def test_tf32_keeps_infinities_and_nan() -> None:
    left = torch.tensor([[float("inf"), float("-inf"), float("nan"), 1.0 + 2**-11, -0.0]]).t().contiguous()
    left[2] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(FLOAT32)
    out = products.own(torch.empty(5, 1), left, torch.ones(1, 1), exact=False)
    assert out[0].item() == float("inf")
    assert out[1].item() == float("-inf")
    assert out[2].isnan()
    assert out[3].item() == 1.0 + 2**-10
    assert out[4].item() == 0.0


@interpreted
def test_a_layer_in_tf32_multiplies_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `nn.LSTM` may, where torch's own products are exact; the interpreter has the rounding of operands alone."""
    monkeypatch.setattr(products, "_LARGE", 1)
    monkeypatch.setattr(products, "_MANY", 1)
    lstm, x = torchlstm.LSTM(3, 4), torch.randn(5, 2, 3)
    true = lstm(x)[0]
    with torchlstm.use_engine("cuda"):
        rounded = lstm(x)[0]
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        exact = lstm(x)[0]
    assert 1e-6 < (rounded - true).abs().max() < 1e-3
    torch.testing.assert_close(exact, true)


def _compile(file: str, name: str, capability: int, constants: dict[str, Any], stages: int) -> Any:
    """Compile a kernel for a GPU that is not there; numbers and addresses are multiples of 16."""
    triton = importlib.import_module("triton")
    kernel = launching.kernel_of(file, name)
    signature, values, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
        else:
            signature[argument] = "*fp32" if argument.startswith("p_") else "i32"
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": 4, **launching.OPTIONS, "num_stages": stages})


@compiled
@pytest.mark.parametrize(("capability", "instruction"), [(86, "mma.sync"), (90, "wgmma")])
def test_the_product_in_tf32_uses_tensor_cores_and_fits_on_every_gpu(capability: int, instruction: str) -> None:
    cut = products._TF32
    tile = {"BM": cut.rows, "BN": cut.columns, "BK": cut.inner}
    constants = {"ADD": False, "PRECISION": "tf32", "left_k": 1, "right_k": 1, "out_n": 1, **tile}
    found = _compile("product", "product", capability, constants, cut.stages)
    assert instruction in found.asm["ptx"]
    assert "elementwise_inline_asm" not in found.asm["ttir"]
    assert "ld.local" not in found.asm["ptx"]
    assert found.metadata.shared <= 99 << 10


@compiled
def test_the_kernels_of_a_step_compile_without_assembly() -> None:
    constants = {"H": 20, "D": 2, "BLOCK": 256, "FAST": False}
    absent = {"p_dy": None, "p_dacts": None, "p_dcells": None, "TRACE": False}
    for name, more in (("forward", {"SAVE": True}), ("backward", absent)):
        found = _compile("pointwise", name, 80, {**constants, **more}, 1)
        assert "elementwise_inline_asm" not in found.asm["ttir"]


# --- the places of ragged batches


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """A GPU whose memory is the CPU's: how often memory was pinned for it, and what its current stream is."""
    found: Counter[str] = Counter()
    original = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], torch.device):
            args = (CPU, *args[1:])
        return original(self, *args, **kwargs)

    def pin(self: Tensor) -> Tensor:
        assert not found["capturing"], "memory is pinned under capture"
        found["pinned"] += 1
        return self

    empty, zeros = torch.empty, torch.zeros
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch, "empty", lambda *args, device=None, **more: empty(*args, device=CPU, **more))
    monkeypatch.setattr(torch, "zeros", lambda *args, device=None, **more: zeros(*args, device=CPU, **more))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(found["capturing"]))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: type("", (), {"cuda_stream": found["stream"]}))
    work._places.clear()
    yield found
    work._places.clear()


def _work(sizes: list[int], batch: int, device: str = "cuda") -> Any:
    problem = Problem(Ragged(torch.tensor(sizes)), batch, 1, 1, 0, 2, True, FLOAT32, torch.device(device, 0))
    return work.work_of(problem, sum(sizes), precise=False)


BATCHES = {"falling": ([4, 3, 3, 1], 5), "equal": ([3, 3], 3), "one": ([2], 2), "ends-empty": ([2, 1, 0, 0], 2)}


@compiled
@pytest.mark.parametrize("capturing", [False, True], ids=["copied", "captured"])
@pytest.mark.parametrize("name", BATCHES)
def test_places(name: str, capturing: bool, copies: Counter[str]) -> None:
    sizes, batch = BATCHES[name]
    copies["capturing"] = capturing
    found = _work(sizes, batch)
    starts = [sum(sizes[:t]) for t in range(len(sizes) + 1)]
    assert (found.sizes, found.starts) == (sizes, starts)
    assert found.device_starts.tolist() == starts
    assert found.lengths.tolist() == [sum(size > b for size in sizes) for b in range(batch)]
    assert found.places.dtype == torch.int64
    assert copies["pinned"] == (not capturing)
    assert len(work._places) == (not capturing)


@compiled
def test_places_are_copied_once_for_a_stream(copies: Counter[str]) -> None:
    first = _work([3, 2], 3)
    assert _work([3, 2], 3).places is first.places
    for other in (([3, 1], 3), ([3, 2], 4)):
        assert _work(*other).places is not first.places
    copies["stream"] = 1  # a copy that is queued on one stream may not have arrived on another
    assert _work([3, 2], 3).places is not first.places
    assert copies["pinned"] == 4
    for size in range(200):
        _work([size + 1], size + 1)
    assert len(work._places) == 64
    for _ in range(100):
        copies["capturing"] = 1
        _work([9, 8], 9)
    assert len(work._places) == 64


# --- operations around a loop


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def _counted(monkeypatch: pytest.MonkeyPatch, loop: str, directions: int, train: bool, steps: int) -> Counter[str]:
    """The operations of a layer of one loop on the CPU, of which the kernels themselves compute nothing."""
    monkeypatch.setattr(launching, "launch", lambda *_, **__: None)
    monkeypatch.setattr(cuda, "gpu_of", lambda _: GPU("H200", (9, 0), 132, 227 << 10))
    monkeypatch.setattr(autograd, "access_of", lambda _: DIRECT)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    problem = Problem(Dense(steps, 2), 2, 3, 5, 0, directions, True, FLOAT32, CPU, loop=loop)
    shapes = ((20, 3), (20, 5), (20,), (20,))
    flat = [torch.randn(shape, requires_grad=train) for _ in range(directions) for shape in shapes]
    x, h, c = torch.randn(2 * steps, 3, requires_grad=train), *torch.randn(2, directions, 2, 5)
    dy = torch.ones(2 * steps, 5 * directions)
    with _Count() as count:
        y, *_ = cuda.ENGINE.layer(problem, x, h, c, unflatten(flat, directions))
        if train:
            torch.autograd.grad([y], [x, *flat], [dy])
    return count.names


# Of a layer of one and of two directions: in inference and in training, once and for each step.
OPERATIONS = {
    ("fused", 1): (11, 0, 39, 0), ("fused", 2): (13, 0, 64, 0),
    ("steps", 1): (16, 1, 48, 2), ("steps", 2): (23, 2, 82, 4),
}  # fmt: skip


@compiled
@pytest.mark.parametrize(("loop", "directions"), OPERATIONS)
def test_operations_of_torch_around_a_loop(loop: str, directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation costs some microseconds of the host's time: there are no more than these."""
    found: list[int] = []
    for train in (False, True):
        short, long = (_counted(monkeypatch, loop, directions, train, steps).total() for steps in (8, 9))
        found += [short - 8 * (long - short), long - short]
    assert tuple(found) == OPERATIONS[loop, directions]


@compiled
def test_no_row_is_copied_to_find_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dense batch: a pass over all rows, where h of the step before is made in its place."""
    for directions in (1, 2):
        assert "aten.cat.default" not in _counted(monkeypatch, "steps", directions, True, 8)
