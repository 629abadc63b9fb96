"""What a GPU is asked for, with nothing in its place: the order of the evidence, and that none of it passes unseen."""

import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from torchlstm.engines.contract import Engine, Problem
from torchlstm.engines.cuda import engine as cuda
from torchlstm.engines.cuda import launch as launching
from torchlstm.engines.cuda import loops
from torchlstm.engines.cuda.classes import Class, Form, class_of
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.reference import engine as reference
from torchlstm.parity.run import tf32
from torchlstm.qualify import card, child, compiled, evidence, probe
from torchlstm.qualify.evidence import Wrong
from torchlstm.qualify.wanted import Job

H200 = GPU("NVIDIA H200", (9, 0), 132, 227 << 10)


def kind_of(loop: str = "steps", hidden: int = 8, dtype: torch.dtype = torch.float32, **options: Any) -> Class:
    fields = {"directions": 1, "reverse": False, "projected": False, "ragged": False, "trace": False, **options}
    return class_of(Form(dtype, dtype == torch.float32, hidden, **fields), 3, loop, H200)


class Graph:
    """A graph that computes nothing when it is replayed."""

    def replay(self) -> None:
        """Do nothing."""


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda with streams and graphs that are none, the reference engine for ours, and one context for a class."""
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {
        "Stream": lambda _: stream, "current_stream": lambda _: stream, "stream": lambda _: nullcontext(),
        "synchronize": lambda _: None, "CUDAGraph": Graph, "graph": lambda _: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(card, "sleep", lambda _: None)
    monkeypatch.setattr(evidence, "gpu_of", lambda _: H200)
    monkeypatch.setattr(cuda, "ENGINE", Engine("cuda", reference.layer))


@pytest.mark.parametrize("ragged", [False, True], ids=["dense", "ragged"])
def test_a_graph_that_does_not_compute_anew_is_caught(ragged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kind_of(ragged=ragged)
    case = evidence.case_of(kind, (8, 3), 4, 5)
    with evidence.only(kind):
        with pytest.raises(Wrong, match="replay 0 of a CUDA graph: output"):
            card.replayed(case, "cpu")
        # With the numbers that it was captured with, what it has computed is right.
        monkeypatch.setattr(torch, "randn_like", lambda x: x.detach())
        card.replayed(case, "cpu")


def test_layers_side_by_side_that_differ_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kind_of()
    case = evidence.case_of(kind, (8, 3), 4, 5)
    count = [0]

    def layer(problem: Problem, *arguments: Any) -> tuple[Tensor, ...]:
        count[0] += 1
        y, *rest = reference.layer(problem, *arguments)
        return y * (1.0 if count[0] < 8 else 1.01), *rest

    monkeypatch.setattr(cuda, "ENGINE", Engine("cuda", layer))
    with evidence.only(kind), pytest.raises(Wrong, match="two layers on two streams at once, try 2: other bits"):
        card.side_by_side(case, kind, "cpu")
    count[0] = -1000
    with evidence.only(kind):
        card.side_by_side(case, kind, "cpu")


_TEN = ["the same bits 10 times", "the same bits 10 times beside other work"]
EXPECTED = {
    "steps": (kind_of(), (8, 3), [*_TEN, "a CUDA graph"]),
    "cooperating": (
        kind_of("fused", 136, torch.bfloat16), (136, 3),
        ["the same bits 300 times", "the same bits 300 times beside other work", "two layers on two streams at once",
         "a CUDA graph"],
    ),
    "trace": (kind_of(trace=True), (8, 3), _TEN),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "size", "expected"), EXPECTED.values(), ids=EXPECTED)
def test_the_evidence_of_a_class(
    kind: Class, size: tuple[int, int], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    times = {1: 1.1, 16: 1.0, 64: 1.2, 512: 1.3}
    monkeypatch.setattr(child, "INTERPRETED", False)
    monkeypatch.setattr(child, "parity", lambda *_, **__: None)
    monkeypatch.setattr(child, "same_bits", lambda *_, **__: None)
    for name in ("side_by_side", "replayed"):
        monkeypatch.setattr(card, name, lambda *_: None)
    monkeypatch.setattr(card, "Load", lambda _: None)
    monkeypatch.setattr(card, "timed", lambda case, *_: {"steps": case.steps, "low": times[case.steps]})
    found = child.evidence(Job(kind, (size,), "cpu", False), size, said.append)
    # A step alone, as a cell's, is a program of the loop of steps.
    timed = list(times)[0 if kind.loop == "steps" and not kind.trace else 1 :]
    timing = [f"the time of {steps} steps" for steps in timed]
    assert said == ["parity with torch.nn.LSTM", *expected, *timing]
    assert (found.reason, found.least, len(found.speed)) == (None, 64, len(timed))


def test_a_single_step_is_timed_where_a_cell_could_be_chosen() -> None:
    assert child.numbers_of_steps(kind_of(), quick=False) == (1, 16, 64, 512)
    assert child.numbers_of_steps(kind_of(), quick=True) == (1, 64)
    for other in (kind_of("fused", 256), kind_of(ragged=True), kind_of(trace=True), kind_of(reverse=True)):
        assert child.numbers_of_steps(other, quick=True) == (64,)


def test_the_first_size_that_is_wrong_ends_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(_: Job, size: tuple[int, int], say: Any) -> Any:
        say("parity")
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with ..") if size[0] == 8 else Wrong("off")

    monkeypatch.setattr(child, "evidence", tried)
    lines: list[dict[str, Any]] = []
    child.work(Job(kind_of(), ((8, 3), (16, 3)), "cpu", False), lines.append)
    assert lines[0] == {"at": "parity", "H": 8, "B": 3}
    assert lines[1]["found"]["reason"] == "failed: RuntimeError: CUDA error: unspecified launch failure"
    assert len(lines) == 2
    lines.clear()
    child.work(Job(kind_of(), ((16, 3),), "cpu", False), lines.append)
    assert lines[1]["found"]["reason"] == "wrong: off"


def test_a_class_whose_launch_is_refused_does_not_qualify_by_the_loop_that_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(*_: Any) -> Any:
        loops._without_room(launching.NoRoom("too many blocks in cooperative launch"))

    monkeypatch.setattr(child, "evidence", tried)
    monkeypatch.setattr(loops, "_said", [])
    lines: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in the process of a class
        child.work(Job(kind_of("fused", 256), ((256, 3),), "cpu", False), lines.append)
    assert lines[0]["found"]["reason"].startswith("failed: RuntimeWarning: torchlstm: a GPU refused the kernel")


@pytest.mark.parametrize(("device", "allowed"), [("cuda", True), ("cuda", False), ("cpu", True)])
def test_calls_without_gradients_are_judged_by_the_precision_of_the_class(
    device: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bool] = []
    monkeypatch.setattr(evidence, "judge", lambda *args: judged.append(args[4]) or [])
    case = evidence.case_of(kind_of(), (8, 3), 3, 5)
    monkeypatch.setattr(evidence, "inferred", lambda *_: {})
    with tf32(("rnn",) if allowed else ()):
        evidence._inferred(case, device)
    assert judged == [device == "cuda" and allowed]


COMPILED = {
    "steps": (kind_of(), (8, 3), "pointwise"),
    "rows": (kind_of("fused", 32, torch.bfloat16, ragged=True), (32, 3), "fused_rows"),
    "slices": (kind_of("fused", 136, torch.bfloat16, directions=2), (136, 3), "fused_slices"),
    "reverse": (kind_of("fused", 32, torch.bfloat16, reverse=True), (32, 3), "fused_rows"),
}


@pytest.mark.parametrize(("kind", "size", "file"), COMPILED.values(), ids=COMPILED)
def test_all_that_a_class_runs_is_compiled_and_nothing_is_run(
    kind: Class, size: tuple[int, int], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "ENGINE", Engine("cuda", cuda._layer))
    monkeypatch.setattr(cuda, "gpu_of", lambda _: H200)
    seen: set[tuple[str, str, Any]] = set()

    class Kernel:
        def __init__(self, file: str, name: str) -> None:
            self.file, self.name = file, name

        def warmup(self, *_: Any, grid: Any, num_warps: int, launch_cooperative_grid: bool, **constants: Any) -> None:
            assert 0 not in grid
            assert launch_cooperative_grid == kind.cooperates
            seen.add((self.file, self.name, constants.get("SAVE")))

    monkeypatch.setattr(launching, "kernel_of", Kernel)
    compiled.compile_all(Job(kind, (size,), "cpu", False))
    assert seen == {(file, "forward", True), (file, "forward", False), (file, "backward", None)}


BUSY = {
    "alone": ("", 0.3, (None, None)),
    "itself-by-another-number": ("991\n", 0.3, (None, None)),
    "another": ("991\n992\n", 0.3, ("other processes compute on it (991, 992)", None)),
    "full": ("", 60.0, ("60.0 GiB of its memory are in use", None)),
}


@pytest.mark.parametrize(("pids", "used", "expected"), BUSY.values(), ids=BUSY)
def test_who_else_is_on_a_gpu(pids: str, used: float, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 140 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (total - int(used * 2**30), total))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(probe.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(probe.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=pids))
    assert probe._others(torch.device("cuda", 0)) == expected
    monkeypatch.setattr(probe.shutil, "which", lambda _: None)
    assert ("nvidia-smi is not here" in str(probe._others(torch.device("cuda", 0))[1])) == (used < 1)
