"""How the kernels of the CUDA engine are launched, on a GPU or in Triton's interpreter."""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# In Triton's interpreter the kernels run on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Compile options of every kernel: no software pipelining unless a launch asks for it; multiplications are fused with
# additions, for which newer versions of Triton need the option.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}

# The driver's errors for a launch that does not fit on the GPU, as Triton passes them on.  Such a kernel has not run,
# and the CUDA context stays usable.
_NO_ROOM = ("too many blocks in cooperative launch", "too many resources requested for launch")
# The driver's error where cooperative launches are not supported, as in some partitions of a GPU.
_NOT_TOGETHER = "operation not supported"

# Triton passes numbers below this in 32 bits; a larger one is an argument of another type.
_NARROW = 1 << 31

# Whether kernels are compiled and not launched: see `compiling`.
_only_compile = False

# Compiled kernels, by all that Triton's dispatch depends on; see `Repeated`.
_compiled: dict[Any, Any] = {}


class NoRoom(RuntimeError):
    """The GPU, or the part of it that this process may use, has no room for a launch: the kernel has not run."""


@contextmanager
def compiling() -> Iterator[None]:
    """Compile every kernel into Triton's cache instead of launching it: results are left unwritten.

    The interpreter has nothing to compile, and runs the kernels.
    """
    global _only_compile
    before, _only_compile = _only_compile, True
    try:
        yield
    finally:
        _only_compile = before


def kernel_of(file: str, name: str) -> Any:
    """The kernel of this name in kernels/."""
    return getattr(importlib.import_module(f".kernels.{file}", __package__), name)


def launch(
    file: str,
    name: str,
    grid: tuple[int, ...],
    warps: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int],
    together: bool = False,
    stages: int | None = None,
    **constants: Any,
) -> Any:
    """Launch a kernel on the current stream; returns the compiled kernel, or None if there is none.

    together  a cooperative launch, which the driver refuses unless all programs can be resident at once
    Raises NoRoom, before anything has run, if the GPU has no room for it.
    """
    if 0 in grid:
        return None
    options: dict[str, Any] = {}
    if not INTERPRETED:
        options = {"num_warps": warps, "launch_cooperative_grid": together, **OPTIONS}
        options |= {} if stages is None else {"num_stages": stages}
    kernel = kernel_of(file, name)
    if _only_compile and not INTERPRETED:
        kernel.warmup(*tensors, *numbers, grid=grid, **constants, **options)
        return None
    try:
        return kernel[grid](*tensors, *numbers, **constants, **options)
    except Exception as error:
        if reason := _no_room(error, together):
            raise NoRoom(reason) from error
        raise


def launch_again(
    file: str,
    name: str,
    grid: tuple[int, ...],
    warps: int,
    tensors: Sequence[Tensor | None],
    numbers: Sequence[int],
    together: bool = False,
    **constants: Any,
) -> None:
    """As `launch`, of a kernel that is specialised on no number: bypasses Triton's dispatch after the first launch.

    Raises NoRoom too.
    """
    device = _device(tensors)
    if device.type != "cuda" or _only_compile or max(numbers) >= _NARROW or _hooked():
        launch(file, name, grid, warps, tensors, numbers, together=together, **constants)
        return
    key = _key(file, name, warps, together, tensors, constants)
    if (known := _compiled.get(key)) is None:
        _compiled[key] = launch(file, name, grid, warps, tensors, numbers, together=together, **constants)
        return
    stream = torch.cuda.current_stream(device).cuda_stream
    last = _last(kernel_of(file, name), constants)
    try:
        known.run(*grid, *(1,) * (3 - len(grid)), *_before(known, stream), *tensors, *numbers, *last)
    except Exception as error:
        if reason := _no_room(error, together):
            raise NoRoom(reason) from error
        raise


# A compiled kernel takes every parameter by position, constants as well.  Before them come the arguments that Triton's
# dispatch passes: the stream, the function, metadata of the kernel and of the launch, and two hooks.


def _before(known: Any, stream: int) -> tuple[Any, ...]:
    return stream, known.function, known.packed_metadata, None, None, None


def _last(kernel: Any, constants: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(constants[name] for name in kernel.arg_names[-len(constants) :])


def _device(tensors: Sequence[Tensor | None]) -> torch.device:
    return next(tensor for tensor in tensors if tensor is not None).device


def _key(
    file: str,
    name: str,
    warps: int,
    together: bool,
    tensors: Sequence[Tensor | None],
    constants: dict[str, Any],
) -> tuple[Any, ...]:
    """All that Triton's dispatch depends on; of a tensor the type, and whether its address is a multiple of 16."""
    kinds = tuple(None if t is None else (t.dtype, t.data_ptr() % 16 == 0) for t in tensors)
    return file, name, warps, together, _device(tensors), kinds, *constants.items()


def _no_room(error: Exception, together: bool) -> str | None:
    """The text of an error that says that a launch does not fit, None of any other error."""
    text = str(error)
    known = type(error).__name__ == "OutOfResources" or any(words in text for words in _NO_ROOM)
    if known or (together and _NOT_TOGETHER in text):
        return text
    return None


def _hooked() -> bool:
    """Whether launch hooks are set, as Triton's profiler sets them: they have to see every launch."""
    runtime = importlib.import_module("triton").knobs.runtime
    return any(getattr(hook, "calls", hook) for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook))


class Repeated:
    """Launches of one kernel on the same tensors, each with other numbers and as many of them.

    Triton's dispatch inspects every argument of every launch, which takes longer than the kernel of a small step.
    Only the first launch goes through it.  The compiled kernel that it returns is cached by all that it depends on:
    types of the tensors, whether their addresses are multiples of 16, constants, warps, device.  Numbers that the
    kernels are not specialised on do not matter as long as they fit into 32 bits; `most` is the largest of them.
    """

    def __init__(
        self, file: str, name: str, warps: int, tensors: Sequence[Tensor | None], most: int, **constants: Any
    ) -> None:
        self._file, self._name, self._warps = file, name, warps
        self._tensors, self._constants = tuple(tensors), constants
        self._device = _device(tensors)
        self._key: Any = None
        self._run: Callable[..., None] | None = None
        if self._device.type == "cuda" and most < _NARROW and not _hooked():
            self._key = _key(file, name, warps, False, tensors, constants)
            if (known := _compiled.get(self._key)) is not None:
                self._prepare(known)

    def _prepare(self, known: Any) -> None:
        self._last = _last(kernel_of(self._file, self._name), self._constants)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._run = known.run
        self._first = (*_before(known, stream), *self._tensors)

    def __call__(self, grid: tuple[int, int], *numbers: int) -> None:
        """Launch it on the stream that was current at the first launch, or when this was made."""
        if self._run is not None:
            if 0 not in grid:
                self._run(*grid, 1, *self._first, *numbers, *self._last)
            return
        found = launch(self._file, self._name, grid, self._warps, self._tensors, numbers, **self._constants)
        if found is not None and self._key is not None:
            _compiled[self._key] = found
            self._prepare(found)
