"""The weights of a frozen module: packed if a kernel can read them, otherwise as they were rounded; immutable."""

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..engines.contract import Weights
from ..engines.cpu import frozen
from ..engines.cpu.frozen import Direction, Sizes
from ..engines.shared import torch_private
from ..engines.shared.rounding import Format, Rounded, as_float, check_format, rounded
from .plan import parameters_of, suffixes_of

# A matrix, or a bias.
Entry: TypeAlias = Rounded | Tensor
_MATRICES = ("weight_ih", "weight_hh", "weight_hr")
_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")

_keys = itertools.count(1)
# By number, so that compiled programs find the weights.
_stores: "weakref.WeakValueDictionary[int, Store]" = weakref.WeakValueDictionary()


def shapes_of(sizes: Sizes, cell: bool) -> dict[str, tuple[int, ...]]:
    """The parameters of an LSTM or of a cell by name, in the order of torch.nn, each with its shape."""
    layers = parameters_of(_suffixes(sizes, cell), sizes, sizes.bias, sizes.proj_size)
    return dict(named for layer in layers for direction in layer for named in direction if named is not None)


def is_matrix(name: str) -> bool:
    """Whether a parameter of this name is rounded."""
    return name.startswith(_MATRICES)


def _suffixes(sizes: Sizes, cell: bool) -> list[tuple[str, ...]]:
    return [("",)] if cell else suffixes_of(sizes)


@contextmanager
def apart() -> Iterator[None]:
    """Work on plain CPU tensors, outside of any mode, transform, trace, default device and inference mode.

    Without torch.no_grad(), which would be recorded in a program that is being exported: nothing here requires grad.
    """
    tracing = torch_private.get_tracing_state() if torch_private.is_tracing() else None
    # Not if it is None: inside an operator torch refuses to set even that.
    if tracing is not None:
        torch_private.set_tracing_state(None)
    try:
        with (
            torch.inference_mode(False),
            torch.device("cpu"),
            torch_private.clear_interpreter_stack(),
            torch_private.disable_modes(),
        ):
            yield
    finally:
        if tracing is not None:
            torch_private.set_tracing_state(tracing)


