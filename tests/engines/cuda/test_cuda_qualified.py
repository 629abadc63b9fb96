"""Automatic choice by records: which loop, at which sizes, and why none; on a GPU that is not there."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import torchlstm
from torchlstm.engines.contract import Dense, Problem, Ragged
from torchlstm.engines.cuda import classes, qualified, records, told
from torchlstm.engines.cuda.classes import Form, Point, class_of, intervals, least_steps
from torchlstm.engines.cuda.device import GPU
from torchlstm.engines.cuda.records import Measured
from torchlstm.engines.shared.access import TRANSFORM

H200 = GPU("NVIDIA H200", (9, 0), 132, 227 << 10)
HERE = {"gpu": "NVIDIA H200", "driver": "580.65", "Triton": "3.6.0"}
BFLOAT16 = torch.bfloat16


def form(hidden: int = 256, **options: Any) -> Form:
    fields = {"directions": 1, "reverse": False, "projected": False, "ragged": False, "trace": False}
    return Form(BFLOAT16, False, hidden, **{**fields, **options})


def problem(hidden: int = 256, batch: int = 16, steps: int = 64, **options: Any) -> Problem:
    fields = {"rows": Dense(steps, batch), "directions": 1, "dtype": BFLOAT16, "device": torch.device("cuda", 0)}
    return Problem(**{"batch": batch, "input_size": 8, "hidden_size": hidden, "proj_size": 0, "bias": True, **fields,
                      **options})  # fmt: skip


def name(loop: str, hidden: int, batch: int = 16, **options: Any) -> str:
    return str(class_of(form(hidden, **options), batch, loop, H200))


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A GPU, a process that has read no record, and an empty cache folder."""
    monkeypatch.setenv("TORCHLSTM_CACHE", str(tmp_path))
    monkeypatch.delenv(qualified.VARIABLE, raising=False)
    monkeypatch.setattr(qualified, "INTERPRETED", False)
    for module in (qualified, told):
        monkeypatch.setattr(module, "gpu_of", lambda _: H200)
    monkeypatch.setattr(qualified, "identity_of", lambda _: HERE)
    known = (qualified._standings, qualified._agreed, qualified._tables, qualified._answers, qualified._warned)
    for each in known:
        each.clear()
    yield
    for each in known:
        each.clear()


def record(rows: dict[str, list[Measured]]) -> Path:
    return records.merge(HERE, rows)


def corners(hiddens: tuple[int, int], batches: tuple[int, int], least: int | None = 16) -> list[Measured]:
    return [Measured(hidden, batch, None, least) for hidden in hiddens for batch in batches]


def loop_of(*args: Any, **options: Any) -> str | None:
    chosen = qualified.automatic(problem(*args, **options), False)
    return chosen if isinstance(chosen, str) else chosen.loop


CORNERS = [Point(h, b, least) for h, b, least in ((136, 1, 16), (136, 16, 16), (256, 1, 64), (256, 16, 16))]
BRACKETS = {
    "inside": (CORNERS, 200, 7, 64),
    "at-a-corner": (CORNERS, 136, 16, 16),
    "at-the-slow-corner": (CORNERS, 256, 1, 64),
    "on-an-edge": (CORNERS, 136, 8, 16),
    "above-in-H": (CORNERS, 257, 8, None),
    "below-in-H": (CORNERS, 135, 8, None),
    "above-in-B": (CORNERS, 200, 17, None),
    "three-corners-only": (CORNERS[:3], 200, 7, None),
    "another-corner-missing": ([CORNERS[0], CORNERS[1], CORNERS[3]], 200, 7, None),
    "on-the-edge-that-is-left": (CORNERS[:2], 136, 7, 16),
    "a-corner-was-slower": ([*CORNERS[:3], Point(256, 16, None)], 200, 7, None),
    "slower-within": ([*CORNERS, Point(200, 8, None)], 190, 7, None),
    "slower-elsewhere": ([*CORNERS, Point(512, 8, None)], 190, 7, 64),
    "nothing": ([], 200, 7, None),
}


