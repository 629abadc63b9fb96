"""Converts the weights of an LSTM to and from the layouts of Keras, Flax, ONNX and haste.

`to_X` takes a torchlstm.LSTM or torch.nn.LSTM and returns one entry for each layer, in new tensors. `from_X` takes such
entries, of tensors or of anything with `__array__`, and returns a torchlstm.LSTM, whose state_dict also fits
torch.nn.LSTM.

The other layouts have one bias (ONNX has two): `to_X` adds the two of an LSTM, and `from_X` sets bias_ih to it and
bias_hh to zero. None of these layouts has projections.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .lstm import LSTM

_OURS = "ifgo"
_KERAS, _HASTE, _ONNX = "ifgo", "igfo", "iofg"


class _Direction(NamedTuple):
    """One direction of one layer, as an LSTM has it: w_ih (4H, I), w_hh (4H, H), biases (4H,) or None."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    def bias(self) -> Tensor | None:
        """Both biases in one."""
        return None if self.b_ih is None or self.b_hh is None else self.b_ih + self.b_hh


def to_keras(lstm: nn.RNNBase) -> list[list[Tensor]]:
    """Return the weights as keras.layers.LSTM's `set_weights` takes them, or those of a Bidirectional around it.

    Keras returns the states as h, c. `set_weights` needs arrays: `[weight.numpy() for weight in layer]`.

    Args:
        lstm: A torchlstm.LSTM or torch.nn.LSTM.

    Returns:
        For every layer a list of kernel (I, 4H), recurrent_kernel (H, 4H) and, with biases, bias (4H,), gates in the
        order i, f, c, o; then the same for the reverse direction.

    Raises:
        TypeError: The module is not an LSTM.
        ValueError: The LSTM has projections.

    Examples:
        >>> import torchlstm
        >>> [tuple(weight.shape) for weight in torchlstm.convert.to_keras(torchlstm.LSTM(8, 16))[0]]
        [(8, 64), (16, 64), (64,)]
    """
    return [[tensor for way in layer for tensor in _to_kernels(way, _KERAS).values()] for layer in _read(lstm)]


def from_keras(layers: Sequence[Sequence[Any]], **options: Any) -> LSTM:
    """Make an LSTM from the weights of Keras layers, LSTM or Bidirectional.

    Args:
        layers: For every layer the list that its `get_weights` returned.
        **options: Of the new LSTM: batch_first (True is Keras' layout), dropout, device, dtype.

    Returns:
        A torchlstm.LSTM.

    Raises:
        ValueError: The number of arrays or a shape does not fit.

    Examples:
        >>> import torchlstm
        >>> weights = torchlstm.convert.to_keras(torchlstm.LSTM(8, 16))
        >>> torchlstm.convert.from_keras(weights, batch_first=True)
        LSTM(8, 16, batch_first=True)
    """
    read = []
    for k, arrays in enumerate(layers):
        if len(arrays) not in (2, 3, 4, 6):
            raise ValueError(f"layer {k}: expected 2 or 3 arrays for each of one or two directions, got {len(arrays)}")
        each = 3 if len(arrays) % 3 == 0 else 2
        ways = [arrays[start : start + each] for start in range(0, len(arrays), each)]
        names = ("kernel", "recurrent_kernel", "bias")
        read.append([_from_kernels(dict(zip(names, way, strict=False)), _KERAS) for way in ways])
    return _write(read, options)


def to_haste(lstm: nn.RNNBase) -> list[dict[str, Tensor]]:
    """Return the weights as parameters of haste_pytorch.LSTMs, which have one direction and always a bias.

    Args:
        lstm: A torchlstm.LSTM or torch.nn.LSTM with one direction.

    Returns:
        For every layer a dictionary of kernel (I, 4H), recurrent_kernel (H, 4H), bias (4H,), gates in the order i, g,
        f, o.

    Raises:
        TypeError: The module is not an LSTM.
        ValueError: The LSTM is bidirectional or has projections.

    Examples:
        >>> import torchlstm
        >>> {name: tuple(w.shape) for name, w in torchlstm.convert.to_haste(torchlstm.LSTM(8, 16))[0].items()}
        {'kernel': (8, 64), 'recurrent_kernel': (16, 64), 'bias': (64,)}
    """
    if lstm.bidirectional:
        raise ValueError("a haste LSTM has one direction, and this LSTM is bidirectional")
    return [_to_kernels(layer[0], _HASTE, always_bias=True) for layer in _read(lstm)]


def from_haste(layers: Sequence[Mapping[str, Any]], **options: Any) -> LSTM:
    """Make an LSTM from the state_dicts of haste_pytorch.LSTMs.

    Args:
        layers: The state_dict of every layer.
        **options: As `from_keras` takes them.

    Returns:
        A torchlstm.LSTM.

    Raises:
        ValueError: A shape does not fit.

    Examples:
        >>> import torchlstm
        >>> torchlstm.convert.from_haste(torchlstm.convert.to_haste(torchlstm.LSTM(8, 16)))
        LSTM(8, 16)
    """
    return _write([[_from_kernels(layer, _HASTE)] for layer in layers], options)


