"""The demo's model frozen in each format: bits per character, size and speed, compared with the float model."""

import copy
import math
import statistics
import time

import torch
from torch import Tensor, nn

from ..engines.shared.rounding import FORMATS
from ..freeze import freeze
from ..parity.report import table
from ..stream import Stream

CHARACTERS = 2000
# So many of these characters are timed, one by one, in turns with the other models.
_TIMED = 200


@torch.no_grad()
def rows(model: nn.Module, text: Tensor) -> list[str]:
    """Lines of a table: a character model before freezing, and frozen in each format.

    model  as `demo.CharModel`; it is copied
    text   (CHARACTERS + 1,) of character indices
    """
    model, text = copy.deepcopy(model).cpu().eval(), text.cpu()
    models = {"not frozen": model}
    for weights in FORMATS:
        models[f"weights={weights}"] = freeze(copy.deepcopy(model), weights)
    seconds = _seconds(list(models.values()), text)
    lines = [
        [
            name,
            f"{_bits(each, text):.4f}",
            f"{_bytes(each.get_submodule('lstm')) / 1000:,.0f} kB",
            f"{1e6 * time:.1f} us",
        ]
        for (name, each), time in zip(models.items(), seconds, strict=True)
    ]
    return table(["", "bits per character", "LSTM", "a step of the LSTM"], lines)


def _bits(model: nn.Module, text: Tensor) -> float:
    """The mean loss over a text in bits per character."""
    logits, _ = model(text[:-1, None])
    return nn.functional.cross_entropy(logits.flatten(0, 1), text[1:]).item() / math.log(2)


def _bytes(lstm: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in lstm.state_dict().values())


def _seconds(models: list[nn.Module], text: Tensor) -> list[float]:
    """The median time of a step of each model's LSTM, in a stream of one sequence."""
    streams = [Stream(model.get_submodule("lstm")) for model in models]
    x = models[0].get_submodule("embedding")(text[:_TIMED, None, None])
    times: list[list[float]] = [[] for _ in models]
    for step in x:
        for stream, each in zip(streams, times, strict=True):
            start = time.perf_counter()
            stream(step)
            each.append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]
