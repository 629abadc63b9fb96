"""The benchmark of a busy machine: that it runs, and what it counts."""

import json
from pathlib import Path

import pytest

from benchmarks import busy


def test_a_crew_measures_everyone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "busy.json"
    given = ["--grid", "--only", "cell-B1-H16", "--modes", "inference", "--settings", "neighbour", "--seconds", "0.01"]
    assert busy.main([*given, "--threads", "2", "--save", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert [row[key] for key in ("workload", "mode", "setting")] == ["cell-B1-H16", "inference", "neighbour"]
    for who in busy.WHO:
        assert row[who]["calls"] > 0
        assert 0 < row[who]["p50"] <= row[who]["p99"]
    # A cell this small is worth one thread.
    assert [row[who]["used"] for who in busy.WHO] == [0, 1, 1]
    assert "cell-B1-H16" in capsys.readouterr().out


def test_a_thread_that_spins_shares_the_process(tmp_path: Path) -> None:
    file = tmp_path / "busy.json"
    given = ["--grid", "--only", "cell-B1-H16", "--modes", "inference", "--settings", "thread", "--seconds", "0.01"]
    assert busy.main([*given, "--threads", "1", "--save", str(file)]) == 0
    (row,) = json.loads(file.read_text())
    assert row["setting"] == "thread"
    assert row["ours"]["calls"] > 0


def test_rates_add_processes_and_average_rounds() -> None:
    def member(calls: float, *ms: float) -> dict[str, object]:
        return {"calls": calls, "ms": list(ms), "used": 1}

    rounds = [[member(10, 1, 1), member(20, 1, 1)], [member(30, 1, 3), member(40, 3, 3)]]
    assert busy._rate(rounds) == (50, 1, 3, 1)


def test_a_process_that_dies_is_an_error() -> None:
    crew = busy.Crew(1)
    with pytest.raises(RuntimeError, match="a measuring process ended with exit code 1"):
        crew.measure("no such workload", "ours", "inference", busy.SETTINGS["alone"], 1, 0.01)
    crew.close()
