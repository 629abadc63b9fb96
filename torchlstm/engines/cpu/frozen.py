"""Packed weights of a frozen LSTM on the CPU, and the kernel calls that read them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from ..shared.rounding import Format, Rounded
from . import engine

# The kernel's numbers of the formats (kernel.h), and by these numbers how many weights share the space of a float.
_NUMBERS: dict[Format, int] = {None: 1, torch.bfloat16: 2, torch.float16: 3, torch.int8: 4}
_TERMS = (0, 1, 2, 2, 4)
# With more terms a sum of integers could overflow.
_MOST_TERMS = 1 << 15
_MOST_LAYERS = 16


class Sizes(NamedTuple):
    """Sizes and options of a frozen LSTM, named as nn.LSTM's."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: bool = True


# One direction of one layer: w_ih (4H, I), w_hh (4H, R), b_ih + b_hh (4H,) or None, w_hr (R, H) or None.
Direction = tuple[Rounded, Rounded, Tensor | None, Rounded | None]


class Packed:
    """The weights of a module as the kernel reads them.

    sizes   of the module
    format  of the weights; `dtype` is that in which the module computes
    isa     the instruction set for which they are packed
    data    (bytes,) uint8, all packed weights; its address may change
    """

    def __init__(self, sizes: Sizes, format: Format, dtype: torch.dtype) -> None:
        self.sizes, self.format, self.dtype = sizes, format, dtype
        number = engine.ISAS[engine._isa]
        directions = 1 + sizes.bidirectional
        self.handle, isa, self.lanes, self.beside, self.bytes = engine._kernel.frozen(
            number,
            _NUMBERS[format],
            dtype.itemsize,
            sizes.input_size,
            sizes.hidden_size,
            sizes.proj_size,
            sizes.num_layers,
            directions,
        )
        self.isa = next(name for name, number in engine.ISAS.items() if number == isa)
        self.data = engine._empty(torch.empty(0, dtype=torch.uint8), sum(self.bytes) * directions).zero_()


# The axes of `_Layout._axes` in the order of the memory.
_ORDER = (1, 3, 0, 4, 2, 5)