class Store:
    """The weights of one frozen module.

    format  of the matrices
    packed  the weights as a kernel reads them, or None
    number  of this store in this process; `key`, (1,) int64, holds it for compiled programs
    like    (0,), of the dtype that inputs must have
    cell    whether they are an LSTMCell's
    names   of the parameters, in the order of torch.nn

    A store is immutable: loading makes a new one, so copies of a module share it.  A pickle contains the weights as
    they were rounded, and loading packs them again.
    """

    def __init__(
        self,
        sizes: Sizes,
        format: Format,
        cell: bool,
        entries: Mapping[str, Entry],
        packed: frozen.Packed | None = None,
    ) -> None:
        """Take ownership of the rounded matrices and the biases.

        packed  the matrices, which entries then does not have; None: they are packed here
        """
        self.sizes, self.format, self.cell = sizes, format, cell
        self.names = tuple(shapes_of(sizes, cell))
        dtype = packed.dtype if packed is not None else torch.float32
        if packed is None and format is None:
            first: Any = entries[self.names[0]]
            dtype = first.values.dtype
        with apart():
            self.like = torch.empty(0, dtype=dtype)
            # 16-bit weights without a format would look like a 16-bit format, so they are not packed.
            if packed is None and (format is not None or dtype in (torch.float32, torch.float64)):
                packed = frozen.pack(sizes, _directions(sizes, cell, entries))
        self.packed = packed
        # Packed weights contain only the sum of both biases, so the biases are kept.
        kept = self.packed is None
        self._kept = {name: entry for name, entry in entries.items() if kept or not is_matrix(name)}
        self.number = next(_keys)
        self.key = torch.tensor([self.number], device="cpu")
        _stores[self.number] = self
        self._constants: dict[tuple[int, int, int], weakref.ref[Tensor]] = {}

    def __deepcopy__(self, _: object) -> "Store":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.sizes, self.format, self.cell, self.entries())

    def reduce_shared(self) -> tuple[Any, ...]:
        """As `__reduce__`, for another process: the memory is shared, as that of any tensor."""
        if self.packed is None:
            return self.__reduce__()
        layout = {name: value for name, value in vars(self.packed).items() if name != "handle"}
        return _attach, (self.sizes, self.format, self.cell, self._kept, layout)

    def entries(self) -> dict[str, Entry]:
        """Matrices and biases by name, in the order of torch.nn; those that are packed are unpacked."""
        if self.packed is None:
            return dict(self._kept)
        entries: dict[str, Entry] = {}
        with apart():
            layers = zip(_suffixes(self.sizes, self.cell), frozen.unpack(self.packed), strict=True)
            for suffixes, directions in layers:
                for suffix, (w_ih, w_hh, _, w_hr) in zip(suffixes, directions, strict=True):
                    found = {"weight_ih": w_ih, "weight_hh": w_hh, "weight_hr": w_hr}
                    for kind in _KINDS:
                        entry = found.get(kind, self._kept.get(kind + suffix))
                        if entry is not None:
                            entries[kind + suffix] = self._own(entry)
        return entries

    def _own(self, entry: Entry) -> Entry:
        """An entry that is not a view into larger memory, all of which would be saved or exported with it."""
        if not isinstance(entry, Rounded):
            return entry

        def own(part: Tensor) -> Tensor:
            part = part.contiguous()
            return part.clone() if part.untyped_storage().nbytes() != part.nbytes else part

        return Rounded(own(entry.values), None if entry.scale is None else own(entry.scale))

    def layers(self, dtype: torch.dtype) -> list[tuple[Weights, ...]]:
        """New float tensors of a dtype: L of D of `Weights`."""
        with apart():
            entries = {name: self._as_weight(entry, dtype) for name, entry in self.entries().items()}
        return [
            tuple(tuple(entries.get(kind + suffix) for kind in _KINDS) for suffix in suffixes)  # type: ignore[misc]
            for suffixes in _suffixes(self.sizes, self.cell)
        ]

    def constants(self) -> dict[tuple[int, int, int], Tensor]:
        """The weights as floats by (layer, direction, kind); the same tensors as long as anyone holds them."""
        made = {place: tensor for place, ref in self._constants.items() if (tensor := ref()) is not None}
        if not made or len(made) < len(self._constants):
            for k, layer in enumerate(self.layers(self.like.dtype)):
                for d, weights in enumerate(layer):
                    for kind, weight in enumerate(weights):
                        if weight is not None:
                            made.setdefault((k, d, kind), weight)
            self._constants = {place: weakref.ref(tensor) for place, tensor in made.items()}
        return made

    def floats(self) -> dict[str, Tensor]:
        """New float tensors by name: the parameters of a float module with these weights."""
        with apart():
            return {name: self._as_weight(entry, self.like.dtype).clone() for name, entry in self.entries().items()}

    def _as_weight(self, entry: Entry, dtype: torch.dtype) -> Tensor:
        if isinstance(entry, Rounded):
            entry = entry.values if self.format is None else as_float(entry)
        return entry.to(dtype)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply to all tensors what `nn.Module.to` and the like apply; the caller has tried it on another tensor."""
        if self.packed is not None:
            self.packed.data = fn(self.packed.data)
        self._kept = {
            name: Rounded(*(None if each is None else fn(each) for each in entry))  # type: ignore[arg-type]
            if isinstance(entry, Rounded)
            else fn(entry)
            for name, entry in self._kept.items()
        }


ForkingPickler.register(Store, Store.reduce_shared)


def _attach(sizes: Sizes, format: Format, cell: bool, kept: dict[str, Entry], layout: dict[str, Any]) -> Store:
    """A store on weights that another process has packed; packed again if for another instruction set."""
    own = frozen.Packed(sizes, format, layout["dtype"])
    if own.isa == layout["isa"]:
        own.data = layout["data"]
        return Store(sizes, format, cell, kept, own)
    vars(own).update(layout)
    return Store(sizes, format, cell, Store(sizes, format, cell, kept, own).entries())


def _directions(sizes: Sizes, cell: bool, entries: Mapping[str, Any]) -> list[tuple[Direction, ...]]:
    """Weights by name, in the form that `frozen.pack` takes."""

    def direction(suffix: str) -> Direction:
        w_ih, w_hh, b_ih, b_hh, w_hr = (entries.get(kind + suffix) for kind in _KINDS)
        return w_ih, w_hh, None if b_ih is None else b_ih + b_hh, w_hr  # type: ignore[return-value]

    return [tuple(map(direction, suffixes)) for suffixes in _suffixes(sizes, cell)]


def store_of(number: int) -> Store:
    """The store of this number; raises RuntimeError if it no longer exists."""
    store = _stores.get(number)
    if store is None:
        raise RuntimeError("a frozen LSTM of this compiled program is gone, or lives in another process: compile anew")
    return store


def store_of_module(module: Any, format: Format, where: str = "") -> Store:
    """Round and pack the parameters of an LSTM or LSTMCell, which itself does not change.

    where   a prefix for parameter names in errors
    Raises ValueError for an unknown format, and for a weight that the format cannot represent or does not round.
    """
    check_format(format)
    sizes, cell = sizes_of(module)
    entries: dict[str, Entry] = {}
    with apart():
        for name in shapes_of(sizes, cell):
            weight = getattr(module, name).detach()
            if not is_matrix(name):
                entries[name] = weight.clone()
            elif format is None:
                entries[name] = Rounded(weight.clone())
            elif weight.dtype != torch.float32:
                raise ValueError(f"{where}{name}: Expected torch.float32 to be rounded to {format}, got {weight.dtype}")
            else:
                entries[name] = rounded(weight, format, where + name)
        return Store(sizes, format, cell, entries)


def sizes_of(module: Any) -> tuple[Sizes, bool]:
    """The sizes and options of an LSTM or LSTMCell, and whether it is a cell."""
    if hasattr(module, "num_layers"):
        options = (module.num_layers, module.bidirectional, module.proj_size, module.bias)
        return Sizes(module.input_size, module.hidden_size, *options), False
    return Sizes(module.input_size, module.hidden_size, bias=module.bias_ih is not None), True
