"""Which engine: automatic choice, force, refusal, explanation."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import torchlstm
from torchlstm.engines.contract import Engine, Problem, only_if_asked
from torchlstm.engines.reference import engine as reference


def picky(problem: Problem) -> str | None:
    return f"{problem.dtype} is not supported" if problem.dtype == torch.float64 else None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two more engines ahead of the reference, and the record of who ran."""
    ran: list[str] = []

    def spy(name: str) -> Any:
        def layer(*arguments: Any) -> Any:
            ran.append(name)
            return reference.layer(*arguments)

        return layer

    table = {
        "picky": Engine("picky", spy("picky"), picky),
        "shy": Engine("shy", spy("shy"), automatic=only_if_asked),
        "missing": Engine("missing", spy("missing"), unavailable=lambda: "it was not compiled"),
        "reference": Engine("reference", spy("reference")),
    }
    monkeypatch.setattr("torchlstm.call.dispatch.ENGINES", table)
    return ran


def lstm(dtype: torch.dtype = torch.float32) -> tuple[torchlstm.LSTM, torch.Tensor]:
    return torchlstm.LSTM(4, 6, 2, dtype=dtype), torch.randn(5, 3, 4, dtype=dtype)


def test_automatic_choice_takes_the_first_that_does_not_refuse(calls: list[str]) -> None:
    for dtype in (torch.float32, torch.float64):
        module, x = lstm(dtype)
        module(x)
    assert calls == ["picky", "picky", "reference", "reference"]


def test_forced_engine_raises_with_the_reason_and_the_way_out(calls: list[str]) -> None:
    module, x = lstm(torch.float64)
    with torchlstm.use_engine("picky"), pytest.raises(torchlstm.EngineRefusal) as refusal:
        module(x)
    assert str(refusal.value) == (
        "engine 'picky' cannot run this LSTM: torch.float64 is not supported; engines that can: shy, reference"
    )
    module(x)
    assert calls == ["reference", "reference"]


def test_opt_in_engine_runs_only_when_asked(calls: list[str]) -> None:
    module, x = lstm()
    with torchlstm.use_engine("shy"):
        module(x)
    module(x)
    assert calls == ["shy", "shy", "picky", "picky"]


def test_force_nests_and_stays(calls: list[str]) -> None:
    cell, x = torchlstm.LSTMCell(4, 6), torch.randn(3, 4)
    with torchlstm.use_engine("shy"):
        with torchlstm.use_engine("reference"):
            cell(x)
        cell(x)
        with torchlstm.use_engine("auto"):
            cell(x)
    cell(x)
    torchlstm.use_engine("reference")
    cell(x)
    torchlstm.use_engine("auto")
    cell(x)
    assert calls == ["reference", "shy", "picky", "picky", "reference", "picky"]


def test_engine_of_the_forward_is_that_of_the_backward(calls: list[str]) -> None:
    module, x = lstm()
    with torchlstm.use_engine("reference"):
        output, _ = module(x)
    output.sum().backward()
    assert calls == ["reference", "reference"]


def test_unknown_and_missing_engines(calls: list[str]) -> None:
    with pytest.raises(ValueError, match="unknown engine 'fast'; engines: picky, shy, missing, reference, auto"):
        torchlstm.use_engine("fast")
    with pytest.raises(RuntimeError, match="engine 'missing' is not available: it was not compiled"):
        torchlstm.use_engine("missing")
    module, x = lstm()
    module(x)
    assert calls == ["picky", "picky"]
    assert torchlstm.engines() == {"picky": None, "shy": None, "missing": "it was not compiled", "reference": None}


def test_no_engine_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchlstm.call.dispatch.ENGINES", {"picky": Engine("picky", reference.layer, picky)})
    module, x = lstm(torch.float64)
    with pytest.raises(RuntimeError, match=r"no engine can run this LSTM: picky refuses: torch\.float64"):
        module(x)


PROGRAM = """
import torch, torchlstm
torchlstm.LSTM(2, 3)(torch.randn(4, 1, 2))
print(torchlstm.call.dispatch.forced_engine())
"""


@pytest.mark.parametrize(
    ("value", "answer"), [("reference", "reference"), ("auto", "None"), ("", "None"), ("fast", "unknown engine 'fast'")]
)
def test_environment_variable(value: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHLSTM_ENGINE", value)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert answer in (done.stdout + done.stderr)
    assert done.returncode == (1 if value == "fast" else 0)


def test_explain_says_who_runs_and_why(calls: list[str]) -> None:
    module, x = lstm(torch.float64)
    explanation = torchlstm.explain(module, x)
    assert calls == []
    assert [decision.engine for decision in explanation.decisions] == ["reference", "reference"]
    assert [decision.problem.input_size for decision in explanation.decisions] == [4, 6]
    text = str(explanation)
    assert "automatic choice" in text
    assert "picky: refuses: torch.float64 is not supported" in text
    assert "shy: can run it, but only if asked for" in text
    assert "missing: refuses: it was not compiled" in text
    assert "-> reference: can run it" in text


def test_explain_agrees_with_what_runs(calls: list[str]) -> None:
    """The problem that explain describes is the problem that the engine gets."""
    posed: list[Problem] = []

    def record(problem: Problem) -> None:
        posed.append(problem)

    torchlstm.call.dispatch.ENGINES["picky"] = Engine("picky", reference.layer, record)
    everything = torchlstm.LSTM(4, 6, 2, bias=False, batch_first=True, bidirectional=True, proj_size=3)
    packed = pack_sequence([torch.randn(3, 4), torch.randn(5, 4)], enforce_sorted=False)
    for module, x in (
        (everything, torch.randn(2, 5, 4)),
        (everything, packed),
        (torchlstm.LSTM(4, 6), torch.randn(5, 4)),
        (torchlstm.LSTMCell(4, 6), torch.randn(4)),
        (torchlstm.LSTMCell(4, 6, bias=False), torch.randn(7, 4)),
    ):
        for autocast in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                posed.clear()
                module(x)
                ran = list(posed)
                explained = [decision.problem for decision in torchlstm.explain(module, x).decisions]
            assert [str(problem) for problem in explained] == [str(problem) for problem in ran]


def test_explain_of_a_forced_engine_that_refuses(calls: list[str]) -> None:
    module, x = lstm(torch.float64)
    with torchlstm.use_engine("picky"):
        text = str(torchlstm.explain(module, x))
    assert "engine 'picky' is forced" in text
    assert "error: engine 'picky' cannot run this LSTM" in text


def test_explain_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match=r"got LSTM: swap it first"):
        torchlstm.explain(nn.LSTM(4, 6), torch.randn(5, 3, 4))


def test_a_profile_names_the_layers() -> None:
    module = torchlstm.LSTM(2, 3, 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(torch.randn(4, 2, 2))[0].sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    engine = next(name for name, reason in torchlstm.engines().items() if reason is None)
    assert counts[f"torchlstm::layer {engine}"] == 2
