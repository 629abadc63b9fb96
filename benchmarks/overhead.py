"""The overhead of a call: microseconds of the smallest possible calls."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from torchlstm import LSTM, LSTMCell
from torchlstm.engines.shared.access import access_of
from torchlstm.parity.timing import Pairs, interleave

from .extras import Extra, Figures
from .measure import SHORTEST, Settings


def _timed(first: Callable[[], Any], second: Callable[[], Any], settings: Settings) -> Pairs:
    with torch.no_grad():
        return interleave(first, second, settings.device, settings.seconds, shortest=SHORTEST)


def _access(settings: Settings) -> Figures:
    """Time the check that all tensors of a call are plain: 13 of them, those of a layer with every weight."""
    module = LSTM(2, 3, bidirectional=True, proj_size=2)
    tensors = [torch.randn(3, 2), *torch.randn(2, 2, 2, 3), *module.parameters()]
    assert len(tensors) == 13
    pairs = _timed(lambda: None, lambda: access_of(chain(tensors)), settings)
    return {"ours us": 1e6 * (pairs.second - pairs.first)}


def _small(theirs: type[nn.Module], ours: type[nn.Module], *arguments: Any) -> Callable[[Settings], Figures]:
    """Time a call with one unit."""

    def measure(settings: Settings) -> Figures:
        their_module, our_module = theirs(1, 1).eval(), ours(1, 1).eval()
        pairs = _timed(lambda: their_module(*arguments), lambda: our_module(*arguments), settings)
        return {"ours us": 1e6 * pairs.second, "nn us": 1e6 * pairs.first, "nn/ours": pairs.ratio}

    return measure


_ONE = torch.zeros(1, 1)

EXTRAS = (
    Extra("overhead-access", "overhead", _access),
    Extra("overhead-lstm", "overhead", _small(nn.LSTM, LSTM, _ONE[None])),
    Extra("overhead-cell", "overhead", _small(nn.LSTMCell, LSTMCell, _ONE, (_ONE, _ONE))),
)
