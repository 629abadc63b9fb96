"""The guide is true: the engine that CONTRIBUTING.md shows passes the parity cases that it does not refuse."""

import re
from pathlib import Path
from typing import Any

import pytest

from torchlstm.engines import ENGINES
from torchlstm.parity import Case, run_case, select

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> str:
    (block,) = BLOCKS
    names: dict[str, Any] = {}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    monkeypatch.setitem(ENGINES, names["ENGINE"].name, names["ENGINE"])
    return names["ENGINE"].name


def _case(name: str) -> Case:
    return next(case for case in select(name) if case.name == name)


@pytest.mark.parametrize("name", ["float32-dense", "L2-proj3-nobias-dense", "hx-none", "cell-float32"])
def test_the_engine_of_the_guide_is_right(name: str, engine: str) -> None:
    result = run_case(_case(name), "cpu", engine)
    assert result.skipped is None
    assert result.passed, result.worst


@pytest.mark.parametrize(
    ("name", "reason"),
    [("float32-packed", "ragged rows are not supported"), ("trace-proj", "only plain calls in one direction")],
)
def test_it_refuses_the_rest_with_a_reason(name: str, reason: str, engine: str) -> None:
    assert reason in str(run_case(_case(name), "cpu", engine).skipped)
