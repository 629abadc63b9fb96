"""The plan of a call: made of its signature alone, remembered, and never taken for another call's."""

import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import torchlstm
import torchlstm.lstm as lstm_module
from torchlstm.call import plan as plans
from torchlstm.call.plan import Form, Plan, plan_cell, plan_lstm
from torchlstm.engines.contract import Dense
from torchlstm.engines.cpu import engine as cpu

needs_kernel = pytest.mark.skipif(torchlstm.engines()["cpu"] is not None, reason="the extension was not compiled")


pytestmark = pytest.mark.usefixtures("in_python")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Plan]:
    """Plans of this test only."""
    known: dict[Any, Plan] = {}
    monkeypatch.setattr(plans, "_plans", known)
    return known


def test_a_plan_says_the_form_and_the_sizes() -> None:
    module = torchlstm.LSTM(3, 4, 2, bidirectional=True, proj_size=2, batch_first=True, dropout=0.5)
    x = torch.randn(5, 7, 3)
    plan = plan_lstm(module, x, None)
    assert (plan.form, plan.rows) == (Form.BATCH_FIRST, Dense(7, 5))
    assert (plan.states, plan.sizes, plan.directions) == (4, (2, 4), 2)
    assert plan.dropout == 0.5
    assert plan.layers[1][1][0] == ("weight_ih_l1_reverse", (16, 4))
    assert plan_lstm(module, x[0], None).form is Form.UNBATCHED
    packed = plan_lstm(module, pack_padded_sequence(x, [7, 7, 2, 1, 1], True), None)
    assert (packed.form, packed.rows) == (Form.PACKED, None)
    cell = plan_cell(torchlstm.LSTMCell(3, 4, bias=False), x[0], None)
    assert (cell.form, cell.rows) == (Form.STEP, Dense(1, 7))


def test_a_plan_is_of_the_signature_and_not_of_weights_or_numbers(nothing_remembered: dict[Any, Plan]) -> None:
    module, other = torchlstm.LSTM(3, 4), torchlstm.LSTM(3, 4)
    plan = plan_lstm(module, torch.randn(5, 2, 3), None)
    assert plan_lstm(other, torch.randn(5, 2, 3), None) is plan
    assert len(nothing_remembered) == 1
    flat = [plan, *plan, *(value for layer in plan.layers for way in layer for value in way)]
    assert not any(isinstance(value, (Tensor, nn.Module)) for value in flat)
    hash(plan)


X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
PAIR = (torch.ones(2, 2, 4), torch.ones(2, 2, 4))
# Calls that differ from `module(X)` in one thing: an attribute that is set, another input or form, a mode.
OPTIONS: dict[str, dict[str, Any]] = {
    "evaluated": {"training": False},
    "dropout": {"dropout": 1.0},
    "batch_first": {"batch_first": True},
    "checkpoints": {"checkpoint_every": 2},
    "one layer": {"num_layers": 1},
    "without bias": {"bias": False},
}
CALLS: dict[str, Callable[[torchlstm.LSTM], Any]] = {
    "more steps": lambda module: module(torch.cat([X, X])),
    "other batch": lambda module: module(X[:, :1]),
    "unbatched": lambda module: module(X[:, 0]),
    "states": lambda module: module(X, PAIR),
    "states as a list": lambda module: module(X, list(PAIR)),
    "trace": lambda module: module.trace(X)[:2],
    "packed": lambda module: module(pack_padded_sequence(X, [5, 3]))[1],
    "lengths": lambda module: module(X, lengths=[5, 3]),
    "resets": lambda module: module(X, resets=torch.ones(5, 2, dtype=torch.bool)),
    "double": lambda module: module.double()(X.double()),
    "autocast": lambda module: autocast(module, X),
    **{name: lambda module, options=options: set_and_call(module, options) for name, options in OPTIONS.items()},
}


def set_and_call(module: torchlstm.LSTM, options: dict[str, Any]) -> Any:
    """Call a module that has been changed."""
    for name, value in options.items():
        setattr(module, name, value)
    return module(X)


