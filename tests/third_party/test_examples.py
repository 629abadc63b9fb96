"""The examples with other people's libraries run."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(name: str, capsys: pytest.CaptureFixture[str]) -> float:
    """The figure that an example prints last."""
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return float(re.findall(r"\d+\.\d+", capsys.readouterr().out)[-1])


@pytest.mark.filterwarnings("ignore")  # Lightning's own, on logging, workers and what it imports
def test_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("with_lightning", capsys) < 0.05


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of what skorch imports
def test_skorch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("with_skorch", capsys) > 0.8


@pytest.mark.filterwarnings("ignore")  # opacus' own, on random numbers and hooks
def test_opacus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("with_opacus", capsys) > 0.9
