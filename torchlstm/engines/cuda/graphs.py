"""CUDA graphs for the step loop: some steps are captured once, and replayed in place of a product and a launch each.

A graph has a fixed number of steps (`STEPS`) of a dense batch on buffers of its own.  Rows, states and weights are
copied into the buffers, and results out of them, so a graph depends neither on T nor on an address, and needs memory
for at most 64 steps.  The copies move each row once more in either direction; an estimate is 3 to 10 % of the time of
a step, where launches from the host are more than half of it.  A loop is cut into 64, 16 and 4 steps; the remaining
steps run without graphs.  So do ragged batches: the sizes of their steps would be part of a graph, and rarely recur.

Everything that a graph holds fixed is in its key, the stream too.  On one stream calls run in order, so buffers, memory
pool and cuBLAS's workspace need no lock.  (Two host threads on one stream are the exception: cuBLAS's workspaces are
cleared around a capture, and another thread's product may be about to use one.  The captures of torch's compiler have
the same exception.)  The first call of a key runs without graphs, the second one captures.  Bits may differ between the
two where cuBLAS chooses an algorithm by the alignment of addresses; hence no graphs in torch's deterministic mode.
"""

import gc
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ..contract import Dense
from .plan import Steps
from .work import Together, Work, order_of, turned

# Steps of a graph.  Each is a quarter of the one before: a loop takes few replays, and at most three steps are left.
STEPS = (64, 16, 4)
# The most bytes of the buffers of one key.  A step that takes more than a quarter of them keeps the GPU busy for longer
# than the host needs to launch it.
_MOST_OF_ONE = 64 << 20
# The most keys, and bytes of all buffers; the least recently used go first.  Each stream adds cuBLAS's workspace, 32
# MiB on a GPU of 9.0.
_MOST, _MOST_BYTES = 32, 512 << 20
# The most keys that are remembered as seen once, or as failed.
_MOST_REMEMBERED = 1024
# The share of a GPU's memory that has to stay free after a capture.
_LEAVE = 1 / 16

_SETTINGS = ("allow_fp16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction_split_k",
               "allow_bf16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction_split_k",
               "allow_fp16_accumulation", "fp32_precision")  # fmt: skip


class Rows(NamedTuple):
    """The tensors of a loop that have a part for each step: (D, P, F), or (P, D*F).

    c_0  of a backward, (D, B, H): c before the first step, as `cells`, read[1], has it before all others
    """

    read: list[Tensor]
    written: list[Tensor]
    c_0: Tensor | None


# body(work, rows, states, w_hh, order): run the steps of an order, updating the states (D, B, H) in place.
Body: TypeAlias = Callable[[Work, Rows, Sequence[Tensor], Tensor, Sequence[Together]], None]


class Capturing(Protocol):
    """The calls of torch.cuda that are needed here: an interface, so that tests can replace a GPU."""

    def usable(self, device: torch.device) -> bool:
        """Whether the current stream of a device may be captured from, and nobody captures it."""

    def stream(self, device: torch.device) -> Any:
        """The current stream: hashable, equal to itself only."""

    def room(self, device: torch.device) -> tuple[int, int]:
        """Bytes of memory: those that are free, and all."""

    def capture(self, stream: Any, run: Callable[[], None]) -> Callable[[], None]:
        """Capture the work that `run` queues, of which nothing is computed; returns what replays it on this stream."""

    def wait(self, stream: Any) -> None:
        """Return when the work of a stream is done."""


class _Torch:
    """See `Capturing`."""

    def __init__(self) -> None:
        self._private: dict[Any, tuple[Any, Any]] = {}

    def usable(self, device: torch.device) -> bool:
        return device.type == "cuda" and not torch.cuda.is_current_stream_capturing() and not _of_inductor(device)

    def stream(self, device: torch.device) -> Any:
        return torch.cuda.current_stream(device)

    def room(self, device: torch.device) -> tuple[int, int]:
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total

    def capture(self, stream: Any, run: Callable[[], None]) -> Callable[[], None]:
        # The legacy default stream cannot be captured, so another one is.  All graphs of one stream share a pool, and
        # so cuBLAS's workspace in it.
        side, pool = self._private.get(stream) or (torch.cuda.Stream(stream.device), torch.cuda.graph_pool_handle())
        self._private[stream] = side, pool
        graph = torch.cuda.CUDAGraph()
        # The garbage collector could run what a capture does not allow.
        collects = gc.isenabled()
        gc.disable()
        # Cleared before, so that the workspace comes from the graph's pool, not from one that others use on `side`; and
        # after, so that nobody else gets it.  torch's compiler does the same around its captures.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.stream(side):
                # Other threads may allocate meanwhile.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    self._end(graph, stream)
        finally:
            torch._C._cuda_clearCublasWorkspaces()
            if collects:
                gc.enable()
        return graph.replay

    def _end(self, graph: Any, stream: Any) -> None:
        try:
            graph.capture_end()
        except Exception:
            # A capture that cannot be ended leaves the allocator filling this pool.
            _, pool = self._private.pop(stream)
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(stream.device.index, pool)
            raise

    def wait(self, stream: Any) -> None:
        stream.synchronize()


