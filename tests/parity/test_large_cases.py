"""Parity cases for a GPU: where they run, what settings they run under, and that those of traces bite."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchlstm.__main__ import main
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Engine, only_if_asked
from torchlstm.engines.reference import engine as reference
from torchlstm.parity import CASES, judge, run_case
from torchlstm.parity.judge import FACTOR, ROUNDINGS, TF32
from torchlstm.parity.run import tf32_allowed

LARGE = {name: case for name, case in CASES.items() if case.large}


def test_large_cases_are_of_what_a_gpu_does_in_another_way() -> None:
    assert {case.dtype for case in LARGE.values()} == {torch.float32, torch.bfloat16, torch.float16}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cases = [case for case in LARGE.values() if case.dtype == dtype]
        assert {case.hidden_size for case in cases} >= {136, 256, 512, 640, 1024}
        assert max(case.batch for case in cases) > 64
        assert max(case.steps for case in cases) >= 500
        assert {case.form for case in cases} >= {"dense", "unsorted"}
        assert any(case.options.get("bidirectional") and case.form == "unsorted" for case in cases)
        assert any(case.options.get("proj_size") for case in cases)
        assert any(case.trace for case in cases)
    assert {case.name.replace("tf32", "float32") for case in LARGE.values() if case.tf32} == {
        case.name for case in LARGE.values() if case.dtype == torch.float32 and not case.tf32 and not case.trace
    }


WORDS = {
    "interpreter": ("large-float16-trace", "cuda", "too large for the interpreter; run on a GPU"),
    "cpu": ("large-float16-trace", "cpu", "slow on a CPU; run on a GPU, or by itself with --case"),
    "tf32": ("tf32-dense", "reference", "TF32 is a GPU's; run on a GPU"),
}


@pytest.mark.parametrize(("name", "engine", "words"), WORDS.values(), ids=WORDS)
def test_what_is_for_a_gpu_is_skipped_with_a_word(name: str, engine: str, words: str) -> None:
    result = run_case(CASES[name], engine=engine)
    assert result.skipped == words
    assert not result.passed


def test_a_large_case_runs_on_a_cpu_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    name = "large-float32-T12-B5-H136-dense"
    assert main(["parity", "--engine", "reference", "--case", name]) == 0
    assert capsys.readouterr().out.startswith(f"pass  {name}")
    assert main(["parity", "--engine", "reference", "--case", "*float32-*dense"]) == 0
    assert f"skip  {name}" in capsys.readouterr().out


SETTINGS = {
    "float32-dense": (False, False, False),
    "tf32-dense": (True, False, True),
    "tf32-everything-packed": (True, True, True),
    "tf32-cell": (False, True, True),
    "tf32-of-nn.LSTM-only-cell": (True, False, False),
    "large-tf32-T12-B5-H136-dense": (True, False, True),
    "large-float16-trace": (False, False, False),
}


@pytest.mark.parametrize(("name", "expected"), SETTINGS.items(), ids=SETTINGS)
def test_a_case_on_a_gpu_runs_under_its_settings(
    name: str, expected: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nn.LSTM may do, what all else may do, and whether the case is judged as TF32."""
    seen: list[Any] = []

    def note(case: Any, *_: Any) -> None:
        seen.append((tf32_allowed("rnn"), tf32_allowed("matmul"), case.rounds_to_tf32))

    monkeypatch.setattr("torchlstm.parity.run._run_case", note)
    run_case(CASES[name], device="cuda")
    assert seen == [expected]


def test_tf32_is_judged_by_its_own_unit() -> None:
    truth, rival = {"output": torch.ones(3, dtype=torch.float64)}, {"output": torch.ones(3)}
    for error, passes in ((0.5, True), (1.5, False)):
        ours = {"output": torch.ones(3) + error * ROUNDINGS * TF32}
        (verdict,) = judge(ours, rival, truth, torch.float32, True)
        assert (verdict.reason is None) is passes
        (strict,) = judge(ours, rival, truth, torch.float32)
        assert strict.reason is not None
        assert strict.bound == FACTOR * 0 + ROUNDINGS * torch.finfo(torch.float32).eps
    (half,) = judge({"output": torch.ones(3).half()}, {"output": torch.ones(3).half()}, truth, torch.float16, True)
    assert half.bound == ROUNDINGS * torch.finfo(torch.float16).eps


Result = tuple[Tensor, ...]


def _gates_swapped(*arguments: Any) -> Result:
    y, h_n, c_n, acts, cells = reference.layer(*arguments)
    i, f, g, o = acts.chunk(4, -1)
    return y, h_n, c_n, torch.cat([f, i, g, o], -1), cells


def _no_gradient_of_gates(*arguments: Any) -> Result:
    *rest, acts, cells = reference.layer(*arguments)
    return *rest, acts.detach() + 0 * acts, cells


def _no_gradient_of_cells(*arguments: Any) -> Result:
    *rest, cells = reference.layer(*arguments)
    return *rest, cells.detach() + 0 * cells


TRACED: dict[str, tuple[Callable[..., Result], str]] = {
    "gates-swapped": (_gates_swapped, "i_l0"),
    "gates-without-gradient": (_no_gradient_of_gates, "grad weight_hh_l0"),
    "cells-without-gradient": (_no_gradient_of_cells, "grad weight_hh_l0"),
}


@pytest.mark.parametrize(("layer", "tensor"), TRACED.values(), ids=TRACED)
def test_a_wrong_trace_is_caught(layer: Callable[..., Result], tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "mutant", Engine("mutant", layer, automatic=only_if_asked))
    result = run_case(CASES["trace-proj"], engine="mutant")
    assert tensor in [verdict.name for verdict in result.verdicts if verdict.reason]


def test_a_trace_is_judged_by_every_tensor() -> None:
    result = run_case(CASES["trace-float64"], engine="reference")
    names = {verdict.name for verdict in result.verdicts}
    assert names >= {f"{name}_l{layer}{end}" for name in "hcifgo" for layer in (0, 1) for end in ("", "_reverse")}
    assert result.passed