@pytest.mark.parametrize(("points", "hidden", "batch", "expected"), BRACKETS.values(), ids=BRACKETS)
def test_brackets(points: list[Point], hidden: int, batch: int, expected: int | None) -> None:
    assert least_steps(points, hidden, batch) == expected


def test_classes_tell_programs_apart() -> None:
    kind = class_of(form(256), 16, "fused", H200)
    assert kind.cooperates
    assert kind == class_of(form(136), 1, "fused", H200)  # fewer slices, the same cut
    other = [form(128), form(264), form(252), form(ragged=True), form(directions=2), form(reverse=True)]
    other += [form(projected=True), form(trace=True), form()._replace(dtype=torch.float16)]
    strict, rounded = form()._replace(dtype=torch.float32), form()._replace(dtype=torch.float32, tf32=True)
    found = [class_of(each, 16, "fused", H200) for each in (*other, strict, rounded)]
    found += [class_of(form(1024), 64, "fused", H200), class_of(form(1024), 16, "fused", H200)]  # other tiles
    assert len({kind, *found}) == 1 + len(found)
    assert len({str(each) for each in (kind, *found)}) == 1 + len(found)
    assert not class_of(form(32), 16, "fused", H200).cooperates
    assert class_of(form(2048), 16, "fused", H200) == class_of(form(8), 1, "steps", H200)
    assert class_of(form(single=True), 16, "fused", H200).loop == "steps"


def test_fused_where_it_qualified_else_steps_else_why_not() -> None:
    record({name("fused", 256): corners((136, 256), (1, 16)), name("steps", 256): corners((64, 512), (1, 64), 64)})
    assert loop_of(256, 16, 16) == "fused"
    assert loop_of(200, 3, 500) == "fused"
    assert loop_of(256, 32, 64) == "steps"
    assert loop_of(300, 16, 64) == "but is not chosen: fused: not measured; steps: not measured"  # no multiple of 8
    assert "steps: H=520 B=16 is not between sizes at which it was faster: H=64 B=1, H=64 B=64" in str(loop_of(520, 16))
    assert "fused: T=15 is below the fewest steps at which it was faster, 16" in str(loop_of(256, 16, 15))
    assert "steps: T=15 is below the fewest steps at which it was faster, 64" in str(loop_of(256, 16, 15))
    assert "not measured" in str(loop_of(256, 16, 64, rows=Ragged(torch.tensor([16, 3]))))


def test_a_single_step_is_chosen_where_it_was_faster() -> None:
    record({name("steps", 256): corners((64, 512), (1, 64), 1), name("steps", 250): corners((66, 510), (1, 64), 16)})
    assert loop_of(256, 16, 1) == "fused"  # of one step the same program
    assert "T=1 is below the fewest steps at which it was faster, 16" in str(loop_of(250, 16, 1))


def test_what_was_wrong_anywhere_is_chosen_nowhere() -> None:
    wrong = Measured(256, 16, "wrong: grad input: error 1e-2 exceeds 1e-6", None)
    record({name("fused", 256): [*corners((136, 200), (1, 16)), wrong]})
    assert "fused: at H=256 B=16, wrong: grad input" in str(loop_of(136, 1, 512))


def test_what_was_not_faster_is_not_chosen() -> None:
    record({name("fused", 256): corners((136, 256), (1, 16), None)})
    assert "fused: it was not faster than reference" in str(loop_of(200, 3, 512))


def test_choice_under_transforms_and_for_chunks() -> None:
    record({name("fused", 256): corners((136, 256), (1, 16))})
    assert "torch.func" in str(loop_of(access=TRANSFORM))
    assert loop_of(256, 16, 200, checkpoint_every=16) == "fused"
    assert "T=15 is below" in str(loop_of(256, 16, 200, checkpoint_every=15))  # the chunks are that short
    # A last chunk of one step is run by steps.
    assert isinstance(loop_of(256, 16, 65, checkpoint_every=16), str)
    assert loop_of(256, 16, 65, checkpoint_every=16).startswith("but")
    record({name("steps", 256): corners((136, 256), (1, 16), 64)})
    qualified.reload()
    assert loop_of(256, 16, 65, checkpoint_every=16) == "fused"
    # Of two directions the second is run alone, in reverse.
    assert str(loop_of(256, 16, 200, checkpoint_every=16, directions=2)).startswith("but")
    record({name("fused", 256, reverse=True): corners((136, 256), (1, 16))})
    qualified.reload()
    assert loop_of(256, 16, 200, checkpoint_every=16, directions=2) == "fused"
    assert str(loop_of(256, 16, 200, directions=2)).startswith("but")


