"""The calls of the C kernel with their fields, as kernel/calls.h lists them, and the loading of the extension."""

from __future__ import annotations

import ctypes
import importlib
import sys
import sysconfig
from typing import Any, NewType, Protocol

from torch import Tensor

from ..shared import torch_private

Sizes = NewType("Sizes", object)


class Kernel(Protocol):
    """The extension's calls with their named fields; kernel.h has the shapes.

    A field of a wrong type or shape raises TypeError or ValueError, and nothing is written.  The annotations are
    compared with the extension's own list when it is loaded.
    """

    def sizes(
        self,
        *,
        isa: int,
        threads: int,
        element: int,
        steps: int,
        batch: int,
        input: int,
        hidden: int,
        output: int,
        directions: int,
        projected: bool,
        reverse: bool,
        batch_sizes: Tensor | None,
    ) -> Sizes:
        """Check the arguments that all calls for a layer share."""

    def forward_scratch(self, sizes: Sizes, /) -> int:
        """How many elements of scratch memory `forward` needs."""

    def forward(
        self,
        *,
        sizes: Sizes,
        y: Tensor,
        h_n: Tensor,
        c_n: Tensor,
        gates: Tensor | None,
        cells: Tensor | None,
        x: Tensor,
        h_0: Tensor,
        c_0: Tensor,
        w_ih: tuple[Tensor, ...],
        w_hh: tuple[Tensor, ...],
        b_ih: tuple[Tensor | None, ...],
        b_hh: tuple[Tensor | None, ...],
        w_hr: tuple[Tensor | None, ...],
        scratch: Tensor | None,
    ) -> None:
        """Run a layer; writes y to cells."""

    def backward_scratch(self, sizes: Sizes, /) -> int:
        """How many elements of scratch memory `backward` needs."""

    def backward(
        self,
        *,
        sizes: Sizes,
        first: int,
        end: int,
        dgates: Tensor,
        before: Tensor | None,
        dh: Tensor | None,
        raw: Tensor | None,
        dh_0: Tensor | None,
        dc_0: Tensor,
        db: Tensor,
        gates: Tensor,
        cells: Tensor,
        y: Tensor | None,
        h_0: Tensor,
        c_0: Tensor,
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        dacts: Tensor | None,
        dcells: Tensor | None,
        w_hh: tuple[Tensor, ...],
        w_hr: tuple[Tensor | None, ...],
        scratch: Tensor | None,
    ) -> None:
        """Run steps [first, end) of the backward; writes dgates to db."""

    def gemm_scratch(self, *, isa: int, threads: int, out: Tensor, left: Tensor, right: Tensor) -> int:
        """How many elements of scratch memory `gemm` needs."""

    def gemm(
        self, *, isa: int, threads: int, out: Tensor, left: Tensor, right: Tensor, add: bool, scratch: Tensor | None
    ) -> None:
        """Write left @ right to `out`, or add it to `out`."""

    def readable(self, *, matrix: Tensor, turned: bool) -> bool:
        """Whether a product can read a matrix without a copy; `turned`: a transposed one too."""

    def huge(self, tensor: Tensor, /) -> None:
        """Ask the system for large pages for a tensor's memory."""

    def isa(self, wanted: int, /) -> int:
        """The instruction set that is used if this one is wanted."""

    def threads(self) -> tuple[int, int, int, int, int]:
        """The fields of `engine.Threads` for the calling thread's latest layer or product."""

    def adapt(self, on: bool, /) -> None:
        """For tests and comparisons: False switches `pace.h` off, so calls use all threads that their work is worth."""

    def peak(self, *, isa: int, threads: int, element: int, rounds: int) -> int:
        """Run multiply-adds in registers on every thread; returns the number of operations, two for each."""


