"""Packed weights of a frozen LSTM on the CPU, and the calls that read them."""

from typing import Any, NamedTuple

from torch import Tensor

from ..shared.rounding import Rounded


class Sizes(NamedTuple):
    """What a frozen LSTM is built of, as nn.LSTM names it."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: bool = True


# One direction of one layer: w_ih (4H, I), w_hh (4H, R), b_ih + b_hh (4H,) of float32 or None, w_hr (R, H) or None.
Direction = tuple[Rounded, Rounded, Tensor | None, Rounded | None]


class Packed:
    """The weights of a module as the kernel reads them."""

    format: Any
    isa: str
    data: Tensor


def pack(sizes: Sizes, weights: list[tuple[Direction, ...]]) -> Packed | None:
    """Pack rounded weights, L of D of `Direction`, or None where no kernel can read them."""
    return None


def unpack(packed: Packed) -> list[tuple[Direction, ...]]:
    """The weights that `pack` was given."""
    raise NotImplementedError


def run(packed: Packed, x: Any, hx: Any, lengths: Any, batch_first: bool, out: Tensor | None) -> Any:
    """What the module returns for this call, or None if the call has to take the way in Python."""
    return None


def run_cell(packed: Packed, x: Any, hx: Any) -> Any:
    """What an LSTMCell returns for this call, or None if the call has to take the way in Python."""
    return None


def step(packed: Packed, x: Any, state: Any, out: Tensor | None, batch_first: bool) -> Tensor | None:
    """The output of one chunk of a stream, in `out` if there is one; the state is written in place.

    None, and nothing is written, if the call has to take the way in Python.
    """
    return None


def step_cell(packed: Packed, x: Any, state: Any, out: Tensor | None) -> Tensor | None:
    """As `step`, of an LSTMCell: the output is h."""
    return None


def kernel_name(packed: Packed, steps: int, batch: int) -> str:
    """Which kernel runs so many steps of so many sequences, for `explain`."""
    raise NotImplementedError