def autocast(module: torchlstm.LSTM, x: Tensor) -> Any:
    """Call it under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)


def flat(results: Any) -> list[Tensor]:
    """All tensors of results."""
    if isinstance(results, Tensor):
        return [results]
    return [tensor for each in results for tensor in flat(each)]


@pytest.mark.parametrize("name", CALLS)
def test_a_plan_is_no_other_calls(
    name: str, nothing_remembered: dict[Any, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a call that differs in one thing, and again from memory: as with nothing remembered."""
    used: list[Plan] = []
    unpack = lstm_module.unpack
    monkeypatch.setattr(lstm_module, "unpack", lambda plan, *rest: (used.append(plan), unpack(plan, *rest))[1])
    module = torchlstm.LSTM(3, 4, 2, dropout=0.3)
    module(X)
    results = []
    for again in range(3):
        if again == 2:
            nothing_remembered.clear()
        torch.manual_seed(0)
        results.append(flat(CALLS[name](module)))
    assert used[1] == used[2] == used[3]
    for found in results[:2]:
        for a, b in zip(found, results[2], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_an_error_is_not_remembered(nothing_remembered: dict[Any, Plan]) -> None:
    module = torchlstm.LSTM(3, 4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Expected 3, got 2"):
            module(torch.randn(5, 2, 2))
        with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 2, 4\), got \[1, 3, 4\]"):
            module(torch.randn(5, 2, 3), (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)))
    assert not nothing_remembered


def test_too_many_plans_are_forgotten(nothing_remembered: dict[Any, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_MOST", 3)
    module = torchlstm.LSTM(3, 4)
    for steps in range(1, 9):
        module(torch.randn(steps, 1, 3))
        assert len(nothing_remembered) <= 3


class Strict(torchlstm.LSTM):
    """A subclass with a check of its own, which nn.LSTM would call."""

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        if input.shape[0] > 3:
            raise RuntimeError("too long")
        super().check_forward_args(input, hidden, batch_sizes)


def test_checks_of_a_subclass_are_called() -> None:
    states = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    module = Strict(3, 4)
    for _ in range(2):
        module(torch.randn(3, 2, 3), states)
        for call in (module, module.trace):
            with pytest.raises(RuntimeError, match="too long"):
                call(torch.randn(4, 2, 3), states)


def test_a_weight_that_is_none() -> None:
    """As nn.LSTM, an LSTM needs all that it was made with; as nn.LSTMCell, a cell does without either bias."""
    for name in ("weight_hh_l0", "bias_ih_l0"):
        for kind in (nn.LSTM, torchlstm.LSTM):
            module = kind(3, 4)
            module(torch.randn(5, 2, 3))
            setattr(module, name, None)
            with pytest.raises(TypeError, match="None"):
                module(torch.randn(5, 2, 3))
    for missing in (["bias_ih"], ["bias_hh"], ["bias_ih", "bias_hh"]):
        theirs, ours = nn.LSTMCell(3, 4), torchlstm.LSTMCell(3, 4)
        ours.load_state_dict(theirs.state_dict())
        x, found = torch.randn(2, 3), []
        for cell in (theirs, ours):
            cell(x)
            for name in missing:
                setattr(cell, name, None)
            h, c = cell(x)
            (h.sum() + 2 * c.sum()).backward()
            found.append([h, c, *(parameter.grad for parameter in cell.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


@needs_kernel
@pytest.mark.parametrize("trained", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_a_debugger_meets_at_most_eight_frames(kind: str, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a call to the kernel; and every file on the way is entered once."""
    module = getattr(torchlstm, kind)(3, 4)
    x = torch.randn(5, 2, 3)
    stacks: list[list[str]] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name == "forward":
                stacks.append([f.filename for f in traceback.extract_stack() if "/torchlstm/" in f.filename])
            return getattr(kernel, name)

    kernel = cpu._kernel
    monkeypatch.setattr(cpu, "_kernel", Watched())
    entered: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        inner = frame.f_back is not None and frame.f_back.f_code.co_filename == name
        if event == "call" and "/torchlstm/" in name and not inner and entered[-1:] != [name]:
            entered.append(name)

    with torch.set_grad_enabled(trained):
        module(x if kind == "LSTM" else x[0])
        sys.setprofile(watch)
        try:
            module(x if kind == "LSTM" else x[0])
        finally:
            sys.setprofile(None)
    assert len(stacks[-1]) <= 8
    # Down to the engine; the way back, `packing`, is another one.
    down = entered[: next(k for k, name in enumerate(entered) if name.endswith("cpu/engine.py"))]
    assert len(set(down)) == len(down), down
