"""The command line: what it prints, and its exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchlstm
from torchlstm.__main__ import main
from torchlstm.engines import ENGINES
from torchlstm.engines.contract import Engine, only_if_asked
from torchlstm.parity import CASES


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "lost", Engine("lost", ENGINES["reference"].layer, unavailable=lambda: "no compiler"))
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    if not torchlstm.engines()["cpu"]:
        threads = rf"torch {torch.get_num_threads()}, quota (none|\d+), processors \d+; a layer .* 4 sequences: \d+"
        assert re.search(rf"^threads    {threads}", text, re.MULTILINE)
    engines = ("reference: available", "lost: unavailable: no compiler")
    for expected in (torchlstm.__version__, torch.__version__, *engines):
        assert expected in text


def test_parity_prints_a_row_a_case_and_writes_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    assert main(["parity", "--case", "cell-*", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [name for name in CASES if name.startswith("cell-")]
    assert [line.split()[:2] for line in lines[:-1]] == [["pass", name] for name in names]
    assert lines[-1].startswith(f"{len(names)} passed, 0 failed, 0 skipped")
    report = json.loads(file.read_text())
    assert [row["case"] for row in report["cases"]] == names
    assert report["cases"][0]["tensors"]["grad weight_hh"]["error"] < 1e-10


def test_parity_of_all_cases_also_says_how_digits_are_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torchlstm.__main__.select", lambda _: [CASES["cell-float32"]])
    file = tmp_path / "parity.json"
    assert main(["parity", "--json", str(file)]) == 0
    row, ratios, summary = capsys.readouterr().out.splitlines()
    assert row.startswith("pass  cell-float32")
    assert "rounding error over nn.LSTM's" in ratios
    assert summary.startswith("1 passed")
    assert 0 < json.loads(file.read_text())["digits"]["grad weight_hh_l0"]["mean"] < 2


def test_parity_fails_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(*arguments: object) -> object:
        y, h_n, c_n = ENGINES["reference"].layer(*arguments)
        return y * 1.001, h_n, c_n

    def broken(*_: object) -> object:
        raise IndexError("off by one")

    for layer, words in ((wrong, ": error "), (broken, "IndexError: off by one")):
        monkeypatch.setitem(ENGINES, "wrong", Engine("wrong", layer))
        file = tmp_path / "parity.json"
        arguments = ["parity", "--engine", "wrong", "--case", "float32-dense", "--json", str(file)]
        assert main(arguments) == 1
        text = capsys.readouterr().out
        assert "FAIL  float32-dense" in text
        assert words in text
        assert "0 passed, 1 failed" in text
        assert json.loads(file.read_text())["cases"][0]["outcome"] == "fail"


def test_parity_where_the_engine_refuses_everything_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shy = Engine("shy", ENGINES["reference"].layer, refuses=lambda _: "not today")
    monkeypatch.setitem(ENGINES, "shy", shy)
    assert main(["parity", "--engine", "shy", "--case", "float32-dense"]) == 1
    assert "not today" in capsys.readouterr().out


WRONG = {
    "unknown-argument": (["info", "--fast"], "unrecognized arguments: --fast"),
    "unknown-command": (["train"], "invalid choice: 'train'"),
    "no-command": ([], "required: command"),
    "unknown-engine": (["parity", "--engine", "fast"], "unknown engine 'fast'; engines: "),
    "unknown-case": (["parity", "--case", "gru"], "no case matches 'gru'"),
    "unknown-device": (["parity", "--device", "tpu"], "invalid choice: 'tpu'"),
    "no-steps": (["demo", "--steps", "0"], "--steps must be at least 1, got 0"),
    "file-in-no-folder": (["parity", "--case", "cell-float64", "--json", "no/such/folder.json"], "no/such/folder.json"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_end_with_one_line_and_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("command", ["parity", "demo"])
def test_missing_cuda_device(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--device", "cuda"])
    assert exit.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_demo_as_a_program(tmp_path: Path) -> None:
    """A short run of the whole: data, training, comparison, sample."""
    command = [sys.executable, "-m", "torchlstm", "demo", "--steps", "3", "--picture", str(tmp_path / "demo.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "as close as rounding allows" in done.stdout
    assert "characters per second: torch.nn" in done.stdout
    frozen = done.stdout.partition("frozen, on the CPU")[2].splitlines()
    rows = {line.split("  ")[0]: line.split("  ") for line in frozen[2:7]}
    assert list(rows) == [
        "not frozen",
        "weights=None",
        "weights=torch.bfloat16",
        "weights=torch.float16",
        "weights=torch.int8",
    ]
    bits = [float(row[1]) for row in ([c for c in cells if c] for cells in rows.values())]
    assert bits[0] == bits[1]
    assert bits == pytest.approx([bits[0]] * 5, abs=0.01)
    assert "(engine: " in done.stdout
    assert "def " in done.stdout
    assert (tmp_path / "demo.png").is_file() or "matplotlib is not installed" in done.stdout


def test_demo_notices_a_wrong_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(*arguments: object) -> object:
        y, h_n, c_n = ENGINES["reference"].layer(*arguments)
        return y * 1.001, h_n, c_n

    monkeypatch.setitem(ENGINES, "wrong", Engine("wrong", wrong, automatic=only_if_asked))
    with torchlstm.use_engine("wrong"):
        assert main(["demo", "--steps", "2", "--picture", str(tmp_path / "demo.png")]) == 1
    assert "FURTHER APART" in capsys.readouterr().out
