"""Launches of the CUDA engine: those that bypass Triton's dispatch, and those that do not fit on the GPU."""

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchlstm.engines.contract import Dense, Problem
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda import fused, loops, plan
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.plan import Rows, Steps
from torchlstm.engines.cuda.work import work_of

pytest.importorskip("triton")

FLOAT16, FLOAT32, FLOAT64 = torch.float16, torch.float32, torch.float64
H200 = GPU("H200", (9, 0), 132, 227 << 10)
FULL = "Triton Error [CUDA]: too many blocks in cooperative launch"


# --- launches that bypass the dispatch


class _Tensor:
    """The parts of a tensor on a GPU that a launch depends on."""

    def __init__(self, address: int = 0, dtype: torch.dtype = FLOAT32, index: int = 0) -> None:
        self.address, self.dtype, self.device = address, dtype, torch.device("cuda", index)

    def data_ptr(self) -> int:
        return self.address


class _Kernel:
    """A stand-in for Triton's kernels: `kernel[grid](..)` compiles, launches and returns what can be launched again."""

    arg_names = ("p_a", "p_b", "row", "H", "SAVE")

    function, packed_metadata = "function", "packed"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getitem__(self, grid: Any) -> Any:
        def dispatch(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(("dispatched", grid, args, kwargs))
            return self

        return dispatch

    def run(self, *args: Any) -> None:
        self.calls.append(("again", args[:3], args[9:], args[3]))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    found = _Kernel()
    monkeypatch.setattr(launching, "kernel_of", lambda *_: found)
    monkeypatch.setattr(launching, "INTERPRETED", False)
    monkeypatch.setattr(launching, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=77))
    return found


def _repeated(*tensors: Any, most: int = 100, warps: int = 4, **constants: Any) -> launching.Repeated:
    return launching.Repeated("file", "name", warps, tensors, most, **(constants or {"SAVE": True, "H": 5}))


def test_only_the_first_launch_is_dispatched(kernel: _Kernel) -> None:
    a, b = _Tensor(), _Tensor(16)
    repeated = _repeated(a, b)
    for row in range(3):
        repeated((2, 1), row)
    repeated((3, 1), 3)
    _repeated(_Tensor(64), _Tensor(32))((2, 1), 4)
    (how, grid, args, kwargs), *again = kernel.calls
    assert (how, grid, args) == ("dispatched", (2, 1), (a, b, 0))
    assert kwargs == {"SAVE": True, "H": 5, "num_warps": 4, "launch_cooperative_grid": False, **launching.OPTIONS}
    # By position, in the order of the kernel's parameters.
    assert again[:3] == [
        ("again", (2, 1, 1), (a, b, 1, 5, True), 77),
        ("again", (2, 1, 1), (a, b, 2, 5, True), 77),
        ("again", (3, 1, 1), (a, b, 3, 5, True), 77),
    ]
    assert [call[0] for call in again] == ["again"] * 4