def to_flax(lstm: nn.RNNBase) -> list[list[dict[str, dict[str, Tensor]]]]:
    """Return the weights as parameters of flax.linen's OptimizedLSTMCell or LSTMCell.

    The carry of Flax is (c, h).

    Args:
        lstm: A torchlstm.LSTM or torch.nn.LSTM.

    Returns:
        For every layer and direction a dictionary of ii, if, ig and io, each with a kernel (I, H), and of hi, hf, hg
        and ho, each with a kernel (H, H) and a bias (H,): dense layers of the input and of h, for each of the four
        gates.

    Raises:
        TypeError: The module is not an LSTM.
        ValueError: The LSTM has projections.

    Examples:
        >>> import torchlstm
        >>> list(torchlstm.convert.to_flax(torchlstm.LSTM(8, 16))[0][0])
        ['ii', 'hi', 'if', 'hf', 'ig', 'hg', 'io', 'ho']
    """
    result = []
    for layer in _read(lstm):
        ways = []
        for way in layer:
            bias = way.bias()
            bias = torch.zeros_like(way.w_ih[:, 0]) if bias is None else bias
            cell: dict[str, dict[str, Tensor]] = {}
            for gate, w, r, b in zip(_OURS, way.w_ih.chunk(4), way.w_hh.chunk(4), bias.chunk(4), strict=True):
                cell["i" + gate] = {"kernel": _own(w.t())}
                cell["h" + gate] = {"kernel": _own(r.t()), "bias": _own(b)}
            ways.append(cell)
        result.append(ways)
    return result


def from_flax(layers: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> LSTM:
    """Make an LSTM from the parameters of Flax cells.

    Args:
        layers: For every layer a list with the parameters of each direction's cell.
        **options: As `from_keras` takes them.

    Returns:
        A torchlstm.LSTM.

    Raises:
        ValueError: A gate is missing, or a shape does not fit.

    Examples:
        >>> import torchlstm
        >>> torchlstm.convert.from_flax(torchlstm.convert.to_flax(torchlstm.LSTM(8, 16)))
        LSTM(8, 16)
    """
    read = []
    for layer in layers:
        ways = []
        for cell in layer:
            if missing := [part + gate for part in "ih" for gate in _OURS if part + gate not in cell]:
                raise ValueError(
                    f"not the parameters of a Flax LSTM cell: {', '.join(missing)} missing of {list(cell)}"
                )
            w_ih, w_hh = (torch.cat([_tensor(cell[part + gate]["kernel"]).t() for gate in _OURS]) for part in "ih")
            bias = torch.cat([_tensor(cell["h" + gate]["bias"]) for gate in _OURS])
            ways.append(_Direction(w_ih, w_hh, bias, torch.zeros_like(bias)))
        read.append(ways)
    return _write(read, options)


def to_onnx(lstm: nn.RNNBase) -> list[dict[str, Tensor]]:
    """Return the weights as inputs of ONNX LSTM nodes.

    Args:
        lstm: A torchlstm.LSTM or torch.nn.LSTM.

    Returns:
        For every layer a dictionary of W (D, 4H, I), R (D, 4H, H) and, with biases, B (D, 8H), the input biases and
        then the recurrent ones; gates in the order i, o, f, c.

    Raises:
        TypeError: The module is not an LSTM.
        ValueError: The LSTM has projections.

    Examples:
        >>> import torchlstm
        >>> {name: tuple(w.shape) for name, w in torchlstm.convert.to_onnx(torchlstm.LSTM(8, 16))[0].items()}
        {'W': (1, 64, 8), 'R': (1, 64, 16), 'B': (1, 128)}
    """
    result = []
    for layer in _read(lstm):
        node = {
            "W": torch.stack([_ordered(way.w_ih, _ONNX) for way in layer]),
            "R": torch.stack([_ordered(way.w_hh, _ONNX) for way in layer]),
        }
        biases = [
            torch.cat([_ordered(way.b_ih, _ONNX), _ordered(way.b_hh, _ONNX)])
            for way in layer
            if way.b_ih is not None and way.b_hh is not None
        ]
        if biases:
            node["B"] = torch.stack(biases)
        result.append(node)
    return result


def from_onnx(layers: Sequence[Mapping[str, Any]], **options: Any) -> LSTM:
    """Make an LSTM from the inputs of ONNX LSTM nodes.

    Args:
        layers: For every node its inputs W, R and, if there is one, B.
        **options: As `from_keras` takes them.

    Returns:
        A torchlstm.LSTM.

    Raises:
        ValueError: A shape does not fit.

    Examples:
        >>> import torchlstm
        >>> torchlstm.convert.from_onnx(torchlstm.convert.to_onnx(torchlstm.LSTM(8, 16, 2)))
        LSTM(8, 16, num_layers=2)
    """
    read = []
    for layer in layers:
        w, r = _tensor(layer["W"]), _tensor(layer["R"])
        b = _tensor(layer["B"]) if "B" in layer else None
        ways = []
        for d in range(w.shape[0]):
            halves = (None, None) if b is None else [_restored(half, _ONNX) for half in b[d].chunk(2)]
            ways.append(_Direction(_restored(w[d], _ONNX), _restored(r[d], _ONNX), *halves))
        read.append(ways)
    return _write(read, options)


def _read(lstm: nn.RNNBase) -> list[list[_Direction]]:
    """The weights of an LSTM as they are now, by layer and direction."""
    if not isinstance(lstm, nn.RNNBase) or lstm.mode != "LSTM":
        raise TypeError(f"expected an LSTM, torchlstm's or torch.nn's, got {type(lstm).__name__}")
    if lstm.proj_size:
        raise ValueError(f"this LSTM has proj_size={lstm.proj_size}, and the layout has no projections")
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [
        [
            _Direction(*(_detached(getattr(lstm, f"{name}_l{k}{suffix}", None)) for name in names))  # type: ignore[arg-type]
            for suffix in ("", "_reverse")[: 1 + lstm.bidirectional]
        ]
        for k in range(lstm.num_layers)
    ]


def _write(layers: list[list[_Direction]], options: dict[str, Any]) -> LSTM:
    """An LSTM with these weights."""
    if not layers:
        raise ValueError("expected at least one layer, got none")
    first = layers[0][0]
    hidden, directions, bias = first.w_hh.shape[1], len(layers[0]), first.b_ih is not None
    options = {"dtype": first.w_ih.dtype} | options
    # The initial values are overwritten, so the caller's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        lstm = LSTM(
            first.w_ih.shape[1], hidden, num_layers=len(layers), bias=bias, bidirectional=directions == 2, **options
        )
    with torch.no_grad():
        for k, layer in enumerate(layers):
            if len(layer) != directions:
                raise ValueError(f"layer {k} has {len(layer)} directions, layer 0 has {directions}")
            for way, suffix in zip(layer, ("", "_reverse"), strict=False):
                for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), way, strict=True):
                    parameter = getattr(lstm, f"{name}_l{k}{suffix}", None)
                    if (value is None) != (parameter is None):
                        raise ValueError(f"layer {k} {'lacks' if value is None else 'has'} a bias, unlike layer 0")
                    if value is None or parameter is None:
                        continue
                    if value.shape != parameter.shape:
                        expected, got = tuple(parameter.shape), tuple(value.shape)
                        raise ValueError(f"layer {k}: expected {name}{suffix} of shape {expected}, got {got}")
                    parameter.copy_(value)
    return lstm


