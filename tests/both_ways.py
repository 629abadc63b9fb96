"""Calls in C and in Python: which way one has taken, and whether both give the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from torchlstm.call import native


def tensors_of(results: Any) -> list[Tensor]:
    """All tensors of results, of the rows of a PackedSequence too."""
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, PackedSequence):
        return [results.data]
    return [tensor for each in results for tensor in tensors_of(each)]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each call within was one in C."""
    taken: list[bool] = []
    kernel = native._kernel

    class Watched:
        @staticmethod
        def lstm(*arguments: Any) -> Any:
            taken.append((result := kernel.lstm(*arguments)) is not None)
            return result

        @staticmethod
        def cell(*arguments: Any) -> Any:
            taken.append((result := kernel.cell(*arguments)) is not None)
            return result

    with monkeypatch.context() as patch:
        patch.setattr(native, "_kernel", Watched)
        yield taken


def both_ways(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The results of a call in C and of the same in Python."""
    with watched(monkeypatch) as taken:
        in_c = call()
    assert taken == [True]
    with monkeypatch.context() as patch:
        patch.setattr(native, "_connected", False)
        return in_c, call()


def assert_same(in_c: list[Any], in_python: list[Any]) -> None:
    """The same bits in the same layout, and None in the same places."""
    for a, b in zip(in_c, in_python, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.equal(a, b)
            assert (a.shape, a.dtype, a.requires_grad, a.is_leaf) == (b.shape, b.dtype, b.requires_grad, b.is_leaf)
            assert a.stride() == b.stride() or 1 in a.shape
