"""The benchmarks of frozen LSTMs: that they run, whom they compare, and what they make of the figures."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import torchlstm
from benchmarks import frozen, frozen_accuracy, frozen_stream, rivals
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.measure import Settings
from benchmarks.record import ExtraRow
from benchmarks.unfit import Unfit

QUICK = Settings(threads=1, seconds=0.001, quick=True)
HAS_ORT = all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))


@pytest.fixture(autouse=True)
def threads_are_given_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_bound_is_over_rows_that_are_measured() -> None:
    names = [extra.name for extra in frozen.EXTRAS]
    assert len(names) == len(set(names)) == 12 + 10 - 2 + 8 + 8 + 16
    for bound in frozen.BOUNDS:
        assert set(bound.rows()) <= set(names)
        assert bound.rival in frozen._RIVALS[bound.weights]
    assert {bound.weights for bound in frozen.BOUNDS} == set(rivals.FORMATS)


def test_a_bound_is_judged_by_mean_and_least() -> None:
    def of_first(*ratios: float) -> dict[str, Any]:
        few = [f"frozen-as-is-T{steps}-B1-H256" for steps in (1, 2, 3)]
        rows: list[ExtraRow] = [
            {"name": name, "group": "frozen-as-is", "figures": {"unfrozen/ours": ratio}, "note": None}
            for name, ratio in zip(few, ratios, strict=False)
        ]
        return next(frozen.judged(rows))

    good = of_first(1.0, 4.0)
    assert (good["mean"], good["least"], good["holds"], good["rows"]) == (pytest.approx(2.0), 1.0, True, 2)
    assert of_first(1.2, 1.3)["holds"] is False
    low = of_first(0.9, 4.0, 4.0)
    assert low["holds"] is False
    assert low["least_row"] == "frozen-as-is-T1-B1-H256"
    assert low["below"] == {"frozen-as-is-T1-B1-H256": 0.9}
    assert of_first()["holds"] is None


def test_the_table_says_what_falls_short() -> None:
    rows: list[ExtraRow] = [
        {"name": name, "group": "frozen-int8", "figures": {"ao-qint8/ours": 1.2, "ort-int8/ours": 1.2}, "note": None}
        for name in frozen.BOUNDS[-1].rows()
    ]
    cells = frozen.bounds_table(rows)
    assert [line[-1] for line in cells] == ["holds", "-", "-", "-", "-", "NO", "yes"]
    assert cells[-2][3:8] == ["16", "1.20", "1.50", "1.20", "1.00"]


@pytest.mark.parametrize("sizes", [(1, 1, 128), (100, 16, 128)], ids=["step", "sequence"])
@pytest.mark.parametrize("weights", rivals.FORMATS)
def test_a_row_has_every_rival(weights: str, sizes: frozen.Sizes) -> None:
    figures = frozen.measure(weights, sizes, QUICK)
    for name in frozen._RIVALS[weights]:
        ratio = figures[f"{name}/ours"]
        assert (ratio is not None) == (HAS_ORT or not name.startswith("ort")), name
        assert ratio is None or ratio > 0


def test_a_rival_that_is_not_installed_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.RIVALS, "ort", replace(rivals.RIVALS["ort"], packages=("no_such_package",)))
    figures = frozen.measure("as-is", (1, 1, 64), QUICK)
    assert figures["ort/ours"] is None
    assert figures["nn/ours"] is not None


def test_threads_that_spin_are_timed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival whose threads spin is made anew for every block, and gone before ours is timed."""
    made = []

    def prepare(*arguments: Any) -> rivals.Subject:
        made.append(1)
        return rivals._nn(*arguments)

    monkeypatch.setitem(rivals.RIVALS, "nn", replace(rivals.RIVALS["nn"], prepare=prepare, spins=True))
    monkeypatch.setitem(frozen._RIVALS, "int8", ("nn",))
    frozen.measure("int8", (1, 1, 64), QUICK)
    assert len(made) == 1
    frozen.measure("int8", (1, 1, 64), replace(QUICK, threads=2))
    assert len(made) == 1 + 1 + 5


def test_who_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> rivals.Subject:
        call, results = rivals._nn(*arguments)
        return rivals.Subject(call, results | {"h_n": results["h_n"] + 0.002})

    monkeypatch.setitem(rivals.RIVALS, "nn", replace(rivals.RIVALS["nn"], prepare=wrong))
    with pytest.raises(Unfit, match=r"nn computes something else: h_n differs by 2\.0e-03"):
        frozen.measure("int8", (1, 1, 64), QUICK)
    monkeypatch.setitem(rivals._CLOSE, "int8", 0.0)
    with pytest.raises(Unfit, match="ours computes something else: "):
        frozen.measure("int8", (1, 1, 64), QUICK)


