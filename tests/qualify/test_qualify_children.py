"""The processes that try classes, and what is made of those that are wrong, hang, trap or are slower."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_children
import pytest
import torch
from torch import Tensor, nn

import torchlstm
from torchlstm.engines.contract import Engine, Problem, Ragged
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda.classes import Class, Form, class_of
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.records import Measured
from torchlstm.engines.reference import engine as reference
from torchlstm.parity import CASES
from torchlstm.qualify import card, evidence, report, speed
from torchlstm.qualify.evidence import Wrong
from torchlstm.qualify.models import Found, Unreadable, lstms_of
from torchlstm.qualify.run import Children, Lost
from torchlstm.qualify.wanted import Asked, Job, everything, jobs_of, without

H200 = GPU("NVIDIA H200", (9, 0), 132, 227 << 10)
KIND = class_of(Form(torch.float32, True, 8, 1, False, False, False, False), 2, "steps", H200)
JOB = Job(KIND, ((8, 2), (16, 2)), "cpu", True)

BAD = {
    "hangs": "hangs: it did not end within 3 s, at parity with torch.nn.LSTM",
    "traps": "traps: its process was ended by SIGABRT, at parity with torch.nn.LSTM",
    "fails": "failed: its process ended with code 1 (CUDA error: an illegal instruction was encountered), at parity",
    "babbles": "failed: its process said 'Warning: hello\\n', at parity",
    "ends": "failed: its process ended at parity with torch.nn.LSTM",
    "wrong": "wrong: T7: grad input: error 1.00e-02 exceeds 1.00e-06",
}


def children(how: str) -> Children:
    return Children([sys.executable, fake_children.__file__, how])


@pytest.mark.parametrize(("how", "reason"), BAD.items(), ids=BAD)
def test_what_ends_a_process_is_a_reason_against_its_class(how: str, reason: str) -> None:
    with children(how) as running:
        (found,) = running.tried(JOB, 3.0)
    assert (found.hidden, found.batch, found.least) == (8, 2, None)
    assert str(found.reason).startswith(reason)
    assert not running._running
    text = "\n".join(report.lines([JOB], {str(KIND): [found]}))
    assert reason in text
    assert text.split()[-1] == "no"
    assert report.summary([JOB], {str(KIND): [found]}) == (0, 1, 0)


def test_what_is_slower_is_right_and_not_chosen() -> None:
    with children("slower") as running:
        found = running.tried(JOB._replace(sizes=((8, 2),)), 30.0)
    assert found == [Measured(8, 2, None, None)]
    assert report.lines([JOB], {str(KIND): found})[-1].endswith("no: not faster than reference")
    assert report.summary([JOB], {str(KIND): found}) == (0, 0, 1)


def test_no_process_outlives_an_interrupt() -> None:
    running = children("hangs")
    with running:
        lines = running.lines(JOB.plain(), 60.0)
        assert next(lines)["at"].startswith("parity")
        (process,) = running._running
    assert process.wait(10) < 0
    with pytest.raises(Lost, match="SIGKILL"):
        next(lines)
    with pytest.raises(Lost, match="interrupted"):
        running.tried(JOB, 1.0)


def test_an_interrupt_while_several_run(monkeypatch: pytest.MonkeyPatch) -> None:
    running, start = children("hangs"), time.monotonic()
    jobs = [JOB._replace(sizes=((8, 2),)), JOB._replace(sizes=((8, 3),)), JOB._replace(sizes=((8, 4),))]

    def tried(job: Job) -> Any:
        if job.sizes == ((8, 4),):
            raise KeyboardInterrupt
        return running.tried(job, 60.0)

    with pytest.raises(KeyboardInterrupt):
        list(running.side_by_side(tried, jobs, 3))
    assert time.monotonic() - start < 30  # not the limit of those that hang
    assert not running._running


# What the reference engine computes stands for ours: evidence is judged the same on every engine.
Layer = Callable[..., tuple[Tensor, ...]]


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Callable[[Layer], None]:
    monkeypatch.setattr(evidence, "gpu_of", lambda _: H200)

    def install(layer: Layer) -> None:
        monkeypatch.setattr(cuda, "ENGINE", Engine("cuda", layer))

    return install


def _kind(**options: Any) -> Class:
    fields = {"directions": 1, "reverse": False, "projected": False, "ragged": False, "trace": False, **options}
    return class_of(Form(torch.float32, True, 8, **fields), 3, "steps", H200)


KINDS = {
    "dense": _kind(),
    "ragged": _kind(ragged=True),
    "two-directions": _kind(directions=2),
    "reverse": _kind(reverse=True),
    "projected": _kind(projected=True),
    "trace": _kind(trace=True, ragged=True),
}


def _parity(kind: Class) -> None:
    with evidence.products(kind), evidence.only(kind):
        evidence.parity(kind, (8, 3), "cpu", [(5, 3)])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_right_passes_and_only_its_class_is_run(kind: Class, ours: Callable[[Layer], None]) -> None:
    seen: list[Problem] = []

    def layer(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
        seen.append(problem)
        return reference.layer(problem, *arguments)

    ours(layer)
    _parity(kind)
    assert seen
    for problem in seen:
        assert problem.loop == "steps"
        assert isinstance(problem.rows, Ragged) == kind.ragged
        assert (problem.directions, problem.reverse, problem.trace) == (kind.directions, kind.reverse, kind.trace)


def _off(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
    y, *rest = reference.layer(problem, *arguments)
    return y * 1.001, *rest


def _no_gradient_of_c(problem: Problem, x: Tensor, h: Tensor, c: Tensor, weights: Any) -> tuple[Tensor, ...]:
    return reference.layer(problem, x, h, c.detach() + 0 * c, weights)


def _leaking(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
    y, *rest = reference.layer(problem, *arguments)
    return y + 0 * y.sum(), *rest


def _off_without_gradients(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
    y, *rest = reference.layer(problem, *arguments)
    return y if torch.is_grad_enabled() else y * 1.001, *rest


WRONG = {
    "off-by-a-thousandth": (_off, "dense", "exceeds"),
    "no-gradient-of-c_0": (_no_gradient_of_c, "ragged", "grad c_0"),
    "NaN-leaks": (_leaking, "dense", "with nan in one row"),
    "off-without-gradients": (_off_without_gradients, "two-directions", "without gradients: output"),
    "reverse-is-off": (_off, "reverse", "exceeds"),
    "trace-is-off": (_off, "trace", "output"),
}


@pytest.mark.parametrize(("layer", "kind", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_caught(layer: Layer, kind: str, words: str, ours: Callable[[Layer], None]) -> None:
    ours(layer)
    with pytest.raises(Wrong, match=words):
        _parity(KINDS[kind])


def test_another_class_than_the_one_that_was_asked_for_is_no_evidence(ours: Callable[[Layer], None]) -> None:
    ours(reference.layer)
    with evidence.only(KINDS["ragged"]), pytest.raises(Wrong, match="was posed in its place"):
        evidence._judged(replace(CASES["float32-dense"]), "cpu")


def test_other_bits_are_caught(ours: Callable[[Layer], None]) -> None:
    count = [0]

    def drifting(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
        y, *rest = reference.layer(problem, *arguments)
        count[0] += 1
        return y + (1e-7 if count[0] == 7 else 0.0), *rest

    kind = KINDS["dense"]
    case = evidence.case_of(kind, (8, 3), 4, 3)
    ours(drifting)
    before: list[int] = []
    with evidence.products(kind), evidence.only(kind):
        evidence.same_bits(evidence.calls(case, "cpu", False), 4, before.append, warm=1)
        assert before == [1, 2, 3]
        with pytest.raises(Wrong, match="call 1 of 4 beside: other bits in output"):
            evidence.same_bits(evidence.calls(case, "cpu", False), 4, what=" beside")
    nan = {"y": torch.tensor([float("nan"), 0.0])}
    evidence.compare(nan, {"y": nan["y"].clone()}, "")
    with pytest.raises(Wrong):
        evidence.compare(nan, {"y": torch.tensor([float("nan"), -0.0])}, "")


@pytest.mark.parametrize("name", ["ragged", "reverse", "trace"])
def test_times_are_of_all_three_in_turns(name: str, ours: Callable[[Layer], None]) -> None:
    """By a clock that is told how long each takes."""
    order: list[str] = []
    kind = KINDS[name]

    def layer(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
        order.append("ours")
        return reference.layer(problem, *arguments)

    ours(layer)
    seconds = iter(range(10**6))

    def clock(run: Callable[[], Any]) -> float:
        order.clear()
        run()
        return 2.0 if order else 3.0 + 1e-9 * next(seconds)

    case = evidence.case_of(kind, (8, 3), 4, 8)
    with evidence.products(kind), evidence.only(kind):
        row = card.timed(case, kind, "cpu", True, clock)
    assert row["steps"] == case.steps
    assert row["ours"] == pytest.approx(2e6 / case.steps)
    assert row["reference"] == pytest.approx(3e6 / case.steps)
    assert row["nn"] == pytest.approx(3e6 / case.steps)
    assert row["low"] == pytest.approx(1.5)


def test_the_low_percentile_decides() -> None:
    steady, jumping = [1.0] * 10, [2.0] * 7 + [0.5] * 3
    assert speed.low_ratio([1.2] * 10, steady) == pytest.approx(1.2)
    assert speed.low_ratio(jumping, steady) == 0.5
    assert speed.low_ratio([2.0] * 9 + [0.5], steady) == 2.0
    row = speed.row(16, {"ours": steady, "reference": [2.0] * 10, "nn": steady}, {"ours": steady, "reference": jumping})
    assert row["low"] == 0.5  # inference has to gain too
    rows = [{"steps": steps, "low": low} for steps, low in ((16, 3.0), (64, 1.04), (512, 1.06))]
    assert speed.least_of(rows) == 512
    assert speed.least_of([*rows[:2], {"steps": 512, "low": 1.0}]) is None
    assert speed.least_of([rows[0], {"steps": 64, "low": 1.05}, rows[2]]) == 16


def test_runs_take_turns_at_being_first() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    speed.in_turns(runs, lambda run: float(run() is None), 3, 0.0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


def test_jobs_cover_both_loops_and_every_cut() -> None:
    jobs = jobs_of([Asked((64, 128, 256, 512, 1024), (1, 16, 64), ("bfloat16",))], H200, "cuda:0", False)
    kinds = [job.kind for job in jobs]
    assert len(set(kinds)) == len(kinds)
    assert [kind.cooperates for kind in kinds] == sorted(kind.cooperates for kind in kinds)
    (steps,) = [job for job in jobs if job.kind.loop == "steps"]
    assert steps.sizes == tuple((h, b) for h in (64, 256, 1024) for b in (1, 64))
    fused = {size for job in jobs if job.kind.loop == "fused" for size in job.sizes}
    assert fused == {(h, b) for h in (64, 128, 256, 512, 1024) for b in (1, 16, 64)}
    for job in jobs:
        assert Job.of(job.plain()) == job
    left = without(jobs, {str(steps.kind): {(64, 1), (64, 64)}})
    assert [job.sizes for job in left if job.kind.loop == "steps"] == [steps.sizes[2:]]


def test_what_is_asked_about() -> None:
    ragged = jobs_of([Asked((8,), (1,), ("float32", "float32-strict"), forms=("ragged",))], H200, "cpu", True)
    assert {(job.kind.tf32, job.sizes) for job in ragged} == {(True, ((8, 2),)), (False, ((8, 2),))}
    chunks = jobs_of([Asked((8,), (1,), ("bfloat16",), (2,), checkpoint=True)], H200, "cpu", True)
    assert {(job.kind.directions, job.kind.reverse) for job in chunks} == {(1, False), (1, True)}
    for interpreted in (True, False):
        quick, whole = (jobs_of([everything(interpreted, q)], H200, "cpu", q) for q in (True, False))
        assert 0 < len(quick) < len(whole)


def _saved(tmp_path: Path, content: Any) -> str:
    path = str(tmp_path / "model.pt")
    torch.save(content, path)
    return path


def test_a_models_lstms_are_found(tmp_path: Path) -> None:
    class Odd(nn.Module):
        pass

    model = nn.Sequential(
        nn.Embedding(5, 8), nn.LSTM(8, 16, 2, bidirectional=True), nn.GRU(8, 12), nn.LSTMCell(8, 24),
        torchlstm.LSTM(8, 32, proj_size=4, dtype=torch.bfloat16, checkpoint_every=3), nn.Linear(4, 4),
    )  # fmt: skip
    expected = {Found(16, "float32", 2, False), Found(24, "float32", 1, False), Found(32, "bfloat16", 1, True, True)}
    assert lstms_of(_saved(tmp_path, model)) == expected
    plain = {found._replace(checkpoint=False) for found in expected}
    assert lstms_of(_saved(tmp_path, model.state_dict())) == plain
    assert lstms_of(_saved(tmp_path, {"epoch": 3, "model": model.state_dict()})) == plain


def _custom() -> nn.Module:
    return CustomModel()


class CustomModel(nn.Module):
    """What cannot be loaded without running its code."""


def test_files_without_lstms_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"CustomModel, which cannot be loaded without running its code: save model"):
        lstms_of(_saved(tmp_path, _custom()))
    with pytest.raises(Unreadable, match="has no LSTM in it"):
        lstms_of(_saved(tmp_path, nn.GRU(3, 4).state_dict()))
    with pytest.raises(Unreadable, match=r"cannot read .*: No such file"):
        lstms_of(str(tmp_path / "missing.pt"))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(Unreadable, match=r"text\.pt is not what torch\.save writes"):
        lstms_of(str(tmp_path / "text.pt"))
