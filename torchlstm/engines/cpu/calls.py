"""The calls of the CPU kernel, as kernel/calls.h lists them, and the extension that takes them."""

from __future__ import annotations

import importlib
from typing import Any, NewType, Protocol

from torch import Tensor

Sizes = NewType("Sizes", object)


class Kernel(Protocol):
    """The extension: every call with its fields, by name; shapes stand in calls.h and kernel.h.

    A field that is not what it should be raises TypeError or ValueError, and nothing is written.  The annotations are
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
        """Check what all calls about a layer have in common."""

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
        """Run a layer; y to cells are written."""

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
        """Run steps [first, end) of the backward; dgates to db are written."""

    def gemm_scratch(self, *, isa: int, threads: int, out: Tensor, left: Tensor, right: Tensor) -> int:
        """How many elements of scratch memory `gemm` needs."""

    def gemm(
        self, *, isa: int, threads: int, out: Tensor, left: Tensor, right: Tensor, add: bool, scratch: Tensor | None
    ) -> None:
        """Write left @ right to `out`, or add it."""

    def peak(self, *, isa: int, threads: int, element: int, rounds: int) -> int:
        """Run multiply-adds in registers on every thread; returns how many operations, two each."""

    def readable(self, *, matrix: Tensor, turned: bool) -> bool:
        """Whether a product can read a matrix where it is; `turned`: column by column too."""

    def huge(self, tensor: Tensor, /) -> None:
        """Ask for large pages for a tensor's memory."""

    def isa(self, wanted: int, /) -> int:
        """The instruction set that is used where one is wanted."""


def declared() -> dict[str, dict[str, str]]:
    """The fields of every call, and their types."""
    return {
        call: {field: kind for field, kind in method.__annotations__.items() if field != "return"}
        for call, method in vars(Kernel).items()
        if not call.startswith("_")
    }


def check(extension: Any) -> None:
    """Raise ImportError unless the extension takes the calls that are declared here."""
    ours, theirs = declared(), getattr(extension, "CALLS", {})
    for call in dict.fromkeys((*ours, *theirs)):
        if ours.get(call) != theirs.get(call):
            mine, other = ours.get(call, {}), theirs.get(call, {})
            differ = sorted(
                {f"{field}: {kind}" for field, kind in mine.items()} ^ {f"{f}: {kind}" for f, kind in other.items()}
            )
            raise ImportError(f"it was compiled from other sources, whose {call} differs in {', '.join(differ)}")


def load() -> tuple[Any, str | None]:
    """The extension, or None and why it is missing."""
    try:
        # After torch: its OpenMP runtime is the one that the kernel finds.
        extension = importlib.import_module("._kernel", __package__)
        check(extension)
        return extension, None
    except ModuleNotFoundError:
        return None, (
            "its extension was not compiled at installation; "
            "`pip install -v --no-cache-dir --force-reinstall --no-deps` of torchlstm shows why"
        )
    except ImportError as error:
        return None, f"its extension does not load: {error}"