def _to_kernels(way: _Direction, order: str, always_bias: bool = False) -> dict[str, Tensor]:
    """Return kernel (I, 4H), recurrent_kernel (H, 4H) and, if there is one, bias (4H,), with gates in some order."""
    bias = way.bias()
    kernels = {
        "kernel": _own(_ordered(way.w_ih, order).t()),
        "recurrent_kernel": _own(_ordered(way.w_hh, order).t()),
    }
    if bias is not None:
        kernels["bias"] = _ordered(bias, order)
    elif always_bias:
        kernels["bias"] = torch.zeros_like(way.w_ih[:, 0])
    return kernels


def _from_kernels(kernels: Mapping[str, Any], order: str) -> _Direction:
    """The inverse of `_to_kernels`."""
    w_ih, w_hh = (_restored(_tensor(kernels[name]).t(), order) for name in ("kernel", "recurrent_kernel"))
    if "bias" not in kernels:
        return _Direction(w_ih, w_hh, None, None)
    bias = _restored(_tensor(kernels["bias"]), order)
    return _Direction(w_ih, w_hh, bias, torch.zeros_like(bias))


def _ordered(tensor: Tensor, order: str) -> Tensor:
    """Gates i, f, g, o (4H, ..) in another order."""
    return torch.cat([tensor.chunk(4)[_OURS.index(gate)] for gate in order])


def _restored(tensor: Tensor, order: str) -> Tensor:
    """The inverse of `_ordered`."""
    if tensor.shape[0] % 4:
        raise ValueError(f"expected four gates of the same size, got {tensor.shape[0]} rows of gates")
    return torch.cat([tensor.chunk(4)[order.index(gate)] for gate in _OURS])


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value.__array__())


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()


def _own(tensor: Tensor) -> Tensor:
    """Make a contiguous copy, so that writing into it does not change the LSTM."""
    return tensor.clone(memory_format=torch.contiguous_format)
