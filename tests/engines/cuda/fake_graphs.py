"""A stand-in for CUDA graphs, which runs at replay what a capture has recorded, and calls for it.  No tests."""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda import steps
from torchlstm.engines.cuda.plan import Steps
from torchlstm.engines.cuda.work import work_of

PLAN = Steps(64, 4)


class _Recorder(TorchDispatchMode):
    """In a capture views are made, operations that write are recorded instead, and all others are refused."""

    def __init__(self, queue: list[Callable[[], Any]]) -> None:
        super().__init__()
        self.queue = queue

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self.queue.append(lambda: func(*args, **kwargs))
            return kwargs.get("out", args[0])
        if not func.is_view:
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        return func(*args, **kwargs)


class FakeGraphs:
    """See `graphs.Capturing`.  Every thread has a current stream, "main" unless it sets another one."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.captured: list[str] = []  # the stream of every capture
        self.replays = 0
        self.waited: list[str] = []
        self.free = 1 << 40
        self.capturing = False
        self.failure: BaseException | None = None
        self.loaded: set[Any] = set()  # kernels that have run: none may be loaded within a capture
        self.pause = 0.0  # seconds before each operation of a replay, so that other threads interleave

    def usable(self, device: torch.device) -> bool:
        return not self.capturing

    def stream(self, device: torch.device) -> str:
        return getattr(self.local, "stream", "main")

    def room(self, device: torch.device) -> tuple[int, int]:
        return self.free, 1 << 40

    def capture(self, stream: str, run: Callable[[], None]) -> Callable[[], None]:
        queue: list[Callable[[], Any]] = []
        self.local.queue = queue
        try:
            with _Recorder(queue):
                run()
                if self.failure is not None:
                    raise self.failure
        finally:
            del self.local.queue
        self.captured.append(stream)

        def replay() -> None:
            assert self.stream(torch.device("cpu")) == stream
            self.replays += 1
            for each in queue:
                time.sleep(self.pause)
                each()

        return replay

    def wait(self, stream: str) -> None:
        self.waited.append(stream)

    def launch(self, file: str, name: str, grid: Any, _: int, tensors: Any, numbers: Any, **constants: Any) -> None:
        """`launch.launch` of a kernel of the step loop: recorded within a capture, else computed."""
        assert file == "pointwise"
        kernel = (name, tuple(constants.items()), *(t is not None and t.dtype for t in tensors))
        if (queue := getattr(self.local, "queue", None)) is not None:
            assert kernel in self.loaded
            queue.append(lambda: STEP[name](grid, tensors, numbers, **constants))
        else:
            self.loaded.add(kernel)
            STEP[name](grid, tensors, numbers, **constants)


def _forward(grid: Any, tensors: Any, numbers: Any, H: int, D: int, BLOCK: int, SAVE: bool, **_: Any) -> None:
    """`pointwise.forward` in torch operations."""
    gates, y, cells, h, c = tensors
    batch, rows = numbers[4:]
    assert (gates.shape[1], h.shape[1]) == (rows, batch)
    for d in range(D):
        row, n = numbers[d], numbers[2 + d]
        assert grid[0] * BLOCK >= n * H
        part = gates[d, row : row + n]
        i, f, g, o = part.to(c.dtype).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c[d, :n] = f * c[d, :n] + i * g
        h[d, :n] = y[row : row + n, d * H : (d + 1) * H] = (o * c[d, :n].tanh()).to(y.dtype)
        if SAVE:
            cells[d, row : row + n], gates[d, row : row + n] = c[d, :n], torch.cat((i, f, g, o), 1)


def _backward(grid: Any, tensors: Any, numbers: Any, H: int, D: int, BLOCK: int, TRACE: bool, **_: Any) -> None:
    """`pointwise.backward` in torch operations."""
    acts, cells, c_0, dy, dh, dc, dacts, dcells, dgates = tensors
    batch, rows = numbers[8:]
    assert (acts.shape[1], dh.shape[1]) == (rows, batch)
    for d in range(D):
        row, n, row_before, begun = (numbers[2 * place + d] for place in range(4))
        assert grid[0] * BLOCK >= n * H
        i, f, g, o = acts[d, row : row + n].to(dc.dtype).chunk(4, 1)
        before = torch.cat((cells[d, row_before : row_before + begun], c_0[d, begun:n])).to(dc.dtype)
        own = dh[d, :n].to(dc.dtype)
        if dy is not None:
            own = own + dy[row : row + n, d * H : (d + 1) * H]
        more = [0.0] * 4 if dacts is None else dacts[d, row : row + n].to(dc.dtype).chunk(4, 1)
        dc[d, :n] += 0.0 if dcells is None else dcells[d, row : row + n]
        r = cells[d, row : row + n].to(dc.dtype).tanh()
        dc[d, :n] += own * o * (1 - r * r)
        di, df, dg, do = (dc[d, :n] * g, dc[d, :n] * before, dc[d, :n] * i, own * r)
        parts = ((di + more[0]) * i * (1 - i), (df + more[1]) * f * (1 - f), (dg + more[2]) * (1 - g * g))
        dgates[d, row : row + n] = torch.cat((*parts, (do + more[3]) * o * (1 - o)), 1)
        dc[d, :n] *= f


STEP = {"forward": _forward, "backward": _backward}


class Call:
    """A layer's loop on random tensors of a seed: `forward` and `backward` return everything that they compute."""

    def __init__(
        self, seed: int, length: int = 7, dtype: torch.dtype = torch.float32, directions: int = 1,
        reverse: bool = False, batch: int = 3, hidden: int = 5, sizes: list[int] | None = None, precise: bool = False,
    ) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        rows: Any = Dense(length, batch) if sizes is None else Ragged(torch.tensor(sizes))
        count = length * batch if sizes is None else sum(sizes)
        problem = Problem(rows, batch, 3, hidden, 0, directions, True, dtype, torch.device("cpu"), reverse=reverse)
        self.work = work_of(problem, count, precise)
        self.gates, self.w_hh = randn(directions, count, 4 * hidden), randn(directions, 4 * hidden, hidden) / 2
        self.states = [randn(directions, batch, hidden) for _ in range(4)]
        self.acts, self.cells = randn(directions, count, 4 * hidden).sigmoid(), randn(directions, count, hidden)
        self.dy = randn(count, directions * hidden)

    def forward(self, save: bool = True) -> list[Tensor]:
        gates = self.gates.clone()
        results = steps.forward(PLAN, self.work, gates, *self.states[:2], self.w_hh, save)
        return [*results, gates] if save else list(results[:3])

    def backward(self, dy: bool = True, trace: bool = False) -> list[Tensor]:
        ends = self.states[2:] if dy else [None, None]
        traced = (self.acts, self.cells) if trace else (None, None)
        given = (self.acts, self.cells, self.states[1], self.w_hh, self.dy if dy else None, *ends, *traced)
        return list(steps.backward(PLAN, self.work, *given))

    def run(self, way: str) -> list[Tensor]:
        return {
            "forward": self.forward,
            "inference": lambda: self.forward(save=False),
            "backward": self.backward,
            "backward-of-nothing-but-y": lambda: self.backward(dy=False),
        }[way]()