OTHERS: dict[str, Any] = {
    "alignment": lambda: _repeated(_Tensor(8), _Tensor()),
    "dtype": lambda: _repeated(_Tensor(), _Tensor(dtype=FLOAT16)),
    "device": lambda: _repeated(_Tensor(index=1), _Tensor(index=1)),
    "absent": lambda: _repeated(_Tensor(), None),
    "constant": lambda: _repeated(_Tensor(), _Tensor(), SAVE=False, H=5),
    "warps": lambda: _repeated(_Tensor(), _Tensor(), warps=8),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_triton_compiles_anew_for_is_dispatched_anew(other: str, kernel: _Kernel) -> None:
    for make in (lambda: _repeated(_Tensor(), _Tensor()), OTHERS[other]):
        for row in range(2):
            make()((1, 1), row)
    assert [call[0] for call in kernel.calls] == ["dispatched", "again"] * 2


def _again(kernel: _Kernel, *tensors: Any, row: int = 3, together: bool = True, **constants: Any) -> None:
    constants = constants or {"SAVE": True, "H": 5}
    launching.launch_again("file", "name", (2,), 4, tensors, (row,), together=together, **constants)


def test_a_known_launch_goes_past_the_dispatcher(kernel: _Kernel) -> None:
    a, b = _Tensor(), _Tensor(16)
    _again(kernel, a, b)
    _again(kernel, _Tensor(32), b, row=4)
    (how, grid, args, kwargs), again = kernel.calls
    assert (how, grid, args) == ("dispatched", (2,), (a, b, 3))
    assert kwargs == {"SAVE": True, "H": 5, "num_warps": 4, "launch_cooperative_grid": True, **launching.OPTIONS}
    assert again[:2] == ("again", (2, 1, 1))
    assert again[2][1:] == (b, 4, 5, True)
    assert again[3] == 77


ANEW: dict[str, Any] = {
    "alignment": ((_Tensor(8), _Tensor()), {}), "dtype": ((_Tensor(), _Tensor(dtype=FLOAT16)), {}),
    "absent": ((_Tensor(), None), {}), "device": ((_Tensor(index=1), _Tensor(index=1)), {}),
    "constant": ((_Tensor(), _Tensor()), {"SAVE": False, "H": 5}),
    "together": ((_Tensor(), _Tensor()), {"together": False}),
    "number": ((_Tensor(), _Tensor()), {"row": 1 << 31}),
}  # fmt: skip


@pytest.mark.parametrize("other", ANEW)
def test_what_is_not_known_is_dispatched(other: str, kernel: _Kernel) -> None:
    _again(kernel, _Tensor(), _Tensor())
    tensors, options = ANEW[other]
    _again(kernel, *tensors, **options)
    assert [call[0] for call in kernel.calls] == ["dispatched"] * 2


def test_a_known_launch_that_finds_no_room_says_so(kernel: _Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    _again(kernel, _Tensor(), _Tensor())
    for text, kind in ((FULL, launching.NoRoom), ("an illegal memory access was encountered", RuntimeError)):

        def fail(*_: Any, text: str = text) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(kernel, "run", fail)
        with pytest.raises(RuntimeError, match=text[-20:]) as raised:
            _again(kernel, _Tensor(), _Tensor())
        assert type(raised.value) is kind


def test_numbers_beyond_32_bits_are_always_dispatched(kernel: _Kernel) -> None:
    for _ in range(2):
        repeated = _repeated(_Tensor(), _Tensor(), most=1 << 31)
        repeated((1, 1), 1)
        repeated((1, 1), 1 << 31)
    assert [call[0] for call in kernel.calls] == ["dispatched"] * 4


def test_nothing_is_launched_for_no_programs(kernel: _Kernel) -> None:
    repeated = _repeated(_Tensor(), _Tensor())
    for grid in ((0, 1), (1, 1), (0, 1)):
        repeated(grid, 1)
    assert len(kernel.calls) == 1


@pytest.mark.skipif(launching.INTERPRETED, reason="nothing is compiled in the interpreter")
def test_the_compiled_kernel_of_this_triton_takes_that_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called as Triton's dispatch calls it, with every parameter in its position."""
    given: list[Any] = []
    compiled = SimpleNamespace(function="function", packed_metadata="packed", run=lambda *args: given.append(args))
    kernel = launching.kernel_of("pointwise", "forward")
    constants = {"FAST": False, "SAVE": True, "BLOCK": 64, "D": 1, "H": 5}  # in another order
    tensors = [_Tensor(16 * i) for i in range(5)]
    monkeypatch.setattr(launching, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(launching, "launch", lambda *_, **__: compiled)
    repeated = launching.Repeated("pointwise", "forward", 4, tensors, 10, **constants)
    numbers = (0, 0, 3, 3, 3, 21)
    for _ in range(2):
        repeated((2, 1), *numbers)
    ((*first, enter, leave), args) = given[0][:9], given[0][9:]
    assert [*first, enter, leave] == [2, 1, 1, 77, "function", "packed", None, None, None]
    by_name = {**dict(zip(kernel.arg_names, [*tensors, *numbers], strict=False)), **constants}
    assert dict(zip(kernel.arg_names, args, strict=True)) == by_name
    source = " ".join(inspect.getsource(importlib.import_module("triton.runtime.jit").JITFunction.run).split())
    assert (
        "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
        "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
    ) in source
    found = importlib.import_module("triton.compiler.compiler").CompiledKernel
    assert isinstance(found.run, property)


def test_whoever_listens_to_launches_hears_all(kernel: _Kernel) -> None:
    hooks = importlib.import_module("triton").knobs.runtime.launch_enter_hook
    hooks.add(print)
    try:
        repeated = _repeated(_Tensor(), _Tensor())
    finally:
        hooks.remove(print)
    for row in range(2):
        repeated((1, 1), row)
    assert [call[0] for call in kernel.calls] == ["dispatched"] * 2


# --- no room for a launch


class _OutOfResources(Exception):
    """A stand-in for Triton's exception, which is recognised by its name."""


_OutOfResources.__name__ = "OutOfResources"


@pytest.mark.parametrize(
    ("error", "together", "room"),
    [
        (RuntimeError(FULL), True, False),
        (RuntimeError("Triton Error [CUDA]: too many resources requested for launch"), False, False),
        (_OutOfResources("out of resource: shared memory"), False, False),
        (RuntimeError("Triton Error [CUDA]: operation not supported"), True, False),
        (RuntimeError("Triton Error [CUDA]: operation not supported"), False, True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True, True),
        (torch.OutOfMemoryError("CUDA out of memory"), True, True),
    ],
    ids=lambda value: str(value),
)
def test_which_errors_of_a_launch_say_that_there_is_no_room(
    error: Exception, together: bool, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(launching, "kernel_of", lambda *_: {(1, 1): fail})
    with pytest.raises(Exception) as raised:  # noqa: PT011
        launching.launch("file", "name", (1, 1), 4, [], [], together=together)
    assert type(raised.value) is (type(error) if room else launching.NoRoom)
    assert str(raised.value) == str(error)


def test_triton_still_has_that_error() -> None:
    found = importlib.import_module("triton.runtime.errors").OutOfResources
    assert found.__name__ == "OutOfResources"


def _problem(dtype: torch.dtype = FLOAT32, device: str = "cpu", **others: Any) -> Problem:
    return Problem(Dense(4, 2), 2, 3, 5, 0, 1, True, dtype, torch.device(device), **others)


def test_a_loop_that_finds_no_room_runs_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the gates as they were, since a refused kernel has not run; the warning comes once."""
    torch.manual_seed(0)
    work = work_of(_problem(), 8, precise=False)
    gates, state, w_hh = torch.randn(1, 8, 20), torch.randn(1, 2, 5), torch.randn(1, 20, 5)
    given: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        raise launching.NoRoom(FULL)

    def forward(path: Any, _: Any, gates: Any, *rest: Any) -> Any:
        given.append((path, gates.clone(), *rest))
        return "stepped"

    monkeypatch.setattr(loops, "_said", [])
    monkeypatch.setattr(launching, "launch", refuse)
    monkeypatch.setattr(loops.steps, "forward", forward)
    monkeypatch.setattr(loops.steps, "backward", lambda *args: given.append(args) or "stepped back")
    before = gates.clone()
    with pytest.warns(
        RuntimeWarning, match="a GPU refused the kernel .*too many blocks in cooperative launch.* step by"
    ):
        assert loops.forward(Rows(16, 16, 4), work, gates, state, state, w_hh, True) == "stepped"
    assert isinstance(given[0][0], Steps)
    assert torch.equal(given[0][1], before)
    acts, cells = torch.rand(1, 8, 20), torch.rand(1, 8, 5)
    back = (acts, cells, state, w_hh, None, None, state, None, None)
    assert loops.backward(Rows(16, 16, 4), work, *back) == "stepped back"
    assert isinstance(given[1][0], Steps)
    for ours, true in zip(given[1][2:], back, strict=True):
        assert ours is true


def test_other_errors_of_a_fused_loop_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(fused, "forward", fail)
    monkeypatch.setattr(fused, "backward", fail)
    for loop, count in ((loops.forward, 5), (loops.backward, 9)):
        arguments = [torch.zeros(1, 1, 1)] * count
        with pytest.raises(RuntimeError, match="illegal memory access"):
            loop(Rows(16, 16, 4), work_of(_problem(), 8, False), *arguments)


@pytest.mark.parametrize(
    ("backend", "world", "left"),
    [(None, 1, 132), ("nccl", 1, 132), ("gloo", 8, 132), ("nccl", 8, 100), ("cpu:gloo,cuda:nccl", 2, 100)],
)
def test_nccl_keeps_some_multiprocessors(
    backend: str | None, world: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: backend is not None)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    monkeypatch.setattr(distributed, "get_backend_config", lambda: backend)
    monkeypatch.setattr(cuda, "gpu_of", lambda _: H200)
    seen: list[GPU] = []
    monkeypatch.setattr(cuda, "plan", lambda problem, direction, precise, gpu: seen.append(gpu) or plan.steps())
    kernel = cuda._CUDA("a name", "fused", False)
    kernel._plan(work_of(_problem(), 8, False), "forward")
    assert seen == [H200._replace(multiprocessors=left)]
