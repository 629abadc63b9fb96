"""The package computes its LSTMs itself: no call into torch's own LSTM kernels."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchlstm
from torchlstm.parity import CASES, Case
from torchlstm.parity.observe import build, draw, observe

PACKAGE = Path(torchlstm.__file__).parent
KERNELS = ("_VF", "lstm_cell", "lstm_mps", "mkldnn_rnn", "_cudnn_rnn", "_thnn_fused_lstm", "_thnn_differentiable_lstm")
OUR_WORDS = {"lstm_cell"}  # the name of our own cell, too


def _torch_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names that start at torch, and names imported from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def test_no_file_names_a_kernel_of_torch() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "parity" not in path.parts]
    assert len(files) > 10
    for path in files:
        for name in _torch_names(ast.parse(path.read_text(encoding="utf-8"))):
            last = name.split(".")[-1]
            own = last in OUR_WORDS and not name.startswith("torch")
            assert own or not any(last.startswith(kernel) for kernel in KERNELS), f"{path.name}: {name}"
            assert name not in ("torch.lstm", "torch._VF.lstm", "torch.ops.aten.lstm"), f"{path.name}: {name}"


class Forbid(TorchDispatchMode):
    """Refuse torch's LSTM operators wherever they come from, autograd's backward included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        space, operator = name.split("::")
        if space != "torchlstm" and ("lstm" in operator or "rnn" in operator):
            raise AssertionError(f"torch's own {name} was called")
        return func(*args, **(kwargs or {}))


def _patch(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("torch's own LSTM was called")

    for name in ("lstm", "lstm_cell"):
        monkeypatch.setattr(torch, name, forbidden)
        monkeypatch.setattr(torch._VF, name, forbidden, raising=False)
    monkeypatch.setattr(nn.LSTM, "forward", forbidden)
    monkeypatch.setattr(nn.LSTMCell, "forward", forbidden)


@pytest.mark.parametrize("patched", [False, True], ids=["by-dispatch", "by-patch"])
@pytest.mark.parametrize(
    "name", ["float32-dense", "float32-everything-dense", "float32-everything-packed", "cell-float32"]
)
def test_runs_without_them(name: str, patched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = CASES[name]
    module, inputs = build(case, torchlstm.LSTM, torchlstm.LSTMCell, case.dtype), draw(case)
    if patched:
        _patch(monkeypatch)
        seen = observe(module, case, inputs)
    else:
        with Forbid():
            seen = observe(module, case, inputs)
    assert all(tensor is not None for tensor in seen.values())


def test_the_traps_work(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 2, 4)
    lstm, cell = nn.LSTM(4, 5), nn.LSTMCell(4, 5)
    with pytest.raises(AssertionError, match="torch's own"), Forbid():
        lstm(x)
    forwards = nn.LSTM.forward, nn.LSTMCell.forward
    _patch(monkeypatch)
    for module, forward, input in ((lstm, forwards[0], x), (cell, forwards[1], x[0])):
        with pytest.raises(AssertionError, match="torch's own"):
            module(input)
        with pytest.raises(AssertionError, match="torch's own"):
            forward(module, input)
    assert "torch.lstm" in set(_torch_names(ast.parse("torch.lstm(x)")))


def test_not_a_subclass_of_the_classes_it_replaces() -> None:
    """torch.compile refuses every instance of nn.LSTM."""
    assert not issubclass(torchlstm.LSTM, nn.LSTM)
    assert issubclass(torchlstm.LSTM, nn.RNNBase)
    assert not issubclass(torchlstm.LSTMCell, nn.LSTMCell)
    assert issubclass(torchlstm.LSTMCell, nn.RNNCellBase)
    theirs = list(inspect.signature(nn.RNNBase.__init__).parameters)[2:]
    parameters = inspect.signature(torchlstm.LSTM.__init__).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY][1:] == theirs
    # What is ours comes after, by name only, and is off.
    assert all(p.default is None for p in parameters if p.kind is p.KEYWORD_ONLY)
    ours = inspect.signature(torchlstm.LSTMCell.__init__).parameters
    assert list(ours) == list(inspect.signature(nn.LSTMCell.__init__).parameters)
