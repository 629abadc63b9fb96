"""Finds the LSTMs in a user's file, for `torchlstm qualify --for MODEL.pt`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import LSTM, LSTMCell

# Keys of a state_dict: ..weight_hh_l0 of layers, ..weight_hh of cells.
_RECURRENT = re.compile(r"(?:.*\.)?weight_hh(?:_l(\d+)(_reverse)?)?")


class Unreadable(Exception):
    """No LSTM can be found in a file; the text says why."""


class Found(NamedTuple):
    """A layer: all that determines its class except B and the form of the rows."""

    hidden: int
    dtype: str
    directions: int
    projected: bool
    checkpoint: bool = False


def lstms_of(path: str) -> set[Found]:
    """The LSTMs in a file written by `torch.save`: a model of torch.nn's and torchlstm's classes, or a state_dict.

    No code from the file is run.  Raises Unreadable.
    """
    try:
        with torch.serialization.safe_globals(_classes()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a pickle may raise anything
        blocked = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if blocked:
            why = f"it has a {blocked[1]}, which cannot be loaded without running its code"
            raise Unreadable(f"{path}: {why}: save model.state_dict(), or name sizes by --hidden") from None
        text = str(error).strip().split("\n")[0]
        raise Unreadable(f"{path} is not what torch.save writes: {text[:150]}") from None
    found = set(_of_modules(content)) if isinstance(content, nn.Module) else set(_of_tensors(content))
    if not found:
        raise Unreadable(f"{path} has no LSTM in it: neither modules nor names such as weight_hh_l0 of its shapes")
    return found


def _classes() -> list[Any]:
    """The classes that may be loaded: torch.nn's, which run no code when they are loaded, and ours."""
    theirs = [value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, nn.Module)]
    return [*theirs, LSTM, LSTMCell, set]


def _of_modules(model: nn.Module) -> Iterator[Found]:
    for module in model.modules():
        if isinstance(module, (nn.LSTM, LSTM)):
            dtype = _dtype(module.weight_hh_l0)
            every = getattr(module, "checkpoint_every", None) is not None
            yield Found(module.hidden_size, dtype, 2 if module.bidirectional else 1, module.proj_size > 0, every)
        elif isinstance(module, (nn.LSTMCell, LSTMCell)):
            yield Found(module.hidden_size, _dtype(module.weight_hh), 1, False)


def _of_tensors(content: Any) -> Iterator[Found]:
    """Find LSTMs in a state_dict, also in one inside a dictionary, as in checkpoints."""
    if not isinstance(content, Mapping):
        return
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _of_tensors(value)
        elif isinstance(value, Tensor) and isinstance(name, str) and (match := _RECURRENT.fullmatch(name)):
            if match[2] or value.dim() != 2:
                continue
            projected = name.replace("weight_hh", "weight_hr") in content
            hidden = value.shape[0] // 4
            # Other recurrent modules have the same names but other shapes.
            if value.shape[0] == 4 * hidden and (projected or value.shape[1] == hidden):
                yield Found(hidden, _dtype(value), 2 if f"{name}_reverse" in content else 1, projected)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")