def test_the_program_prints_and_saves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "frozen.json"
    given = ["--quick", "--only", "frozen-*16-T1-B1-H128", "--threads", "1", "--seconds", "0.001", "--save", str(file)]
    assert frozen.main(given) == 0
    printed = capsys.readouterr().out
    assert "QUICK: the figures say nothing" in printed
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["rows"]] == ["frozen-bfloat16-T1-B1-H128", "frozen-float16-T1-B1-H128"]
    assert [bound["rows"] for bound in record["bounds"]] == [0, 0, 1, 1, 0, 0]
    assert record["environment"]["threads"] == 1
    with pytest.raises(SystemExit):
        frozen.main(["--only", "gru"])


def test_the_suite_has_the_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    rows = "frozen-int8-T1-B1-H128"
    given = ["--quick", "--threads", "1", "--seconds", "0.001", "--workloads", rows, "--json", str(file)]
    assert benchmarks_main(given) == 0
    assert [row["name"] for row in json.loads(file.read_text())["extras"]] == [rows]
    assert "ao-qint8/ours" in capsys.readouterr().out


def test_errors_and_losses_are_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "accuracy.json"
    assert frozen_accuracy.main(["--quick", "--save", str(file)]) == 0
    record = json.loads(file.read_text())
    assert [row["weights"] for row in record["rows"]] == ["random"] * 2 + ["saturating"] * 2 + ["trained"] * 2
    for errors in (row["errors"] for row in record["rows"]):
        assert list(errors) == list(frozen_accuracy.NAMES)
        assert all(0 < error["mean"] <= error["largest"] for error in errors.values())
        # The order that their roundings have: 2^-24, 2^-11, 2^-8 of each weight.
        assert errors["as-is"]["mean"] < 1e-6 < errors["float16"]["mean"] < errors["bfloat16"]["mean"]
        assert errors["int8"]["mean"] < errors["ao-qint8"]["mean"]
    assert record["losses"]["as-is"]["bits"] == pytest.approx(record["losses"]["nn"]["bits"], rel=1e-5)
    assert record["losses"]["int8"]["bytes"] < 0.4 * record["losses"]["nn"]["bytes"]
    assert "| int8 / ao-qint8 | trained | mean |" in capsys.readouterr().out


def test_ratios_of_errors_are_judged_by_their_mean() -> None:
    def case(seed: int, int8: float, bfloat16: float) -> dict[str, Any]:
        errors = dict.fromkeys(frozen_accuracy.NAMES, 1.0) | {"int8": int8, "bfloat16": bfloat16}
        both = {name: {"mean": value, "largest": value} for name, value in errors.items()}
        return {"weights": "random", "hidden": 8, "steps": 5, "seed": seed, "errors": both}

    found = list(frozen_accuracy.judged([case(0, 0.25, 8.2), case(1, 1.0, 7.9), case(2, 0.5, 8.0)]))
    assert [(bound["ours"], bound["what"]) for bound in found[::2]] == [
        (name, "mean") for name in ("int8", "float16", "bfloat16")
    ]
    int8, _, float16, _, bfloat16, _ = found
    assert int8["ratio"] == pytest.approx(0.5)
    assert (int8["largest"], int8["of"], int8["cases"], int8["holds"]) == (1.0, "H8-T5-seed1", 3, True)
    assert float16["holds"] is True
    assert 8 < bfloat16["ratio"] < 8.05
    assert bfloat16["holds"]
    assert not next(frozen_accuracy.judged([case(0, 0.51, 8.0)]))["holds"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="allocations are counted on Linux")
def test_a_frozen_stream_asks_for_no_memory() -> None:
    try:
        found = frozen_stream.allocations()
    except Unfit as unfit:
        pytest.skip(str(unfit))
    assert found["nn"] > found["unfrozen"] > 1
    assert {who: found[who] for who in rivals.FORMATS} == dict.fromkeys(rivals.FORMATS, 0)


@pytest.mark.skipif(not HAS_ORT, reason="ONNX Runtime is not installed")
def test_onnx_runtime_is_given_integers() -> None:
    found = frozen.workload((1, 1, 64))
    inputs = found.inputs()
    truth = rivals.truth_of(found, inputs)["h_n"]
    gaps = {name: (rivals.RIVALS[name].prepare(found, inputs).results["h_n"] - truth).abs().max().item()
            for name in ("ort", "ort-int8")}  # fmt: skip
    assert gaps["ort"] < 1e-5
    assert 1e-4 < gaps["ort-int8"] < 0.1


def test_nothing_measured_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delattr(torchlstm, "freeze")
    assert frozen.main(["--quick", "--only", "frozen-int8-T1-B1-H128", "--threads", "1"]) == 1
    assert "frozen-int8-T1-B1-H128 (Unfit: this torchlstm has no freeze)" in capsys.readouterr().out