class _Layout(NamedTuple):
    """The memory layout of weights (columns, K): blocks of `lanes` columns, and slots of `terms` terms.

    gates   4 for w_ih and w_hh, 1 for a projection
    beside  how many terms of a slot are adjacent in memory
    """

    columns: int
    K: int
    gates: int
    lanes: int
    terms: int
    beside: int

    @property
    def blocks(self) -> int:
        """The number of blocks of each gate's columns."""
        return -(-self.columns // self.lanes)

    @property
    def slots(self) -> int:
        return -(-self.K // self.terms)

    @property
    def numel(self) -> int:
        return self.gates * self.blocks * self.lanes * self.slots * self.terms

    @property
    def _axes(self) -> tuple[int, ...]:
        """The lengths of the axes: gate, block, lane, slot, group of terms, term of a group."""
        return self.gates, self.blocks, self.lanes, self.slots, self.terms // self.beside, self.beside

    def pack(self, weight: Tensor) -> Tensor:
        """A weight (gates * columns, K) in the order of the memory."""
        padded = weight.new_zeros(self.gates, self.blocks * self.lanes, self.slots * self.terms)
        padded[:, : self.columns, : self.K] = weight.view(self.gates, self.columns, self.K)
        return padded.view(self._axes).permute(_ORDER).contiguous()

    def unpack(self, memory: Tensor) -> Tensor:
        """The inverse of `pack`."""
        lies = memory.view([self._axes[axis] for axis in _ORDER]).permute([_ORDER.index(axis) for axis in range(6)])
        padded = lies.reshape(self.gates, self.blocks * self.lanes, -1)
        return padded[:, : self.columns, : self.K].reshape(self.gates * self.columns, self.K)

    def pack_columns(self, values: Tensor) -> Tensor:
        """A value for each column (gates * columns,), in the order of the columns."""
        padded = values.new_zeros(self.gates, self.blocks * self.lanes)
        padded[:, : self.columns] = values.view(self.gates, self.columns)
        return padded.view(self.gates, self.blocks, self.lanes).transpose(0, 1).contiguous()

    def unpack_columns(self, memory: Tensor) -> Tensor:
        lies = memory.view(self.blocks, self.gates, self.lanes).transpose(0, 1)
        return lies.reshape(self.gates, -1)[:, : self.columns].flatten()


class _Parts(NamedTuple):
    """The weights of one direction, as views of the data."""

    layouts: tuple[_Layout, ...]  # w_ih, w_hh, perhaps w_hr
    weights: tuple[Tensor, ...]
    bias: Tensor
    scales: tuple[Tensor, ...]  # int8 only
    offsets: tuple[Tensor, ...]


def _parts(packed: Packed) -> list[tuple[_Parts, ...]]:
    """The parts of each layer and direction."""
    sizes, directions, terms = packed.sizes, 1 + packed.sizes.bidirectional, _TERMS[_NUMBERS[packed.format]]
    hidden, output = sizes.hidden_size, sizes.proj_size or sizes.hidden_size
    kind, start, layers = packed.format or packed.dtype, 0, []
    for layer in range(sizes.num_layers):
        shapes = [(hidden, directions * output if layer else sizes.input_size, 4), (hidden, output, 4)]
        if sizes.proj_size:
            shapes.append((output, hidden, 1))
        layouts = tuple(_Layout(*shape, packed.lanes, terms, packed.beside) for shape in shapes)
        columns = [layout.gates * layout.blocks * layout.lanes for layout in layouts]
        several = []
        for _ in range(directions):
            data, at = packed.data[start : start + packed.bytes[layer]], 0

            def take(count: int, dtype: torch.dtype, data: Tensor = data) -> Tensor:
                nonlocal at
                at += count * dtype.itemsize
                return data[at - count * dtype.itemsize : at].view(dtype)

            weights = tuple(take(layout.numel, kind) for layout in layouts)
            bias = take(columns[0], packed.dtype)
            scales, offsets = [], []
            for count in columns if packed.format is torch.int8 else ():
                scales.append(take(count, torch.float32))
                offsets.append(take(count, torch.int32))
            several.append(_Parts(layouts, weights, bias, tuple(scales), tuple(offsets)))
            start += packed.bytes[layer]
        layers.append(tuple(several))
    return layers


def pack(sizes: Sizes, weights: list[tuple[Direction, ...]]) -> Packed | None:
    """Pack rounded weights, L of D of `Direction`; None if no kernel can read them."""
    first = weights[0][0][0]
    format = (
        None
        if first.values.is_floating_point() and first.values.dtype in (torch.float32, torch.float64)
        else first.values.dtype
    )
    dtype = first.values.dtype if format is None else torch.float32
    terms = max(sizes.input_size, sizes.hidden_size, 2 * (sizes.proj_size or sizes.hidden_size))
    if engine.ENGINE.unavailable() is not None or format not in _NUMBERS or sizes.num_layers > _MOST_LAYERS:
        return None
    if first.values.device.type != "cpu" or (format is torch.int8 and terms > _MOST_TERMS):
        return None
    packed = Packed(sizes, format, dtype)
    for layer, parts in zip(weights, _parts(packed), strict=True):
        for direction, part in zip(layer, parts, strict=True):
            w_ih, w_hh, bias, w_hr = direction
            matrices = [weight for weight in (w_ih, w_hh, w_hr) if weight is not None]
            if bias is not None:
                part.bias.copy_(part.layouts[0].pack_columns(bias.detach()).flatten())
            for i, (weight, layout) in enumerate(zip(matrices, part.layouts, strict=True)):
                part.weights[i].copy_(layout.pack(weight.values.detach()).flatten())
                if weight.scale is not None:
                    part.scales[i].copy_(layout.pack_columns(weight.scale).flatten())
                    sums = weight.values.sum(1, dtype=torch.int32) * 128
                    part.offsets[i].copy_(layout.pack_columns(sums).flatten())
    return packed


def unpack(packed: Packed) -> list[tuple[Direction, ...]]:
    """The weights that `pack` was given."""
    layers = []
    for parts in _parts(packed):
        directions = []
        for part in parts:
            scales: tuple[Any, ...] = part.scales or (None,) * len(part.weights)
            found = [
                Rounded(layout.unpack(memory), None if scale is None else layout.unpack_columns(scale))
                for layout, memory, scale in zip(part.layouts, part.weights, scales, strict=True)
            ]
            bias = part.layouts[0].unpack_columns(part.bias) if packed.sizes.bias else None
            directions.append((found[0], found[1], bias, found[2] if len(found) == 3 else None))
        layers.append(tuple(directions))
    return layers


def _is_pair(hx: Any) -> bool:
    """Whether these are two states, or None for zeros."""
    return hx is None or (type(hx) in (tuple, list) and len(hx) == 2)


def run(packed: Packed, x: Any, hx: Any, lengths: Any, batch_first: bool, out: Tensor | None) -> Any:
    """What the module returns for this call, or None if the call must take the path in Python.

    x        (T, B, I), (B, T, I), (T, I), or a PackedSequence; of the latter only with sequences in order
    hx       (h_0, c_0), or None for zeros
    lengths  must be None
    out      receives the output, or None
    """
    if is_compiling() or lengths is not None or not _is_pair(hx):
        return None
    h, c = hx or (None, None)
    if type(x) is not PackedSequence:
        return engine._kernel.frozen_lstm(packed.handle, packed.data, x, h, c, None, batch_first, out)
    if x.sorted_indices is not None:
        return None
    results = engine._kernel.frozen_lstm(packed.handle, packed.data, x.data, h, c, x.batch_sizes, False, out)
    return None if results is None else (x._replace(data=results[0]), results[1])


def run_cell(packed: Packed, x: Any, hx: Any) -> Any:
    """What a cell returns for x (B, I) or (I,), which is (h, c); None if the call must take the path in Python."""
    if is_compiling() or not _is_pair(hx):
        return None
    h, c = hx or (None, None)
    return engine._kernel.frozen_cell(packed.handle, packed.data, x, h, c)


def step(packed: Packed, x: Any, state: tuple[Tensor, Tensor], out: Tensor | None, batch_first: bool = False) -> Any:
    """Run one chunk of a stream, with the state updated in place; returns the output, in `out` if given, or None.

    The caller has asked whether the call is being compiled; each question takes 0.1 us of 4.
    """
    h, c = state
    return engine._kernel.frozen_step(packed.handle, packed.data, x, h, c, None, batch_first, out)


def step_cell(packed: Packed, x: Any, state: tuple[Tensor, Tensor]) -> bool:
    """Run one step of a cell, with the state updated in place; False if the kernel cannot."""
    return engine._kernel.frozen_step(packed.handle, packed.data, x, *state) is not None


_NAMES: dict[Format, str] = {
    None: "weights packed once",
    torch.bfloat16: "weights of bfloat16, widened to float32 in registers",
    torch.float16: "weights of float16, widened to float32 in registers",
    torch.int8: "weights of int8 by activations of 16 bits, exact products",
}


def kernel_name(packed: Packed, steps: int, batch: int) -> str:
    """The kernel for this number of steps and sequences in words, for `explain`."""
    return _NAMES[packed.format]