def _of_inductor(device: torch.device) -> bool:
    """Whether torch's compiler runs this call for CUDA graphs of its own, whose memory pool it reclaims."""
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is None:
        return False
    try:
        manager = trees.get_manager(device.index, create_if_none_exists=False)
    except AssertionError:  # a thread that has none
        return False
    return manager is not None and torch.cuda.current_stream(device) == manager.stream


class _Group:
    """The graphs of one key, and their buffers.

    steps   of the longest graph
    states  (D, B, H) each
    """

    def __init__(self, stream: Any, steps: int, rows: Rows, states: Sequence[Tensor], w_hh: Tensor) -> None:
        self.steps, self.stream = steps, stream
        batch = states[0].shape[1]
        # What is read and written is one buffer.
        buffers = {id(tensor): _buffer(tensor, steps * batch) for tensor in (*rows.read, *rows.written)}
        read, written = ([buffers[id(tensor)] for tensor in tensors] for tensors in rows[:2])
        self.rows = Rows(read, written, None if rows.c_0 is None else torch.empty_like(rows.c_0))
        self.states = [torch.empty_like(state) for state in states]
        self.w_hh = torch.empty_like(w_hh)
        self.graphs: dict[int, Callable[[], None]] = {}

    def capture(self, steps: int, work: Work, body: Body, backward: bool) -> None:
        """Capture a graph of so many steps; the work is any of this key."""
        batch = work.problem.batch
        part = Work(
            work.problem._replace(rows=Dense(steps, batch)),
            self.steps * batch,
            [batch] * steps,
            range(0, (steps + 1) * batch, batch),
            None,
            work.precise,
        )
        order = order_of(part, len(self.w_hh))
        order = order[::-1] if backward else order
        if not self.graphs:
            # A run outside of a capture loads the kernels and makes cuBLAS's handles.
            body(part, self.rows, self.states, self.w_hh, order[: STEPS[-1]])
        self.graphs[steps] = seam.capture(self.stream, lambda: body(part, self.rows, self.states, self.w_hh, order))

    def run(
        self, cuts: Sequence[int], work: Work, rows: Rows, states: Sequence[Tensor], w_hh: Tensor, backward: bool
    ) -> None:
        """Replay graphs of these lengths one after another; the states are updated in place."""
        torch._foreach_copy_([*self.states, self.w_hh], [*states, w_hh])
        done, batch, last, directions = 0, work.problem.batch, work.problem.rows.steps, len(w_hh)
        for steps in cuts:
            into, out_of = [], []
            for d in range(directions):
                # From the end of the rows if the direction runs backwards in this loop.
                low = last - done - steps if turned(work, d) != backward else done
                window = slice(low * batch, (low + steps) * batch)
                own = slice(0, steps * batch)
                for tensor, buffer in zip(rows.read, self.rows.read, strict=True):
                    into.append((_cut(buffer, d, directions, own), _cut(tensor, d, directions, window)))
                for tensor, buffer in zip(rows.written, self.rows.written, strict=True):
                    out_of.append((_cut(tensor, d, directions, window), _cut(buffer, d, directions, own)))
                if rows.c_0 is not None and self.rows.c_0 is not None:
                    into.append((self.rows.c_0[d], _before(work, rows.read[1][d], rows.c_0[d], d, window)))
            _copy(into)
            self.graphs[steps]()
            _copy(out_of)
            done += steps
        torch._foreach_copy_(list(states), self.states)

    @property
    def size(self) -> int:
        """Bytes of the buffers."""
        return _bytes(self.rows) + sum(tensor.nbytes for tensor in (*self.states, self.w_hh))


def _bytes(rows: Rows) -> int:
    """Of the tensors of rows, each counted once."""
    return sum({id(tensor): tensor.nbytes for tensor in (*rows.read, *rows.written)}.values())


def _buffer(tensor: Tensor, rows: int) -> Tensor:
    """As a tensor of rows (D, P, F) or (P, D*F), of so many of them."""
    shape = list(tensor.shape)
    shape[-2] = rows
    return tensor.new_empty(shape)


def _cut(tensor: Tensor, d: int, directions: int, rows: slice) -> Tensor:
    """Some rows of a direction of a tensor (D, P, F) or (P, D*F)."""
    if tensor.dim() == 3:
        return tensor[d, rows]
    size = tensor.shape[1] // directions
    return tensor[rows, d * size : (d + 1) * size]


def _before(work: Work, cells: Tensor, c_0: Tensor, d: int, rows: slice) -> Tensor:
    """c (B, H) before the first step of these rows, of a direction's cells (P, H) and c_0 (B, H)."""
    batch = work.problem.batch
    if turned(work, d):
        return cells[rows.stop : rows.stop + batch] if rows.stop < work.rows else c_0
    return cells[rows.start - batch : rows.start] if rows.start else c_0


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    torch._foreach_copy_([to for to, _ in pairs], [of for _, of in pairs])