def test_a_call_reads_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    record({name("fused", 256): corners((136, 256), (1, 16))})
    assert loop_of(200) == "fused"

    def touched(*_: object, **__: object) -> Any:
        raise AssertionError("a call touches files")

    for method in ("open", "stat", "glob", "read_text", "exists"):
        monkeypatch.setattr(Path, method, touched)
    monkeypatch.setattr(os, "stat", touched)
    assert loop_of(208) == "fused"
    assert str(loop_of(512)).startswith("but")


def test_without_a_record_one_line_says_once_what_to_run() -> None:
    with pytest.warns(UserWarning, match="torchlstm qualify") as caught:
        assert "there is no record of it: run `torchlstm qualify`" in str(loop_of())
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop_of(300)


def test_records_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    record({name("fused", 256): corners((136, 256), (1, 16))})
    monkeypatch.setenv(qualified.VARIABLE, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loop_of() == "but is not chosen: records are switched off (TORCHLSTM_QUALIFIED=0)"


def _spoiled(path: Path, how: str) -> None:
    content = json.loads(path.read_text())
    if how == "driver":
        content["identity"]["driver"] = "570.1"
    elif how == "outdated":
        content["schema"] = records.SCHEMA + 1
    elif how == "row":
        next(iter(content["classes"].values()))[0]["H"] = "256"
    elif how == "list":
        content = [content]
    text = json.dumps(content)
    path.write_text(text[: len(text) // 2] if how == "cut off" else "" if how == "empty" else text)
    if how == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    if how == "folder":
        path.unlink()
        path.mkdir()


SPOILED = {
    "driver": "made on something else: driver 570.1, here 580.65",
    "outdated": f"its form is {records.SCHEMA + 1}, and this torchlstm reads {records.SCHEMA}",
    "row": "it is damaged: ValueError, '256' is no size",
    "list": "it is damaged: no record",
    "cut off": "it is damaged: no JSON",
    "empty": "it is damaged: no JSON",
    "bytes": "it is damaged: no JSON",
    "folder": "it cannot be read: Is a directory",
}


@pytest.mark.parametrize(("how", "why"), SPOILED.items(), ids=SPOILED)
def test_what_is_no_record_of_this_gpu_is_ignored_with_the_reason(how: str, why: str) -> None:
    path = record({name("fused", 256): corners((136, 256), (1, 16))})
    _spoiled(path, how)
    with pytest.warns(UserWarning, match="1 ignored"):
        assert "there is no record of it" in str(loop_of())
    assert any(line.startswith(f"ignored: {path}") and why in line for line in told.described(0))
    if how != "folder":
        # A new qualification replaces it.
        record({name("fused", 256): corners((136, 256), (1, 16))})
        qualified.reload()
        assert loop_of() == "fused"


def test_a_folder_that_cannot_be_one_fails_no_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHLSTM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="torchlstm qualify"):
        assert "there is no record" in str(loop_of())
    with pytest.raises(OSError, match="file"):
        record({})

    def fails(_: object) -> Any:
        raise RuntimeError("no driver")

    qualified.reload()
    monkeypatch.setattr(qualified, "identity_of", fails)
    with pytest.warns(UserWarning, match="records cannot be read: RuntimeError: no driver"):
        loop_of()


def test_a_users_record_goes_before_one_that_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind, other = name("fused", 256), name("fused", 512)
    shipped = record({kind: corners((136, 256), (1, 16)), other: corners((264, 512), (1, 16))})
    monkeypatch.setattr(records, "SHIPPED", shipped.parent)
    monkeypatch.setenv("TORCHLSTM_CACHE", str(tmp_path / "own"))
    assert loop_of(256) == loop_of(512) == "fused"
    record({kind: [Measured(256, 16, "hangs", None)]})
    qualified.reload()
    assert "hangs" in str(loop_of(256))
    assert loop_of(512) == "fused"


def test_nn_where_it_was_faster_is_told_by_plan_swap() -> None:
    speed = tuple({"steps": steps, "ours": 4.0, "reference": 90.0, "nn": nn, "low": 20.0} for steps, nn in
                  ((16, 2.0), (64, 3.0), (512, 5.0)))  # fmt: skip
    slow = tuple({**each, "nn": 95.0} for each in speed)
    record({name("fused", 256): [Measured(256, 16, None, 64, speed)],
            name("fused", 128): [Measured(128, 16, None, 16, slow)]})  # fmt: skip
    # At T=16 reference is chosen.
    expected = "nn.LSTM was faster at B=16, T=16: 2.0 us a step, ours 90.0"
    assert told.rival(0, form(256)) == expected
    assert told.rival(0, form(264)) is None
    assert told.rival(0, form(128)) is None  # measured, and ours is faster
    (candidate,) = torchlstm.plan_swap(torch.nn.LSTM(4, 256))
    assert candidate.note is None
    _, module, reason = candidate
    assert (module, reason) == (candidate.module, None)
    module.hidden_size = 256

    class Weight:
        device, dtype = torch.device("cuda", 0), BFLOAT16

    vars(module)["_parameters"].pop("weight_hh_l0")
    vars(module)["weight_hh_l0"] = Weight()
    assert candidate.note == expected


def test_intervals_leave_out_what_waits_for_others() -> None:
    decisions = {name("fused", 256): tuple(CORNERS), name("fused", 32): (Point(32, 1, 16), Point(32, 16, 16))}
    assert intervals(decisions, form(256), H200, cooperate=True)[0] == classes.Interval("fused", 1, 15, 64)
    assert intervals(decisions, form(256), H200, cooperate=False) == ()
    assert intervals(decisions, form(32), H200, cooperate=False) == (classes.Interval("fused", 1, 16, 16),)


class Store:
    """The part of a process group's store that is used."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        assert expected == ""
        return self.values.setdefault(key, desired).encode()


def test_ranks_follow_whoever_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    store, group = Store(), object()
    monkeypatch.setattr(qualified, "_group", lambda: group)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    path = record({name("fused", 32): corners((17, 32), (1, 16)), name("fused", 256): corners((136, 256), (1, 16))})
    assert loop_of(32) == "fused"
    # A loop whose programs wait for each other is not chosen beside communication.
    assert "its programs wait for each other" in str(loop_of(256))
    # Another rank, without a record of its own, does the same.
    path.unlink()
    qualified.reload()
    with pytest.warns(UserWarning, match="torchlstm qualify"):
        assert loop_of(32) == "fused"
    # One on other hardware does not.
    other = {**HERE, "driver": "590"}
    records.merge(other, {name("fused", 32): corners((17, 32), (1, 16))})
    qualified.reload()
    monkeypatch.setattr(qualified, "identity_of", lambda _: other)
    with pytest.warns(UserWarning, match="runs on another GPU or other software"):
        assert "another GPU" in str(loop_of(32))
    # Its decisions end with the group.
    monkeypatch.setattr(qualified, "_group", lambda: None)
    assert loop_of(32) == "fused"


def test_a_rank_without_a_record_that_came_first_keeps_all_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store, group = Store(), object()
    monkeypatch.setattr(qualified, "_group", lambda: group)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    with pytest.warns(UserWarning, match="torchlstm qualify"):
        assert str(loop_of(32)).startswith("but")
    record({name("fused", 32): corners((17, 32), (1, 16))})
    qualified.reload()
    assert "the rank that decided first has no record" in str(loop_of(32))


def test_a_store_that_fails_fails_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    record({name("fused", 32): corners((17, 32), (1, 16))})
    group = object()
    monkeypatch.setattr(qualified, "_group", lambda: group)

    def gone() -> Any:
        raise RuntimeError("the store is gone")

    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", gone)
    with pytest.warns(UserWarning, match="the store is gone"):
        assert "the ranks could not agree" in str(loop_of(32))