class Extension(Kernel, Protocol):
    """The extension with the calls that read their arguments themselves: see modules.h, training.h and gradients.h.

    They return None for arguments that do not fit, and the path in Python then computes or raises.
    """

    openmp: int  # whether an OpenMP runtime was found

    def connect(self, functions: dict[str, Any], /) -> None:
        """Take the functions of torch that calls of modules use, by the names in moment.h."""

    def lstm(self, module: Any, input: Any, hx: Any, apply: Any, /) -> Any:
        """What an LSTM returns; with gradients, the result of `apply(form, input, h, c, *weights)`."""

    def cell(self, module: Any, input: Any, hx: Any, apply: Any, /) -> Any:
        """As `lstm`, of an LSTMCell."""

    def keep(self, form: Any, arguments: tuple[Any, ...], /) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The results in the user's form, and what is saved for the backward."""

    def gradients(
        self, form: Any, needs: tuple[bool, ...], saved: tuple[Any, ...], incoming: tuple[Any, ...], /
    ) -> tuple[Tensor | None, ...] | None:
        """The gradients of all arguments of the Function."""

    def frozen(self, *sizes: int) -> tuple[object, int, int, int, list[int]]:
        """The packing for (isa, format, element, input, hidden, proj, layers, directions): see frozen.h."""

    def frozen_lstm(self, *values: Any) -> Any:
        """An LSTM on packed weights: (handle, data, x, h, c, batch_sizes, batch_first, out)."""

    def frozen_cell(self, *values: Any) -> Any:
        """A cell on packed weights: (handle, data, x, h, c)."""

    def frozen_step(self, *values: Any) -> Any:
        """As either of these, with the states updated in place; returns an LSTM's output, or True for a cell."""

    def form(self, form: Any, /) -> tuple[int, int, int, int, int, int, int]:
        """T, B, D, and whether the call is batch_first, batched, of a cell, projected."""


def declared() -> dict[str, dict[str, str]]:
    """The fields of every call with their types."""
    return {
        call: {field: kind for field, kind in method.__annotations__.items() if field != "return"}
        for call, method in vars(Kernel).items()
        if not call.startswith("_")
    }


def check(extension: Any) -> None:
    """Raise ImportError unless the extension has the calls that are declared here."""
    ours, theirs = declared(), getattr(extension, "CALLS", {})
    for call in dict.fromkeys((*ours, *theirs)):
        if ours.get(call) != theirs.get(call):
            mine, other = ours.get(call, {}), theirs.get(call, {})
            differ = sorted(
                {f"{field}: {kind}" for field, kind in mine.items()} ^ {f"{f}: {kind}" for f, kind in other.items()}
            )
            raise ImportError(f"it was compiled from other sources, whose {call} differs in {', '.join(differ)}")


def _why_not_compiled() -> str:
    """Why there is no extension, and what to do; setup.py has the same conditions."""
    if sys.platform == "win32":
        return "its extension is not built on Windows; under WSL it is"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "its extension is not built for free-threaded Python; for Python with the GIL it is"
    return (
        "its extension was not compiled at installation; a wheel has it compiled, and with a C compiler (GCC or Clang) "
        "`pip install -v --no-cache-dir --force-reinstall --no-deps` of torchlstm compiles it or shows why not"
    )


# As openmp.h has them.
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_num_procs")


def _connect(extension: Any) -> None:
    """Give the extension torch's OpenMP functions where it cannot find them itself: see openmp.h."""
    if extension.openmp and sys.platform != "darwin":
        return
    if torch_private.LIBRARY is None:
        return
    found = ctypes.CDLL(torch_private.LIBRARY)
    if all(hasattr(found, name) for name in _OPENMP):
        extension.use_openmp(*(ctypes.cast(getattr(found, name), ctypes.c_void_p).value for name in _OPENMP))


def load() -> tuple[Any, str | None]:
    """The extension, or None and the reason why it is missing."""
    try:
        # After torch has been imported, so that the kernel finds torch's OpenMP runtime.
        extension = importlib.import_module("._kernel", __package__)
        check(extension)
        _connect(extension)
        return extension, None
    except ModuleNotFoundError:
        return None, _why_not_compiled()
    except ImportError as error:
        return None, f"its extension does not load: {error}"