# The calls of torch.cuda; the graphs, most recently used last; and the keys that were seen once.
seam: Capturing = _Torch()
_groups: OrderedDict[Any, _Group] = OrderedDict()
_seen: OrderedDict[Any, int] = OrderedDict()
# Why a key will never have graphs.
_failures: OrderedDict[Any, str] = OrderedDict()
# The failure that the user was warned of, if any.
_said: list[str] = []
# Held while the work of a loop is queued, so that calls on one stream do not interleave.
_lock = Lock()


def run(name: str, plan: Steps, work: Work, rows: Rows, states: Sequence[Tensor], w_hh: Tensor, body: Body) -> int:
    """Run as many steps of a loop as graphs have, from its beginning; returns how many, 0 if there are none.

    name  "forward" or "backward"
    """
    if not _wanted(work) or not seam.usable(w_hh.device):
        return 0
    steps, backward = work.problem.rows.steps, name == "backward"
    with _lock:
        stream = seam.stream(w_hh.device)
        key = _key(name, plan, work, rows, stream)
        try:
            group = _group(key, stream, steps, rows, states, w_hh)
            if group is None:
                return 0
            cuts = _cuts(steps, group.steps)
            for length in sorted(set(cuts) - set(group.graphs)):
                group.capture(length, work, body, backward)
        except Exception as error:  # of any kind: nothing was computed that the loop would not compute again
            _give_up(key, error)
            return 0
        group.run(cuts, work, rows, states, w_hh, backward)
    return sum(cuts)


def failures() -> list[str]:
    """The reasons of all keys that will never have graphs."""
    with _lock:
        return list(_failures.values())


def clear() -> None:
    """Forget all graphs, and give their memory back."""
    with _lock:
        while _groups:
            _evict()
        for table in (_seen, _failures, _said):
            table.clear()


def _wanted(work: Work) -> bool:
    """Whether a loop may have graphs, apart from what depends on the GPU."""
    return (
        os.environ.get("TORCHLSTM_GRAPHS") != "0"
        and work.places is None
        and work.problem.rows.steps >= STEPS[-1]
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.is_anomaly_enabled()
        and os.environ.get("CUDA_LAUNCH_BLOCKING") != "1"
    )


def _key(name: str, plan: Steps, work: Work, rows: Rows, stream: Any) -> Any:
    """All that a graph holds fixed."""
    problem, matmul = work.problem, torch.backends.cuda.matmul
    sizes = (problem.batch, problem.hidden_size, problem.directions, problem.reverse, problem.dtype, problem.device)
    settings = tuple(getattr(matmul, setting, None) for setting in _SETTINGS)
    library = torch.backends.cuda.preferred_blas_library()
    return name, plan, *sizes, len(rows.read), len(rows.written), work.precise, settings, library, stream


def _cuts(steps: int, most: int) -> list[int]:
    """The lengths of the graphs, none longer than `most`, that a loop of so many steps begins with."""
    found: list[int] = []
    for length in STEPS:
        if length <= most:
            count, steps = divmod(steps, length)
            found += [length] * count
    return found


def _group(key: Any, stream: Any, steps: int, rows: Rows, states: Sequence[Tensor], w_hh: Tensor) -> _Group | None:
    """The graphs of a key, if it is not seen for the first time and there is memory for them."""
    if (group := _groups.get(key)) is not None:
        _groups.move_to_end(key)
        return group
    if key in _failures:
        return None
    if not _seen.pop(key, 0):
        _remember(_seen, key, 1)
        return None
    each, fixed = _bytes(rows) // steps, sum(tensor.nbytes for tensor in (*states, w_hh))
    fits = [length for length in STEPS if length * each <= _MOST_OF_ONE]
    if not fits or fixed > _MOST_BYTES // 2:
        much = f"a step is {each} bytes, weights and states are {fixed}"
        _remember(_failures, key, f"{much}: too much to copy")
        return None
    free, total = seam.room(w_hh.device)
    size = fits[0] * each + fixed
    if free - size < _LEAVE * total:
        return None  # asked again when the key is seen twice more
    while _groups and (len(_groups) >= _MOST or size + sum(group.size for group in _groups.values()) > _MOST_BYTES):
        _evict()
    with torch.inference_mode(False):  # else only calls in that mode could write into the buffers
        group = _groups[key] = _Group(stream, fits[0], rows, states, w_hh)
    return group


def _evict() -> None:
    """Drop the group that was not used for longest, when its work is done."""
    _, group = _groups.popitem(last=False)
    seam.wait(group.stream)


def _give_up(key: Any, error: Exception) -> None:
    """Use no graphs for a key from now on; warns once a process."""
    group = _groups.pop(key, None)
    if group is not None and group.graphs:
        seam.wait(group.stream)
    reason = f"{type(error).__name__}: {error}"
    _remember(_failures, key, reason)
    if not _said:
        _said.append(reason)
        warnings.warn(
            f"torchlstm: an LSTM could not be captured as a CUDA graph ({reason}); it runs without, more slowly. "
            "TORCHLSTM_GRAPHS=0 keeps it from trying",
            RuntimeWarning,
            stacklevel=2,
        )


def _remember(table: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    table[key] = value
    if len(table) > _MOST_REMEMBERED:
        table.popitem(last=False)
